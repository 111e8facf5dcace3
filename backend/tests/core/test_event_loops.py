"""uvloop and asyncio report a closed socket differently; responses must be the same with both."""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import httpx
import psycopg2
import pytest

from backend.core import schema
from backend.core.errors import MAYBE_WRITTEN
from backend.tests.concurrency import until
from backend.tests.errors import assert_error
from backend.tests.proxy import Ending, Fault, Proxy, proxied
from backend.tests.serving import Loop, as_process, in_thread, settings

TIMEOUT = 20
"""DB_POOL_TIMEOUT in seconds: more than the client's, so that a request that misses an event fails in the client."""


class Running(NamedTuple):
    """A service in its own process, and its connection to the database."""

    client: httpx.Client
    proxy: Proxy
    pid: int

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Pause the process, so that it notices all events of the block at once."""
        os.kill(self.pid, signal.SIGSTOP)
        until(lambda: Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].startswith("T"))
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def running(
    request: pytest.FixtureRequest, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    command = (sys.executable, "-m", "uvicorn", "backend.main:app", "--port", "{port}", "--loop", request.param)
    with proxied(database_url) as proxy:
        env = {"DATABASE_URL": proxy.url, "DB_POOL_TIMEOUT": f"{TIMEOUT}"}
        with (
            as_process(tmp_path_factory.mktemp("loop"), *command, env=env) as service,
            httpx.Client(base_url=service.base_url, timeout=TIMEOUT / 2) as client,
        ):
            yield Running(client, proxy, service.process.pid)


@pytest.mark.parametrize("ending", ["FIN", "RST"])
@pytest.mark.parametrize("fault", ["before the statement", "before the answer", "in the answer"])
@pytest.mark.parametrize(("method", "body"), [("GET", None), ("PUT", {"title": "new"})])
@pytest.mark.parametrize("paused", [True, False])
def test_a_repeatable_request_whose_connection_closes_is_answered_immediately(
    running: Running, tasks: str, ending: Ending, fault: Fault, method: str, body: object, paused: bool
) -> None:
    client, proxy, _ = running
    location = client.post(tasks, json={"title": "old"}).headers["Location"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy, "ending", ending)
        if paused:
            patch.setattr(proxy, "client_stopped", running.stopped)
        proxy.faults = [fault]
        answer = client.request(method, location, json=body)
    assert proxy.faults == []
    assert answer.status_code == 200


@pytest.mark.parametrize("ending", ["FIN", "RST"])
@pytest.mark.parametrize("fault", ["before the answer", "in the answer"])
def test_a_toggle_whose_connection_closes_is_answered_immediately(
    running: Running, tasks: str, ending: Ending, fault: Fault
) -> None:
    client, proxy, _ = running
    location = client.post(tasks, json={"title": "old"}).headers["Location"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy, "ending", ending)
        patch.setattr(proxy, "client_stopped", running.stopped)
        proxy.faults = [fault]
        answer = client.patch(f"{location}/complete")
    assert_error(answer, 503)
    assert answer.json()["detail"].endswith(f"; {MAYBE_WRITTEN}.")
    assert client.get(location).json()["completed"] is True


@pytest.mark.parametrize("ending", ["FIN", "RST"])
@pytest.mark.parametrize("paused", [True, False])
def test_a_connection_that_closed_after_a_response_is_not_reused(
    running: Running, tasks: str, ending: Ending, paused: bool
) -> None:
    client, proxy, _ = running
    location = client.post(tasks, json={"title": "old"}).headers["Location"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy, "ending", ending)
        if paused:
            patch.setattr(proxy, "client_stopped", running.stopped)
        proxy.faults = ["after the answer"]
        before = proxy.opened
        assert client.patch(f"{location}/complete").json()["completed"] is True
        # The proxy removes the connection after it has sent FIN or RST; the service reads that before the next request.
        until(lambda: not proxy.connections)
    assert client.patch(f"{location}/complete").json()["completed"] is False
    assert proxy.opened == before + 1


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_every_request_is_answered_while_connections_are_terminated(empty_database_url: str, loop: Loop) -> None:
    schema.upgrade(empty_database_url)
    terminate = """
        SELECT count(pg_terminate_backend(pid)) FROM (
            SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
            ORDER BY random() LIMIT 1
        ) AS chosen
    """
    statuses: Counter[int] = Counter()

    async def get_and_put(client: httpx.AsyncClient) -> None:
        location = None
        for _ in range(15):
            if location is None:
                answer = await client.post(f"/api/{uuid4()}/tasks", json={"title": "a"})
                location = answer.headers.get("Location")
            else:
                answer = await client.get(location)
                statuses[answer.status_code] += 1
                answer = await client.put(location, json={"title": "b"})
            statuses[answer.status_code] += 1

    async def run_clients(base_url: str) -> None:
        async with httpx.AsyncClient(base_url=base_url, timeout=TIMEOUT / 2) as client:
            await asyncio.gather(*(get_and_put(client) for _ in range(8)))

    with (
        in_thread(settings(empty_database_url, db_pool_timeout=TIMEOUT, log_level="critical"), loop) as url,
        ThreadPoolExecutor() as pool,
        closing(psycopg2.connect(empty_database_url)) as other,
        other.cursor() as cursor,
    ):
        other.autocommit = True
        clients = pool.submit(asyncio.run, run_clients(url))
        while not clients.done():
            cursor.execute(terminate)
            time.sleep(0.01)
        clients.result()
    # A request whose retry is terminated too is a 503.
    assert statuses.keys() <= {200, 201, 503}
    assert statuses[200] > statuses[503]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_sequential_requests_use_one_connection(database_url: str, tasks: str, loop: Loop) -> None:
    with (
        proxied(database_url) as proxy,
        in_thread(settings(proxy.url, log_level="error"), loop) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        for _ in range(50):
            assert client.get(tasks).status_code == 200
        assert proxy.opened == 1
