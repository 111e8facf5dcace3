"""Migrations of a database in use: no row is lost, no request waits for long, and a failed attempt can be repeated."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from typing import Any
from uuid import uuid4

import httpx
import psycopg2
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from psycopg2 import errors
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel

from backend.tests.concurrency import Call, send_concurrently, until
from backend.tests.core.test_schema import configuration
from backend.tests.database import execute
from backend.tests.fork_server import run
from backend.tests.serving import ROOT, in_thread, settings

REVISION = "SELECT version_num FROM alembic_version"
KEY = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'pk_tasks'"
INDEXES = "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = 'tasks'::regclass ORDER BY 1"
ROWS = "SELECT tasks, users FROM tasks JOIN users ON users.id = user_id ORDER BY tasks.id"
INSERT = """
WITH owner AS (INSERT INTO users (id) SELECT gen_random_uuid() FROM generate_series(1, 20) RETURNING id)
INSERT INTO tasks (id, user_id, title)
SELECT gen_random_uuid(), id, 'task ' || n FROM owner, generate_series(1, 50) AS n
"""
BUILDING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE UNIQUE INDEX%%' AND wait_event_type = 'Lock'"
POLLING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_try_advisory_lock%%' AND state = 'idle'"
HERE = " AND datname = current_database()"
OLD_KEY, NEW_KEY = [("PRIMARY KEY (id)",)], [("PRIMARY KEY (user_id, id)",)]


def upgrade(url: str, revision: str) -> None:
    command.upgrade(configuration(url), revision)


def downgrade(url: str, revision: str) -> None:
    command.downgrade(configuration(url), revision)


@pytest.fixture
def old_key_url(empty_database_url: str) -> str:
    """A database whose tasks still have the primary key (id), with a thousand rows."""
    upgrade(empty_database_url, "0001")
    execute(empty_database_url, INSERT)
    return empty_database_url


@contextmanager
def open_transaction(url: str, sql: str) -> Iterator[None]:
    """Run `sql` in a transaction that is rolled back at the end of the block."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        yield


@contextmanager
def index_being_built(url: str) -> Iterator[None]:
    """Change the key, and run the block while the new index is built: the build waits for a transaction."""
    migrating = threading.Thread(target=upgrade, args=(url, "0002"))
    with open_transaction(url, "LOCK TABLE tasks IN ROW EXCLUSIVE MODE"):
        migrating.start()
        until(lambda: execute(url, BUILDING + HERE) == [(1,)])
        yield
    migrating.join(60)
    assert not migrating.is_alive()
    assert execute(url, REVISION) == [("0002",)]


def test_the_key_change_and_its_downgrade_keep_every_row(old_key_url: str) -> None:
    rows = execute(old_key_url, ROWS)
    assert len(rows) == 1000
    indexes = execute(old_key_url, INDEXES)
    for _ in range(2):
        assert execute(old_key_url, KEY) == OLD_KEY
        upgrade(old_key_url, "0002")
        assert execute(old_key_url, KEY) == NEW_KEY
        assert execute(old_key_url, ROWS) == rows
        assert execute(old_key_url, INDEXES) == indexes
        downgrade(old_key_url, "0001")
        assert execute(old_key_url, ROWS) == rows
        assert execute(old_key_url, INDEXES) == indexes


def test_models_and_migrations_have_the_same_primary_keys(database_url: str) -> None:
    # Alembic's comparison does not look at primary keys.
    engine = create_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(database_url))
    for name, table in SQLModel.metadata.tables.items():
        found = inspect(engine).get_pk_constraint(name)
        assert found["constrained_columns"] == [column.name for column in table.primary_key]
    engine.dispose()


def test_an_invalid_index_of_an_earlier_attempt_is_replaced(old_key_url: str) -> None:
    execute(old_key_url, INSERT)
    with pytest.raises(errors.UniqueViolation):
        execute(old_key_url, "CREATE UNIQUE INDEX CONCURRENTLY pk_tasks_new ON tasks (title)")
    assert ("pk_tasks_new", False) in execute(old_key_url, INDEXES)
    upgrade(old_key_url, "0002")
    assert execute(old_key_url, KEY) == NEW_KEY
    assert {valid for _, valid in execute(old_key_url, INDEXES)} == {True}


