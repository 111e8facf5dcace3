"""Databases to measure on: each is created for the run, migrated, filled, and dropped afterwards."""

import io
import os
import random
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import psycopg2
from sqlalchemy import make_url

from backend.core import embedded, schema

CHUNK = 10_000
COPY = "COPY tasks (id, user_id, title, description, completed, created_at, updated_at) FROM STDIN"


@dataclass(frozen=True)
class Dataset:
    """The database at `url` with `tasks` tasks: one user, the owner, has a tenth of them, every other user has 90."""

    url: str
    tasks: int

    @property
    def owner(self) -> str:
        """The path of the owner's list."""
        return f"/api/{_identity('user', 0)}/tasks"

    @property
    def depth(self) -> int:
        """The offset of a deep page of that list: 50 before its end, at most 100,000."""
        return min(self.tasks // 10 - 50, 100_000)

    def paths(self, size: int) -> list[str]:
        """The paths of `size` tasks of the other users."""
        numbers = [n // 9 * 10 + n % 9 + 1 for n in random.Random(1).sample(range(self.tasks // 10 * 9), size)]
        return [f"/api/{_identity('user', self._user_of(n))}/tasks/{_identity('task', n)}" for n in numbers]

    def fill(self) -> None:
        """Insert the rows with COPY and show the progress."""
        with closing(psycopg2.connect(self.url)) as connection, connection.cursor() as cursor:
            # Building an index after loading the rows is several times faster than updating it row by row.
            cursor.execute(
                "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'tasks' AND indexname LIKE 'ix%'"
            )
            indexes = cursor.fetchall()
            for name, _ in indexes:
                cursor.execute(f"DROP INDEX {name}")
            users = "".join(f"{_identity('user', number)}\n" for number in range(self.tasks // 100 + 1))
            cursor.copy_expert("COPY users (id) FROM STDIN", io.StringIO(users))
            for start in range(0, self.tasks, CHUNK):
                rows = "".join(self._row(number) for number in range(start, start + CHUNK))
                cursor.copy_expert(COPY, io.StringIO(rows))
                done = (start + CHUNK) / self.tasks
                show(f"{self.tasks:,} tasks [{'#' * int(done * 40):<40}] {done:4.0%}")
            show(f"{self.tasks:,} tasks: indexes and statistics")
            for _, definition in indexes:
                cursor.execute(definition)
            connection.commit()
            connection.autocommit = True
            cursor.execute("VACUUM (ANALYZE)")

    def cpu_seconds(self) -> dict[int, float]:
        """CPU time used so far by each backend of this database, by process id; empty if the server is remote."""
        used = {}
        with closing(psycopg2.connect(self.url)) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            for (pid,) in cursor.fetchall():
                process = Path(f"/proc/{pid}")
                with suppress(OSError):  # it has ended, or runs on another machine
                    if process.joinpath("comm").read_text() == "postgres\n":
                        used[pid] = int(process.joinpath("schedstat").read_text().split()[0]) / 1e9
        return used

    def _user_of(self, number: int) -> int:
        # The tasks of one user are spread over time, as if people had created them.
        return 1 + (number // 10 * 9 + number % 10 - 1) % (self.tasks // 100) if number % 10 else 0

    def _row(self, number: int) -> str:
        at = datetime.now(UTC) - timedelta(seconds=(self.tasks - number) * 3)
        description = f"A description of task {number} in one short sentence." if number % 2 else r"\N"
        ids = f"{_identity('task', number)}\t{_identity('user', self._user_of(number))}"
        return f"{ids}\tBuy milk {number}\t{description}\t{number % 3 == 0}\t{at}\t{at}\n"


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """The URL of a server for the databases: `url`, or that of a temporary embedded server."""
    with TemporaryDirectory(prefix="benchmark-") as folder:
        if url is not None:
            yield url
        else:
            with embedded.postgres(Path(folder)) as embedded_url:
                yield embedded_url


@contextmanager
def filled(server_url: str, tasks: int) -> Iterator[Dataset]:
    """A new database on the server, migrated and filled with `tasks` tasks."""
    name = f"benchmark_{os.getpid()}_{tasks}"
    dataset = Dataset(make_url(server_url).set(database=name).render_as_string(hide_password=False), tasks)
    _execute(server_url, f"CREATE DATABASE {name}")
    try:
        schema.upgrade(dataset.url)
        dataset.fill()
        yield dataset
    finally:
        _execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(url: str, sql: str) -> None:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        connection.cursor().execute(sql)


def _identity(kind: str, number: int) -> str:
    return str(UUID(bytes=blake2b(f"{kind} {number}".encode(), digest_size=16).digest(), version=4))


def show(progress: str) -> None:
    """Show progress on a terminal, in one line that the next call replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)
