"""Connections that break while idle are nobody's business; those that break at work are repeated where that is safe."""

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

from backend.core import connection, schema
from backend.core.db import Session, Statement
from backend.core.errors import MAYBE_WRITTEN, NOT_WRITTEN
from backend.core.pool import Pool
from backend.tests.concurrency import Call, at_once, until
from backend.tests.database import execute
from backend.tests.errors import assert_error
from backend.tests.proxy import Cut, Goodbye, Proxy, proxied
from backend.tests.serving import in_thread, settings

CUTS: tuple[Cut, ...] = get_args(Cut)
GOODBYES: tuple[Goodbye, ...] = get_args(Goodbye)


@dataclass
class Operation:
    """A request on a task, its status, and what may be done where it is not known if it was carried out."""

    name: str
    method: str
    path: str
    status: int
    kind: Literal["read", "repeatable", "once"]
    json: dict[str, object] | None = None
    headers: dict[str, str] = field(default_factory=dict)


MATCH = {"If-Match": "{etag}"}
OPERATIONS = [
    Operation("list", "GET", "{tasks}", 200, "read"),
    Operation("get", "GET", "{task}", 200, "read"),
    Operation("health", "GET", "/health", 200, "read"),
    Operation("put of nothing, If-Match", "PUT", "{task}", 200, "read", {}, MATCH),
    Operation("create", "POST", "{tasks}", 201, "repeatable", {"title": "new"}),
    Operation("create, key", "POST", "{tasks}", 201, "repeatable", {"title": "new"}, {"Idempotency-Key": "k"}),
    Operation("put", "PUT", "{task}", 200, "repeatable", {"title": "new"}),
    Operation("set", "PATCH", "{task}/complete", 200, "repeatable", {"completed": True}),
    Operation("toggle", "PATCH", "{task}/complete", 200, "once"),
    Operation("delete", "DELETE", "{task}", 204, "once"),
    Operation("put, If-Match", "PUT", "{task}", 200, "once", {"title": "new"}, MATCH),
    Operation("set, If-Match", "PATCH", "{task}/complete", 200, "once", {"completed": True}, MATCH),
    Operation("toggle, If-Match", "PATCH", "{task}/complete", 200, "once", None, MATCH),
    Operation("delete, If-Match", "DELETE", "{task}", 204, "once", None, MATCH),
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
    """An operation on a task of its own."""

    def __init__(self, client: httpx.Client, tasks: str, operation: Operation) -> None:
        self._client = client
        self._tasks = tasks
        self._operation = operation
        self._task = client.post(tasks, json={"title": "old"})
        self.location = self._task.headers["Location"]

    def send(self) -> httpx.Response:
        operation = self._operation
        known = {"tasks": self._tasks, "task": self.location, "etag": self._task.headers["ETag"]}
        headers = {name: value.format(**known) for name, value in operation.headers.items()}
        path = operation.path.format(**known)
        return self._client.request(operation.method, path, json=operation.json, headers=headers)

    def times_written(self) -> int:
        """How often the operation was carried out; a creation that was repeated counts once for each task."""
        if self._operation.method == "POST":
            return sum(task["title"] == "new" for task in self._client.get(self._tasks).json())
        now = self._client.get(self.location)
        if now.status_code == 404:
            return 1
        return int(now.headers["ETag"].strip('"')) - int(self._task.headers["ETag"].strip('"'))


@pytest.mark.parametrize("goodbye", GOODBYES)
@each_operation
def test_nobody_sees_that_idle_connections_were_closed(
    client: httpx.Client, proxy: Proxy, tasks: str, operation: Operation, goodbye: Goodbye
) -> None:
    case = Case(client, tasks, operation)
    with proxy.recording() as sent:
        assert proxy.cut_idle(goodbye) == 1
        assert case.send().status_code == operation.status
    assert len(sent) == 1, sent
    assert case.times_written() == (operation.kind != "read")


def test_nobody_sees_that_many_idle_connections_were_closed(client: httpx.Client, proxy: Proxy, tasks: str) -> None:
    location = client.post(tasks, json={"title": "a"}).headers["Location"]
    proxy.delay = 0.02
    at_once(str(client.base_url), [Call("GET", tasks)] * 20)
    proxy.delay = 0
    assert proxy.cut_idle("FIN") > 1
    flips = at_once(str(client.base_url), [Call("PATCH", f"{location}/complete")] * 20)
    assert [flip.status_code for flip in flips] == [200] * 20
    # Down to one connection again, which is what the other tests begin with.
    proxy.cut_idle("FIN")


@pytest.mark.parametrize("cut", CUTS)
@each_operation
def test_a_statement_whose_connection_breaks_is_repeated_where_that_is_safe(
    client: httpx.Client, proxy: Proxy, tasks: str, operation: Operation, cut: Cut
) -> None:
    case = Case(client, tasks, operation)
    proxy.faults = [cut]
    answer = case.send()
    assert proxy.faults == []
    if operation.kind == "once":
        assert_error(answer, 503)
        assert answer.headers["Retry-After"] == "1"
        assert answer.json()["detail"].endswith(f"; {MAYBE_WRITTEN}.")
        assert case.times_written() == (cut != "before the statement")
    else:
        assert answer.status_code == operation.status
        if operation.method == "POST":
            assert case.times_written() == 1
        elif operation.kind == "repeatable":
            task = client.get(case.location).json()
            assert task == task | (operation.json or {})


@each_operation
def test_a_statement_is_repeated_once_and_then_the_client_is_told(
    client: httpx.Client, proxy: Proxy, tasks: str, operation: Operation
) -> None:
    case = Case(client, tasks, operation)
    proxy.faults = ["before the answer", "before the answer"]
    answer = case.send()
    assert_error(answer, 503)
    assert answer.json()["detail"].endswith(f"; {NOT_WRITTEN if operation.kind == 'read' else MAYBE_WRITTEN}.")
    assert len(proxy.faults) == (operation.kind == "once")
    proxy.faults = []
    assert (
        case.times_written()
        == {"read": 0, "once": 1, "repeatable": 1 if operation.method == "POST" else 2}[operation.kind]
    )


@each_operation
def test_a_database_that_is_away_has_written_nothing(
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


@pytest.mark.parametrize(("json", "status"), [({"completed": True}, 200), (None, 503)])
def test_what_an_operator_ends_is_repeated_or_in_doubt(
    client: httpx.Client, database_url: str, tasks: str, json: object, status: int
) -> None:
    created = client.post(tasks, json={"title": "a"})
    task_id, location = created.json()["id"], created.headers["Location"]
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
    with ThreadPoolExecutor() as pool, closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (task_id,))
        toggled = pool.submit(client.request, "PATCH", f"{location}/complete", json=json)
        until(lambda: execute(database_url, waiting, (f"%{task_id}%",)))
        execute(database_url, f"SELECT pg_terminate_backend(pid, 10000) FROM ({waiting}) AS it", (f"%{task_id}%",))
        other.rollback()
    assert toggled.result().status_code == status
    assert client.get(location).json()["completed"] == (status == 200)


def test_a_farewell_at_work_is_a_connection_that_breaks(client: httpx.Client, proxy: Proxy, tasks: str) -> None:
    location = client.post(tasks, json={"title": "a"}).headers["Location"]
    proxy.faults = ["farewell"]
    assert client.get(location).status_code == 200
    proxy.faults = ["farewell"]
    flipped = client.patch(f"{location}/complete")
    assert_error(flipped, 503)
    assert flipped.json()["detail"].endswith(f"; {MAYBE_WRITTEN}.")


def test_what_a_repetition_meets_does_not_hide_that_the_first_try_is_in_doubt(
    empty_database_url: str, tasks: str
) -> None:
    schema.upgrade(empty_database_url)
    waiting = """SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"""
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
        cursor.execute("ALTER TABLE tasks RENAME TO elsewhere")
        other.commit()
        assert_error(created.result(), 503)
        assert created.result().json()["detail"].endswith(f"; {MAYBE_WRITTEN}.")


def test_connections_are_replaced_before_the_database_may_close_them(
    client: httpx.Client, proxy: Proxy, tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get(tasks).status_code == 200
    before = set(proxy.connections)
    assert client.get(tasks).status_code == 200
    assert proxy.connections == before
    monkeypatch.setattr(connection, "MAX_IDLE", -1)
    assert client.get(tasks).status_code == 200
    until(lambda: len(proxy.connections) == 1)
    assert not proxy.connections & before


def test_few_connections_are_kept_busy_and_the_others_may_sleep(client: httpx.Client, proxy: Proxy, tasks: str) -> None:
    proxy.delay = 0.02
    at_once(str(client.base_url), [Call("GET", tasks)] * 20)
    proxy.delay = 0
    before = {each: each.asked for each in proxy.connections}
    assert len(before) > 1
    for _ in range(10):
        assert client.get(tasks).status_code == 200
    assert [each.asked - asked for each, asked in before.items() if each.asked > asked] == [10]
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