def test_a_migration_that_gets_no_lock_fails_with_one_line_and_can_be_repeated(
    old_key_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_transaction(old_key_url, "SELECT FROM tasks"), pytest.raises(SystemExit):
        upgrade(old_key_url, "0002")
    assert capsys.readouterr().err.splitlines() == [
        "Cannot start: the database cannot be migrated: canceling statement due to lock timeout"
    ]
    assert execute(old_key_url, REVISION) == [("0001",)]
    assert execute(old_key_url, KEY) == OLD_KEY
    upgrade(old_key_url, "0002")
    assert execute(old_key_url, KEY) == NEW_KEY


def test_an_id_shared_by_two_users_prevents_the_downgrade_and_no_task_is_lost(old_key_url: str) -> None:
    upgrade(old_key_url, "0002")
    execute(old_key_url, "INSERT INTO tasks (id, user_id, title) SELECT gen_random_uuid(), id, 'same' FROM users")
    execute(old_key_url, f"UPDATE tasks SET id = '{uuid4()}' WHERE title = 'same'")
    rows = execute(old_key_url, ROWS)
    with pytest.raises(IntegrityError, match="pk_tasks_new"):
        downgrade(old_key_url, "0001")
    assert sorted(execute(old_key_url, ROWS)) == sorted(rows)
    assert (execute(old_key_url, REVISION), execute(old_key_url, KEY)) == ([("0002",)], NEW_KEY)
    execute(old_key_url, "DELETE FROM tasks WHERE title = 'same'")
    downgrade(old_key_url, "0001")
    assert execute(old_key_url, KEY) == OLD_KEY


def test_a_process_that_waits_for_another_migration_does_not_block_it(old_key_url: str) -> None:
    env = {"PATH": os.environ["PATH"]}
    code = "import sys; from backend.core import schema; schema.upgrade(sys.argv[1])"
    with ThreadPoolExecutor() as pool, index_being_built(old_key_url):
        waiting = pool.submit(run, [sys.executable, "-c", code, old_key_url], cwd=ROOT, env=env)
        until(lambda: execute(old_key_url, POLLING + HERE) == [(1,)])
    assert (waiting.result().returncode, waiting.result().stderr) == (0, "")
    assert execute(old_key_url, REVISION) == [("0002",)]


def test_building_an_index_may_take_longer_than_other_statements(old_key_url: str) -> None:
    name = execute(old_key_url, "SELECT current_database()")[0][0]
    execute(old_key_url, f"ALTER DATABASE {name} SET statement_timeout = '1s'")
    # Longer than this timeout, and than that of the locks that requests would wait for.
    with index_being_built(old_key_url):
        until(lambda: execute(old_key_url, BUILDING + HERE + " AND now() - query_start > interval '2.2 s'") == [(1,)])


def test_waiting_for_another_migration_has_a_limit(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []
    # Every process that migrates uses this number.
    with open_transaction(empty_database_url, "SELECT pg_advisory_lock(7236451)"):
        monkeypatch.setattr(time, "sleep", pauses.append)
        with pytest.raises(SystemExit):
            upgrade(empty_database_url, "head")
    assert 60 < sum(pauses) < 600
    assert capsys.readouterr().err.splitlines() == [
        "Cannot start: the database cannot be migrated: another process is still migrating it"
    ]


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_the_service_works_with_either_key(empty_database_url: str, user: str, tasks: str, revision: str) -> None:
    upgrade(empty_database_url, revision)
    newest = ScriptDirectory.from_config(configuration(empty_database_url)).get_current_head()
    with in_thread(settings(empty_database_url)) as url, httpx.Client(base_url=url) as client:
        key = {"Idempotency-Key": "a"}
        created = client.post(tasks, json={"title": "a"}, headers=key)
        assert created.status_code == 201
        replayed = client.post(tasks, json={"title": "a"}, headers=key)
        assert (replayed.status_code, replayed.headers["Idempotency-Replayed"]) == (201, "true")
        task = f"{tasks}/{created.json()['id']}"
        assert client.get(task).json() == replayed.json() == created.json()
        assert client.put(task, json={"title": "b"}).json()["title"] == "b"
        toggled = client.patch(f"{task}/complete")
        assert toggled.json()["completed"] is True
        assert client.get(tasks).json() == [toggled.json()]
        assert client.delete(task).status_code == 204
        assert client.get(tasks).json() == []
        assert client.get("/health").status_code == (200 if revision == newest else 503)


class Writer(threading.Thread):
    """A client that writes tasks of its own user until stopped, and records the acknowledged writes."""

    def __init__(self, base_url: str) -> None:
        super().__init__()
        self.stopping = False
        self.requests = 0
        self.tasks: dict[str, Any] = {}
        self.path = f"/api/{uuid4()}/tasks"
        self.unexpected: list[tuple[int, str]] = []
        self._client = httpx.Client(base_url=base_url, timeout=30)

    def send(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Repeat the request until it succeeds; only after a 503 that reports that nothing was written."""
        while True:
            response = self._client.request(method, path, **content)
            self.requests += 1
            if response.status_code != 503 or "nothing was written" not in response.json()["detail"]:
                break
        if not response.is_success:
            self.unexpected.append((response.status_code, response.text))
        return response

    def run(self) -> None:
        with self._client:
            for number in count():
                if self.stopping or self.unexpected:
                    break
                created = self.send("POST", self.path, json={"title": f"task {number}"}).json()
                task = f"{self.path}/{created['id']}"
                self.send("PUT", task, json={"description": "a"})
                self.tasks[created["id"]] = self.send("PATCH", f"{task}/complete").json()
                if number % 3 == 0:
                    self.send("DELETE", task)
                    del self.tasks[created["id"]]
                self.send("GET", self.path, params={"limit": 10})

    def stored(self) -> dict[str, Any]:
        """The tasks that the service returns now."""
        found: dict[str, Any] = {}
        with httpx.Client(base_url=self._client.base_url, timeout=30) as client:
            path = f"{self.path}?limit=100"
            while path:
                page = client.get(path)
                found |= {task["id"]: task for task in page.json()}
                path = page.links.get("next", {}).get("url", "")
        return found


def test_no_request_fails_and_no_write_is_lost_while_the_key_changes(old_key_url: str) -> None:
    with in_thread(settings(old_key_url)) as url:
        writers = [Writer(url) for _ in range(4)]

        def each_sends(requests: int) -> None:
            before = [writer.requests for writer in writers]
            until(
                lambda: all(
                    writer.requests >= start + requests or writer.unexpected
                    for writer, start in zip(writers, before, strict=True)
                )
            )

        for writer in writers:
            writer.start()
        try:
            each_sends(10)
            with index_being_built(old_key_url):
                each_sends(10)
            for _ in range(3):
                each_sends(5)
                downgrade(old_key_url, "0001")
                each_sends(5)
                upgrade(old_key_url, "0002")
            each_sends(10)
        finally:
            for writer in writers:
                writer.stopping = True
                writer.join(60)
        assert [writer.unexpected for writer in writers] == [[]] * 4
        for writer in writers:
            assert writer.stored() == writer.tasks


def test_repeated_creations_during_an_index_build_create_one_task(old_key_url: str, user: str, tasks: str) -> None:
    # Two unique indexes, of which only the primary key's resolves conflicts, as during the migration.
    execute(old_key_url, "CREATE UNIQUE INDEX pk_tasks_new ON tasks (user_id, id)")
    with in_thread(settings(old_key_url)) as url, httpx.Client(base_url=url) as client:
        for number in range(50):
            calls = [Call("POST", tasks, {"title": "a"}, {"Idempotency-Key": str(number)})] * 8
            responses = send_concurrently(url, calls)
            assert {response.status_code for response in responses} <= {201, 503}
            assert all("nothing was written" in r.text for r in responses if r.status_code == 503)
        total = client.get(tasks, params={"total": True}).headers["X-Total-Count"]
    assert total == "50"
