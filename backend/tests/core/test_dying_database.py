"""PostgreSQL is killed under load and restarted: every response was true, and the service recovers."""

import asyncio
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import httpx
import psycopg2
import pytest

from backend.core import embedded, schema
from backend.core.errors import MAYBE_WRITTEN, NOT_WRITTEN
from backend.tests.concurrency import concurrent_client, until
from backend.tests.embedded_data import copy_data
from backend.tests.errors import assert_error
from backend.tests.process_checks import assert_processes_end, processes
from backend.tests.serving import in_thread, settings

CLIENTS = 12
KILLS = 3


class Database:
    """A PostgreSQL server with the schema, for one test, that can be killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        copy_data(folder)
        with embedded.postgres(folder) as url:
            schema.upgrade(url)
        self.url = f"postgresql:///postgres?user=postgres&host={folder}/postgres"

    def start(self) -> None:
        """Start it as a child of this process, because not every container has an init process that reaps orphans."""
        data, log = self._folder / "postgres", self._folder / "postgres" / "log"
        options = ["-D", "/proc/self/cwd", "-c", "listen_addresses=", "-c", "unix_socket_directories=."]
        command = [str(embedded.binaries() / "postgres"), *options]
        owner = data.stat()
        groups: list[int] | None = [] if os.geteuid() == 0 else None
        with log.open("a") as output:
            self._process = subprocess.Popen(
                command, cwd=data, stdout=output, stderr=output,
                user=owner.st_uid, group=owner.st_gid, extra_groups=groups,
            )  # fmt: skip
        until(self.answers)

    def answers(self) -> bool:
        with suppress(psycopg2.OperationalError):
            psycopg2.connect(self.url).close()
            return True
        return False

    def kill(self) -> None:
        """Kill all of its processes at once, so that none can clean up or notify its clients."""
        self._process.send_signal(signal.SIGSTOP)
        pids = processes(self._folder)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(30)
        assert_processes_end(pids)


@pytest.fixture
def database() -> Iterator[Database]:
    # Not in pytest's folder: another run as root would make it inaccessible to the user that PostgreSQL runs as.
    with TemporaryDirectory() as folder:
        database = Database(Path(folder))
        database.start()
        yield database
        database.kill()


@dataclass
class Ledger:
    """The responses that the clients received."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    creations: dict[str, str] = field(default_factory=dict)
    """The reported outcome of each creation, by title."""
    toggles: dict[str, Counter[str]] = field(default_factory=dict)
    """The reported outcomes of the toggles of each task, by its path."""
    versions: dict[str, int] = field(default_factory=dict)
    """The version of each of these tasks before the toggles."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def record(self, response: httpx.Response, success: int) -> str:
        """Count an answer, which must be a success or a correct 503; returns the reported outcome."""
        self.statuses[response.request.method, response.status_code] += 1
        self.changed.set()
        if response.status_code == success:
            return "done"
        assert_error(response, 503)
        assert response.headers["Retry-After"] == "1"
        outcome: str = response.json()["detail"].split("; ")[1].removesuffix(".")
        assert outcome in (NOT_WRITTEN, MAYBE_WRITTEN)
        return outcome

    async def wait_for_more(self, count: int, *, served: bool) -> None:
        """Wait for `count` more requests that succeeded (`served`) or failed."""
        goal = self.total(served=served) + count
        async with asyncio.timeout(60):
            while self.total(served=served) < goal:
                self.changed.clear()
                await self.changed.wait()

    def total(self, *, served: bool) -> int:
        return sum(count for (_, status), count in self.statuses.items() if (status != 503) == served)


async def run_client(client: httpx.AsyncClient, tasks: str, ledger: Ledger, stop: asyncio.Event) -> None:
    """Create, toggle, list and read until `stop` is set; raises if a request gets no response."""
    task = await client.post(tasks, json={"title": "toggled"})
    location = task.headers["Location"]
    ledger.versions[location] = version(task)
    toggles = ledger.toggles[location] = Counter()
    while not stop.is_set():
        title = str(uuid4())
        ledger.creations[title] = ledger.record(await client.post(tasks, json={"title": title}), 201)
        toggles[ledger.record(await client.patch(f"{location}/complete"), 200)] += 1
        ledger.record(await client.get(tasks), 200)
        if ledger.record(await client.get(location), 200) != "done":
            await asyncio.sleep(0.1)  # otherwise twelve retrying clients leave no CPU time for the starting database


async def kill_under_load(database: Database, base_url: str, tasks: str, ledger: Ledger) -> list[float]:
    """Kill the database repeatedly while clients send requests; returns the seconds until the service recovered."""
    recoveries = []
    stop = asyncio.Event()
    async with concurrent_client(base_url) as client, asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(run_client(client, tasks, ledger, stop))
        for _ in range(KILLS):
            await ledger.wait_for_more(5 * CLIENTS, served=True)
            await asyncio.to_thread(database.kill)
            await ledger.wait_for_more(CLIENTS, served=False)
            await asyncio.to_thread(database.start)
            started = time.monotonic()
            await ledger.wait_for_more(1, served=True)
            recoveries.append(round(time.monotonic() - started, 3))
        stop.set()
    return recoveries


def test_every_response_is_true_when_the_database_is_killed(database: Database, tasks: str) -> None:
    ledger = Ledger()
    with in_thread(settings(database.url, log_level="error")) as url, httpx.Client(base_url=url, timeout=30) as client:
        recoveries = asyncio.run(kill_under_load(database, url, tasks, ledger))
        stored = Counter(task["title"] for task in all_tasks(client, tasks))
        found = Counter((outcome, stored[title]) for title, outcome in ledger.creations.items())
        print(f"\nanswers {dict(ledger.statuses)}\ncreations {dict(found)}\nrecovered after s {recoveries}")
        for outcome, times in found:
            assert times in {"done": (1,), NOT_WRITTEN: (0,), MAYBE_WRITTEN: (0, 1)}[outcome]
        for location, toggles in ledger.toggles.items():
            task = client.get(location)
            written = version(task) - ledger.versions[location]
            assert toggles["done"] <= written <= toggles["done"] + toggles[MAYBE_WRITTEN]
            assert task.json()["completed"] == bool(written % 2)


def all_tasks(client: httpx.Client, tasks: str) -> Iterator[dict[str, str]]:
    """All tasks of a user."""
    page: str | None = f"{tasks}?limit=100"
    while page:
        response = client.get(page)
        yield from response.json()
        page = response.links.get("next", {}).get("url")


def version(task: httpx.Response) -> int:
    """The version in the `ETag`, which grows by one with each write."""
    return int(task.headers["ETag"].strip('"'))
