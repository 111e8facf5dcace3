"""What tests do behind the service's back."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg2


def execute(url: str, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Run one statement in a transaction of its own; its rows, if it has any."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def blocking_writes(url: str, task_id: str) -> Iterator[None]:
    """Lock a task; those who are to write it meet at the end of the body, where at least two wait for the lock."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id FROM tasks WHERE id = %s FOR UPDATE", (task_id,))
        yield
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        assert any(execute(url, waiting)[0][0] >= 2 for _ in range(5_000)), "nobody waits for the lock"
