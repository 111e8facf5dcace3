"""A broken idle connection causes no error; a statement whose connection breaks is retried if that is safe."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, get_args

import httpx
import psycopg2
import pytest
import sqlalchemy as sa
from fastapi import Request

from backend.core import schema
from backend.core.db import Session
from backend.core.errors import MAYBE_WRITTEN, NOT_WRITTEN
from backend.core.pool import Pool
from backend.core.statement import Statement
from backend.tests.concurrency import Call, send_concurrently, until
from backend.tests.database import WAITING, execute
from backend.tests.errors import assert_error
from backend.tests.proxy import Cut, Ending, Proxy, proxied
from backend.tests.serving import in_thread, settings

CUTS: tuple[Cut, ...] = get_args(Cut)
ENDINGS: tuple[Ending, ...] = get_args(Ending)


@dataclass
class Operation:
    """A request on a task, its status on success, and whether it may be retried when its outcome is unknown."""

    name: str
    method: str
    path: str
    status: int
    retry: Literal["read_only", "idempotent", "never"]
    json: dict[str, object] | None = None
    headers: dict[str, str] = field(default_factory=dict)


MATCH = {"If-Match": "{etag}"}
OPERATIONS = [
    Operation("list", "GET", "{tasks}", 200, "read_only"),
    Operation("get", "GET", "{task}", 200, "read_only"),
    Operation("health", "GET", "/health", 200, "read_only"),
    Operation("empty put, If-Match", "PUT", "{task}", 200, "read_only", {}, MATCH),
    Operation("create", "POST", "{tasks}", 201, "idempotent", {"title": "new"}),
    Operation("create, key", "POST", "{tasks}", 201, "idempotent", {"title": "new"}, {"Idempotency-Key": "k"}),
    Operation("put", "PUT", "{task}", 200, "idempotent", {"title": "new"}),
    Operation("set", "PATCH", "{task}/complete", 200, "idempotent", {"completed": True}),
    Operation("toggle", "PATCH", "{task}/complete", 200, "never"),
    Operation("delete", "DELETE", "{task}", 204, "never"),
    Operation("put, If-Match", "PUT", "{task}", 200, "never", {"title": "new"}, MATCH),
    Operation("set, If-Match", "PATCH", "{task}/complete", 200, "never", {"completed": True}, MATCH),
    Operation("toggle, If-Match", "PATCH", "{task}/complete", 200, "never", None, MATCH),
    Operation("delete, If-Match", "DELETE", "{task}", 204, "never", None, MATCH),
]
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


@pytest.fixture(scope="module")
def proxy(database_url: str) -> Iterator[Proxy]:
    with proxied(database_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def client(proxy: Proxy) -> Iterator[httpx.Client]:
    with in_thread(settings(proxy.url)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


class Case:
    """An operation on its own task."""

    def __init__(self, client: httpx.Client, tasks: str, operation: Operation) -> None:
        self._client = client
        self._tasks = tasks
        self._operation = operation
        self._task = client.post(tasks, json={"title": "old"})
        self.location = self._task.headers["Location"]

    def send(self) -> httpx.Response:
        operation = self._operation
        values = {"tasks": self._tasks, "task": self.location, "etag": self._task.headers["ETag"]}
        headers = {name: value.format(**values) for name, value in operation.headers.items()}
        path = operation.path.format(**values)
        return self._client.request(operation.method, path, json=operation.json, headers=headers)

    def times_written(self) -> int:
        """How often the operation was executed; for a creation, the number of tasks it created."""
        if self._operation.method == "POST":
            return sum(task["title"] == "new" for task in self._client.get(self._tasks).json())
        current = self._client.get(self.location)
        if current.status_code == 404:
            return 1
        return int(current.headers["ETag"].strip('"')) - int(self._task.headers["ETag"].strip('"'))


@pytest.mark.parametrize("ending", ENDINGS)
@each_operation
def test_a_closed_idle_connection_is_replaced_without_an_error(
    client: httpx.Client, proxy: Proxy, tasks: str, operation: Operation, ending: Ending
) -> None:
    case = Case(client, tasks, operation)
    with proxy.recording() as sent:
        assert proxy.cut_idle(ending) == 1
        assert case.send().status_code == operation.status
    assert len(sent) == 1, sent
    assert case.times_written() == (operation.retry != "read_only")


def test_many_closed_idle_connections_are_replaced_without_an_error(
    client: httpx.Client, proxy: Proxy, tasks: str
) -> None:
    location = client.post(tasks, json={"title": "a"}).headers["Location"]
    proxy.delay = 0.02
    send_concurrently(str(client.base_url), [Call("GET", tasks)] * 20)
    proxy.delay = 0
    assert proxy.cut_idle("FIN") > 1
    toggles = send_concurrently(str(client.base_url), [Call("PATCH", f"{location}/complete")] * 20)
    assert [toggle.status_code for toggle in toggles] == [200] * 20
    # The other tests expect a single connection.
    proxy.cut_idle("FIN")


@pytest.mark.parametrize("cut", CUTS)
@each_operation
def test_a_statement_whose_connection_breaks_is_retried_if_that_is_safe(
    client: httpx.Client, proxy: Proxy, tasks: str, operation: Operation, cut: Cut
) -> None:
    case = Case(client, tasks, operation)
    proxy.faults = [cut]
    answer = case.send()
    assert proxy.faults == []
    if operation.retry == "never":
        assert_error(answer, 503)
        assert answer.headers["Retry-After"] == "1"
        assert answer.json()["detail"].endswith(f"; {MAYBE_WRITTEN}.")
        assert case.times_written() == (cut != "before the statement")
    else:
        assert answer.status_code == operation.status
        if operation.method == "POST":
            assert case.times_written() == 1
        elif operation.retry == "idempotent":
            task = client.get(case.location).json()
            assert task == task | (operation.json or {})


@each_operation
def test_a_statement_is_retried_only_once(client: httpx.Client, proxy: Proxy, tasks: str, operation: Operation) -> None:
    case = Case(client, tasks, operation)
    proxy.faults = ["before the answer", "before the answer"]
    answer = case.send()
    assert_error(answer, 503)
    assert answer.json()["detail"].endswith(f"; {NOT_WRITTEN if operation.retry == 'read_only' else MAYBE_WRITTEN}.")
    assert len(proxy.faults) == (operation.retry == "never")
    proxy.faults = []
    assert (
        case.times_written()
        == {"read_only": 0, "never": 1, "idempotent": 1 if operation.method == "POST" else 2}[operation.retry]
    )


@each_operation
def test_an_unreachable_database_reports_that_nothing_was_written(
    client: httpx.Client, proxy: Proxy, tasks: str, operation: Operation
) -> None:
    case = Case(client, tasks, operation)
    proxy.refuse()
    try:
        answer = case.send()
    finally:
        proxy.accept()
    assert_error(answer, 503)
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["detail"].endswith(f"; {NOT_WRITTEN}.")
    assert case.times_written() == 0


@each_operation
def test_the_outcome_of_a_statement_is_unknown_when_the_server_reports_a_lost_connection(
    client: httpx.Client, proxy: Proxy, tasks: str, operation: Operation
) -> None:
    case = Case(client, tasks, operation)
    proxy.faults = ["error 08006"]
    answer = case.send()
    assert proxy.faults == []
    if operation.retry == "never" or answer.status_code != operation.status:
        assert_error(answer, 503)
        expected = NOT_WRITTEN if operation.retry == "read_only" else MAYBE_WRITTEN
        assert answer.json()["detail"].endswith(f"; {expected}.")
    if operation.retry == "never" or operation.method == "POST":
        assert case.times_written() == 1


@pytest.mark.parametrize(("json", "status"), [({"completed": True}, 200), (None, 503)])
def test_a_statement_terminated_by_an_operator_is_retried_if_that_is_safe(
    client: httpx.Client, database_url: str, tasks: str, json: object, status: int
) -> None:
    created = client.post(tasks, json={"title": "a"})
    task_id, location = created.json()["id"], created.headers["Location"]
    with ThreadPoolExecutor() as pool, closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (task_id,))
        toggled = pool.submit(client.request, "PATCH", f"{location}/complete", json=json)
        until(lambda: execute(database_url, WAITING, (f"%{task_id}%",)))
        execute(database_url, f"SELECT pg_terminate_backend(pid, 10000) FROM ({WAITING}) AS waiting", (f"%{task_id}%",))
        other.rollback()
    assert toggled.result().status_code == status
    assert client.get(location).json()["completed"] == (status == 200)


def test_a_shutdown_message_instead_of_an_answer_is_a_broken_connection(
    client: httpx.Client, proxy: Proxy, tasks: str
) -> None:
    location = client.post(tasks, json={"title": "a"}).headers["Location"]
    proxy.faults = ["shutdown"]
    assert client.get(location).status_code == 200
    proxy.faults = ["shutdown"]
    toggled = client.patch(f"{location}/complete")
    assert_error(toggled, 503)
    assert toggled.json()["detail"].endswith(f"; {MAYBE_WRITTEN}.")


def test_the_outcome_of_the_first_attempt_stays_unknown_when_the_retry_fails(
    empty_database_url: str, tasks: str
) -> None:
    schema.upgrade(empty_database_url)
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with (
        in_thread(settings(empty_database_url)) as url,
        ThreadPoolExecutor() as pool,
        closing(psycopg2.connect(empty_database_url)) as other,
        other.cursor() as cursor,
    ):
        cursor.execute("LOCK TABLE tasks")
        created = pool.submit(httpx.post, url + tasks, json={"title": "a"}, timeout=30)
        until(lambda: execute(empty_database_url, waiting))
        [(first,)] = execute(empty_database_url, waiting)
        execute(empty_database_url, "SELECT pg_terminate_backend(%s)", (first,))
        until(lambda: execute(empty_database_url, waiting) not in ([], [(first,)]))
        cursor.execute("ALTER TABLE tasks RENAME TO renamed")
        other.commit()
        assert_error(created.result(), 503)
        assert created.result().json()["detail"].endswith(f"; {MAYBE_WRITTEN}.")


def test_the_most_recently_used_connection_is_used_next(client: httpx.Client, proxy: Proxy, tasks: str) -> None:
    proxy.delay = 0.02
    send_concurrently(str(client.base_url), [Call("GET", tasks)] * 20)
    proxy.delay = 0
    before = {each: each.messages for each in proxy.connections}
    assert len(before) > 1
    for _ in range(10):
        assert client.get(tasks).status_code == 200
    assert [each.messages - count for each, count in before.items() if each.messages > count] == [10]
    proxy.cut_idle("FIN")


def test_a_cancelled_statement_closes_its_connection(database_url: str) -> None:
    async def fetch(session: Session, value: str, seconds: float) -> list[str]:
        expression = sa.select(sa.bindparam("value", type_=sa.Text), sa.func.pg_sleep(sa.bindparam("seconds")))
        statement = Statement("test", expression, "read_only", lambda columns, _: str(columns[0]))
        return await session.exec(statement, {"value": value, "seconds": str(seconds)})

    async def cancel() -> None:
        pool = Pool(database_url, 1, 30)
        session = Session(pool, Request({"type": "http"}))
        cancelled = asyncio.create_task(fetch(session, "old", 0.2))
        await asyncio.to_thread(until, lambda: execute(database_url, SLEEPING) != [])
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await fetch(session, "new", 0) == ["new"]
        pool.close()

    asyncio.run(cancel())


SLEEPING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%%old%%'"
