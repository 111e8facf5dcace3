"""Start, end and failures: an unreachable database, a missing schema, load, a dead worker, an unwritable log."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from psycopg2.extensions import parse_dsn

from backend.core import schema
from backend.core.errors import NOT_WRITTEN
from backend.tests.concurrency import Call, concurrent_client, send_concurrently, until
from backend.tests.database import execute
from backend.tests.errors import assert_error
from backend.tests.process_checks import members
from backend.tests.proxy import Proxy, proxied
from backend.tests.raw_http import Raw, request
from backend.tests.serving import Service, as_process, in_thread, settings
from backend.tests.test_processes import assert_clean_exit, use

PYTHON_M = (sys.executable, "-m", "backend")
UVICORN = (sys.executable, "-m", "uvicorn", "backend.main:app", "--port", "{port}")
UVICORN_PATIENT = (sys.executable, "-m", "uvicorn", "patient:app", "--port", "{port}")
CLIENTS = 8


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with proxied(database_url) as proxy:
        yield proxy


def operations(tasks: str) -> list[Call]:
    """All requests that need the database."""
    one = f"{tasks}/{uuid4()}"
    return [
        Call("GET", "/health"),
        Call("GET", tasks),
        Call("POST", tasks, {"title": "a"}),
        Call("GET", one),
        Call("PUT", one, {"title": "a"}),
        Call("PATCH", f"{one}/complete"),
        Call("DELETE", one),
    ]


def assert_works(base_url: str, tasks: str) -> None:
    health, listed, created, *others = send_concurrently(base_url, operations(tasks))
    assert [health.status_code, listed.status_code, created.status_code] == [200, 200, 201]
    assert [other.status_code for other in others] == [404] * 4


def test_a_missing_schema_is_reported_with_the_command_that_creates_it(empty_database_url: str, tasks: str) -> None:
    with in_thread(settings(empty_database_url)) as url:
        for answer in send_concurrently(url, operations(tasks)):
            assert_error(answer, 503)
            assert "`alembic upgrade head`" in answer.json()["detail"]
        schema.upgrade(empty_database_url)
        assert_works(url, tasks)
        execute(empty_database_url, "UPDATE alembic_version SET version_num = 'older'")
        outdated = httpx.get(f"{url}/health")
        assert_error(outdated, 503)
        assert "`alembic upgrade head`" in outdated.json()["detail"]


@pytest.mark.parametrize(
    ("command", "workers", "stays_silent"),
    [
        pytest.param(PYTHON_M, 1, False, id="python -m backend"),
        pytest.param(PYTHON_M, 1, True, id="python -m backend, silent database"),
        pytest.param((*UVICORN, "--workers", "2"), 2, False, id="uvicorn --workers 2"),
        pytest.param(UVICORN, 1, True, id="uvicorn, silent database"),
    ],
)
def test_the_service_starts_without_the_database_and_answers_requests_in_flight_during_shutdown(
    proxy: Proxy, tmp_path: Path, tasks: str, command: tuple[str, ...], workers: int, stays_silent: bool
) -> None:
    env = {"DATABASE_URL": proxy.url, "DB_POOL_TIMEOUT": "1" if stays_silent else "9"}
    proxy.refuse()
    with as_process(tmp_path, *command, env=env) as service, ThreadPoolExecutor() as pool:
        until(lambda: service.log.count("Application startup complete") == workers)
        live, *answers = send_concurrently(service.base_url, [Call("GET", "/health/live"), *operations(tasks)])
        assert live.status_code == 200
        for answer in answers:
            assert_error(answer, 503)
            assert answer.headers["Retry-After"] == "1"
            assert answer.json()["detail"].endswith(f"; {NOT_WRITTEN}.")
        proxy.accept()
        assert_works(service.base_url, tasks)

        proxy.freeze()
        # One user may not use all connections.
        creations = [Call("POST", f"/api/{uuid4()}/tasks", {"title": "a"}) for _ in range(CLIENTS)]
        created = pool.submit(send_concurrently, service.base_url, creations)
        for _ in range(CLIENTS):
            assert proxy.held.acquire(timeout=30)
        service.process.send_signal(signal.SIGTERM)
        until(lambda: service.log.count("Shutting down") == workers)
        if not stays_silent:
            proxy.thaw()
        assert [answer.status_code for answer in created.result()] == [503 if stays_silent else 201] * CLIENTS
        service.process.wait(30)
        assert "Traceback" not in service.log


def workers_of(service: Service) -> set[int]:
    """The worker processes."""
    return {pid for pid in members(service.process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}


async def kill_a_worker(service: Service, tasks: str) -> tuple[Counter[int], int]:
    """Kill a worker while clients create tasks, with retries; returns the statuses and the number of lost requests."""
    statuses: Counter[int] = Counter()
    lost = 0
    stop, go_on = asyncio.Event(), asyncio.Event()
    go_on.set()

    async def create(client: httpx.AsyncClient) -> None:
        nonlocal lost
        while not stop.is_set():
            await go_on.wait()
            key = {"Idempotency-Key": str(uuid4())}
            status = None
            while status is None:
                try:
                    status = (await client.post(tasks, json={"title": "a"}, headers=key)).status_code
                except httpx.TransportError:
                    lost += 1
            statuses[status] += 1

    async with concurrent_client(service.base_url) as client, asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(create(client))
        await asyncio.to_thread(until, lambda: statuses.total() > 5 * CLIENTS)
        before = workers_of(service)
        os.kill(min(before), signal.SIGKILL)
        served = statuses.total()
        await asyncio.to_thread(until, lambda: statuses.total() > served + 2 * CLIENTS)
        # Otherwise they use the CPU time that the new worker needs to start.
        go_on.clear()
        await asyncio.to_thread(until, lambda: service.log.count("Application startup complete") == 3)
        assert len(workers_of(service) - before) == 1
        go_on.set()
        served = statuses.total()
        await asyncio.to_thread(until, lambda: statuses.total() > served + 5 * CLIENTS)
        stop.set()
    return statuses, lost


def create_until_the_end(service: Service, tasks: str) -> int:
    """Terminate the service while clients create tasks; returns the number of requests, which were all answered."""
    counts = {"answered": 0, "never accepted": 0, "unanswered": 0}

    def create() -> None:
        data = request("POST", tasks, "", b'{"title": "a"}')
        with suppress(ConnectionRefusedError):
            while True:
                with closing(Raw(service.base_url)) as raw:
                    for i in range(1000):
                        try:
                            answer = raw.send(data).response()
                        except OSError:
                            counts["unanswered" if i else "never accepted"] += 1
                            break
                        assert answer.status_code == 201
                        counts["answered"] += 1
                        if answer.headers.get("Connection") == "close":
                            break

    with ThreadPoolExecutor(16) as pool:
        creating = [pool.submit(create) for _ in range(16)]
        until(lambda: counts["answered"] > 200)
        service.process.send_signal(signal.SIGTERM)
        for each in creating:
            each.result()
    assert service.process.wait(30) == 0
    print(f"\n{counts}")
    assert counts["unanswered"] == 0
    return counts["answered"]


def number_of(client: httpx.Client, tasks: str) -> int:
    return int(client.get(tasks, params={"total": "true", "limit": 1}).headers["X-Total-Count"])


def test_shutdown_under_load_answers_every_request(
    patient: dict[str, str], client: httpx.Client, tmp_path: Path, tasks: str
) -> None:
    with as_process(tmp_path, *UVICORN_PATIENT, env=patient) as service:
        answered = create_until_the_end(service, tasks)
        assert "Traceback" not in service.log
    assert number_of(client, tasks) == answered


def test_of_two_workers_a_dead_one_is_replaced_the_shutdown_answers_every_request_and_all_lines_are_json(
    patient: dict[str, str], client: httpx.Client, tmp_path: Path, tasks: str
) -> None:
    env = {**patient, "ENVIRONMENT": "production", "AUTH_DISABLED": "true"}
    options = ("--workers", "2", "--log-config", "backend/log_config.json")
    with as_process(tmp_path, *UVICORN_PATIENT, *options, env=env) as service:
        until(lambda: service.log.count("Application startup complete") == 2)
        use(service)
        statuses, lost = asyncio.run(kill_a_worker(service, tasks))
        print(f"\n{statuses.total()} creations, {lost} of {CLIENTS} clients cut off")
        assert list(statuses) == [201]
        # Only the clients of this worker are disconnected.
        assert lost <= CLIENTS
        assert number_of(client, tasks) == statuses.total()
        others = f"/api/{uuid4()}/tasks"
        answered = create_until_the_end(service, others)
        assert number_of(client, others) == answered
    assert_clean_exit(service)
    messages = [json.loads(line)["message"] for line in service.log.splitlines()]
    for expected, times in (("Started server process", 3), ("Shutting down", 2), ("Finished server process", 2)):
        assert sum(expected in message for message in messages) == times
    assert any("Uvicorn running on" in message for message in messages)


@contextmanager
def broken_stderr(kind: str) -> Iterator[tuple[int, int]]:
    """Descriptors: one that reads what is written to the other, which cannot be written to."""
    reading, writing = os.pipe()
    if kind == "full disk":
        os.dup2(os.open("/dev/full", os.O_WRONLY), writing)
    elif kind == "closed pipe":
        os.dup2(os.open(os.devnull, os.O_RDONLY), reading)
    else:
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        os.set_blocking(writing, kind == "full pipe")
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("kind", ["full disk", "closed pipe", "full pipe"])
@pytest.mark.parametrize("command", [PYTHON_M, UVICORN], ids=["python -m backend", "uvicorn"])
def test_an_unwritable_log_fails_no_request_and_does_not_delay_the_exit(
    database_url: str, tmp_path: Path, tasks: str, command: tuple[str, ...], kind: str
) -> None:
    with (
        broken_stderr(kind) as (_, writing),
        as_process(tmp_path, *command, env={"DATABASE_URL": database_url}, stderr=writing) as service,
    ):
        with httpx.Client(base_url=service.base_url) as client:
            assert [client.post(tasks, json={"title": "a"}).status_code for _ in range(20)] == [201] * 20
        service.stop(signal.SIGTERM, 15)


def test_dropped_log_lines_are_counted(database_url: str, tmp_path: Path, tasks: str) -> None:
    with (
        broken_stderr("full pipe that does not block") as (reading, writing),
        as_process(tmp_path, env={"DATABASE_URL": database_url}, stderr=writing) as service,
    ):
        httpx.get(service.base_url + tasks)
        assert set(os.read(reading, 65536)) == {ord("x")}
        os.set_blocking(reading, False)
        with os.fdopen(os.dup(reading), "rb", buffering=0) as log:
            httpx.get(service.base_url + tasks)
            until(lambda: b"log lines were dropped" in (log.read(65536) or b""))


def test_passwords_are_never_shown_or_logged(proxy: Proxy, tasks: str, caplog: pytest.LogCaptureFixture) -> None:
    password = parse_dsn(proxy.url).get("password", "xyzzy-plugh")
    url = proxy.url if password in proxy.url else f"{proxy.url}&password={password}"
    output = ""
    proxy.refuse()
    with in_thread(settings(url, db_pool_timeout=0.5, log_level="debug")) as base_url:
        schema.upgrade_at_start(url)
        output += "".join(answer.text for answer in send_concurrently(base_url, operations(tasks)))
        proxy.accept()
        assert_works(base_url, tasks)
        proxy.faults = ["in the answer", "before the answer"]
        output += "".join(answer.text for answer in send_concurrently(base_url, operations(tasks)))
        proxy.cut_idle("shutdown")
        proxy.freeze()
        output += "".join(answer.text for answer in send_concurrently(base_url, operations(tasks)))
        proxy.thaw()
    output += caplog.text + str([vars(record) for record in caplog.records])
    assert any(record.levelname == "DEBUG" for record in caplog.records)
    assert "it was not migrated" in output
    assert "cannot be reached" in output
    assert "did not answer in time" in output
    assert password not in output
