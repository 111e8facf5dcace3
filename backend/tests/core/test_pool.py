"""How connections are checked, kept and closed."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import psycopg2
import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from backend.core.connection import Connection
from backend.core.errors import MAYBE_WRITTEN, NOT_WRITTEN
from backend.core.pool import Pool
from backend.main import create_app
from backend.tests.concurrency import until
from backend.tests.database import execute
from backend.tests.errors import assert_error
from backend.tests.proxy import Ending, Proxy, proxied
from backend.tests.serving import in_thread, settings


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with proxied(database_url) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[httpx.Client]:
    """A client of a service with one connection."""
    with (
        in_thread(settings(proxy.url, db_pool_size=1, db_pool_timeout=0.5)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def test_requests_leave_the_session_unchanged(
    client: httpx.Client, proxy: Proxy, database_url: str, tasks: str
) -> None:
    task = client.post(tasks, json={"title": "a"})
    location = task.headers["Location"]
    [initial] = execute(database_url, "SHOW statement_timeout")[0]

    def session_setting() -> str:
        [answer] = proxy.run_in_sessions("SHOW statement_timeout")
        value: str = answer.partition(b"D")[2][10:].partition(b"C\0")[0].decode()
        return value

    assert session_setting() == initial
    assert client.get(location).status_code == 200
    assert client.get(f"{tasks}/{task.json()['user_id']}").status_code == 404
    assert client.put(location, json={"title": "b"}, headers={"If-Match": '"0"'}).status_code == 412
    assert session_setting() == initial
    with closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (task.json()["id"],))
        assert_error(client.patch(f"{location}/complete"), 503)
    assert client.get(location).status_code == 200
    assert session_setting() == initial


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 201), ("PATCH", 200)])
def test_a_connection_left_in_a_transaction_is_replaced(
    client: httpx.Client, proxy: Proxy, database_url: str, tasks: str, method: str, status: int
) -> None:
    task = client.post(tasks, json={"title": "old"})
    assert len(proxy.run_in_sessions("BEGIN")) == 1
    path, body = {
        "GET": (tasks, None),
        "POST": (tasks, {"title": "new"}),
        "PATCH": (f"{task.headers['Location']}/complete", None),
    }[method]
    answer = client.request(method, path, json=body)
    # Read by another session, which sees only committed changes.
    sql = "SELECT count(*) FILTER (WHERE title = 'new' OR completed) FROM tasks WHERE user_id = %s"
    [(written,)] = execute(database_url, sql, (task.json()["user_id"],))
    if answer.status_code == status:
        assert written == (method != "GET")
    else:
        assert_error(answer, 503)
        outcome = answer.json()["detail"].split("; ")[1].removesuffix(".")
        assert (outcome, written) in [(NOT_WRITTEN, 0), (MAYBE_WRITTEN, 0), (MAYBE_WRITTEN, 1)]
    assert client.post(tasks, json={"title": "next"}).status_code == 201
    sql = "SELECT count(*) FROM tasks WHERE user_id = %s AND title = 'next'"
    assert execute(database_url, sql, (task.json()["user_id"],)) == [(1,)]


def test_only_idle_connections_expire(proxy: Proxy, tasks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    elapsed = 0.0
    monotonic = time.monotonic
    # asyncio's clock is the same function; uvloop has its own clock.
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + elapsed)
    with in_thread(settings(proxy.url), "asyncio") as url:
        for _ in range(10):
            assert httpx.get(url + tasks, timeout=30).status_code == 200
            elapsed += 100
        assert proxy.opened == 1
        assert httpx.get(url + tasks, timeout=30).status_code == 200
        # Neon closes connections that were idle for 300 seconds.
        elapsed += 290
        assert httpx.get(url + tasks, timeout=30).status_code == 200
        assert proxy.opened == 2
        until(lambda: len(proxy.connections) == 1)


@pytest.mark.parametrize("new_event_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_shutdown_closes_connections_that_are_in_use(
    proxy: Proxy, tasks: str, new_event_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def shut_down() -> None:
        app = create_app(settings(proxy.url, db_pool_timeout=10))
        async with app.router.lifespan_context(app) as state:

            async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
                await app({**scope, "state": dict(state or {})}, receive, send)

            client = httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://test")
            assert (await client.get(tasks)).status_code == 200
            proxy.freeze()
            # The first uses the idle connection, the second opens another.
            requests = [asyncio.create_task(client.get(tasks)) for _ in range(2)]
            for _ in requests:
                assert await asyncio.to_thread(proxy.held.acquire, timeout=30)
        proxy.thaw()
        for answer in await asyncio.gather(*requests):
            assert answer.status_code in (200, 503)
        await client.aclose()
        await asyncio.to_thread(until, lambda: not proxy.connections, 5)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(shut_down())


@pytest.mark.parametrize("new_event_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_statement_longer_than_the_sockets_buffer_is_sent(
    database_url: str, new_event_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def execute() -> list[tuple[int]]:
        deadline = asyncio.get_running_loop().time() + 20
        connection = await Pool(database_url, 1, 20).acquire(deadline)
        try:
            async with asyncio.timeout_at(deadline):
                return await connection.execute(b"SELECT length(%(text)s)", {"text": "a" * 1_000_000}, deadline)
        finally:
            connection.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert runner.run(execute()) == [(1_000_000,)]


@pytest.mark.parametrize("cause", [TimeoutError, asyncio.CancelledError])
def test_a_connection_whose_statement_is_given_up_is_closed(database_url: str, cause: type[BaseException]) -> None:
    async def give_up() -> Connection:
        now = asyncio.get_running_loop().time()
        connection = await Pool(database_url, 1, 5).acquire(now + 5)
        deadline = now if cause is TimeoutError else now + 20
        # PostgreSQL does not cancel it, because it does not set statement_timeout.
        statement = asyncio.create_task(connection.execute(b"SELECT pg_sleep(20)", {}, deadline))
        await asyncio.sleep(0)  # it is sent now
        if cause is asyncio.CancelledError:
            statement.cancel()
        with pytest.raises(cause):
            await statement
        return connection

    assert asyncio.run(give_up()).closed


def test_a_statement_without_time_left_is_not_without_a_limit(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.core.connection.ANSWER_GRACE", 10)
    sql = b"SET LOCAL statement_timeout = %(statement_timeout)s; SELECT pg_sleep(20)"

    async def run() -> None:
        now = asyncio.get_running_loop().time()
        connection = await Pool(database_url, 1, 5).acquire(now + 5)
        try:
            await connection.execute(sql, {}, now)
        finally:
            connection.close()

    with pytest.raises(psycopg2.errors.QueryCanceled):
        asyncio.run(run())


@pytest.mark.parametrize("ending", ["FIN", "RST"])
@pytest.mark.parametrize("new_event_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_idle_connection_is_closed_when_the_server_closes_it(
    proxy: Proxy, ending: Ending, new_event_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def cut() -> None:
        pool = Pool(proxy.url, 1, 5)
        connection = await pool.acquire(asyncio.get_running_loop().time() + 5)
        pool.release(connection)
        assert await asyncio.to_thread(proxy.cut_idle, ending) == 1
        # Otherwise the event loop would report it as readable again and again.
        await asyncio.to_thread(until, lambda: connection.closed)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(cut())


def test_a_connection_released_while_another_is_refused_is_not_missed(proxy: Proxy) -> None:
    async def acquire() -> tuple[Connection, Connection]:
        pool = Pool(proxy.url, 2, 5)
        deadline = asyncio.get_running_loop().time() + 5
        first = await pool.acquire(deadline)
        proxy.max_connections = 1
        second = asyncio.create_task(pool.acquire(deadline))
        await asyncio.sleep(0)  # it is connecting now
        pool.release(first)
        try:
            return first, await second
        finally:
            pool.close()
            first.close()

    first, second = asyncio.run(acquire())
    assert second is first


def test_a_waiter_that_times_out_while_it_is_cancelled_keeps_no_slot(database_url: str) -> None:
    async def race() -> None:
        pool = Pool(database_url, 1, 0)
        await pool.acquire_slot("a")
        waiting = asyncio.create_task(pool.acquire_slot("b"))
        await asyncio.sleep(0)
        # The wait times out and this call cancels the task in one iteration of the event loop, before it resumes.
        asyncio.get_running_loop().call_later(0, waiting.cancel)
        with pytest.raises((TimeoutError, asyncio.CancelledError)):
            await waiting
        with pytest.raises(TimeoutError):
            await pool.acquire_slot("b")
        pool.release_slot("a")
        await pool.acquire_slot("b")

    asyncio.run(race())


def test_a_waiter_that_has_its_slot_does_not_time_out(database_url: str) -> None:
    async def race() -> None:
        pool = Pool(database_url, 1, 0)
        await pool.acquire_slot("a")
        waiting = asyncio.create_task(pool.acquire_slot("b"))
        await asyncio.sleep(0)
        # It has the slot now, but resumes only after the timeout.
        pool.release_slot("a")
        await waiting

    asyncio.run(race())


def test_a_slot_given_to_a_waiter_that_is_cancelled_is_passed_on(database_url: str) -> None:
    async def race() -> None:
        pool = Pool(database_url, 1, 5)
        await pool.acquire_slot("a")
        waiting = asyncio.create_task(pool.acquire_slot("b"))
        await asyncio.sleep(0)
        # It has the slot now, but resumes only after the cancellation.
        pool.release_slot("a")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await pool.acquire_slot("c")

    asyncio.run(race())


def test_waiting_users_are_served_in_rotation(database_url: str) -> None:
    async def served() -> list[str]:
        pool = Pool(database_url, 1, 5)
        order: list[str] = []

        async def use(user: str) -> None:
            await pool.acquire_slot(user)
            order.append(user)
            pool.release_slot(user)

        await pool.acquire_slot("a")
        waiting = [asyncio.create_task(use(user)) for user in ("b", "b", "c")]
        await asyncio.sleep(0)
        pool.release_slot("a")
        await asyncio.gather(*waiting)
        return order

    assert asyncio.run(served()) == ["b", "c", "b"]
