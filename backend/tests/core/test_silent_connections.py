"""Connections that a load balancer or a firewall has dropped silently, while new ones work."""

import asyncio
import sys
import time
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from backend.core.errors import MAYBE_WRITTEN, NOT_WRITTEN
from backend.tests.concurrency import Call, concurrent_client, send_concurrently, until
from backend.tests.errors import assert_error
from backend.tests.proxy import Proxy, Silence, proxied
from backend.tests.serving import Loop, in_thread, settings

TIMEOUT = 1.0
"""DB_POOL_TIMEOUT in seconds."""
LIMIT = 2 * TIMEOUT + 1
"""Seconds after which the service has recovered, and which no request takes."""
SILENCES = [
    "swallow",
    pytest.param("drop", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's socket filters")),
]


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with proxied(database_url) as proxy:
        yield proxy


def open_connections(proxy: Proxy, base_url: str, count: int) -> None:
    """Let the service open `count` connections and leave them idle."""
    proxy.delay = 0.1
    send_concurrently(base_url, [Call("GET", f"/api/{uuid4()}/tasks") for _ in range(count)])
    proxy.delay = 0
    assert len(proxy.connections) == count


@pytest.mark.parametrize("clients", [1, 12])
@pytest.mark.parametrize("silence", SILENCES)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_silent_connections_are_replaced(proxy: Proxy, silence: Silence, clients: int, loop: Loop) -> None:
    async def get_until_served(client: httpx.AsyncClient) -> tuple[float, float]:
        """The seconds until the first success, and the duration of the longest request."""
        path = f"/api/{uuid4()}/tasks"
        started, longest = time.monotonic(), 0.0
        while True:
            sent = time.monotonic()
            answer = await client.get(path)
            now = time.monotonic()
            longest = max(longest, now - sent)
            if answer.status_code == 200:
                return now - started, longest
            assert_error(answer, 503)
            assert answer.json()["detail"].endswith(f"; {NOT_WRITTEN}.")
            assert now - started < 3 * LIMIT, "not served again"

    async def get_concurrently() -> list[tuple[float, float]]:
        async with concurrent_client(url) as client:
            return await asyncio.gather(*(get_until_served(client) for _ in range(clients)))

    with in_thread(settings(proxy.url, db_pool_size=4, db_pool_timeout=TIMEOUT), loop) as url:
        open_connections(proxy, url, 4)
        silent = proxy.silence(silence)
        seconds = asyncio.run(get_concurrently())
        assert max(recovery for recovery, _ in seconds) < LIMIT
        assert max(longest for _, longest in seconds) < LIMIT
        if silence == "swallow":
            # Unused connections may be kept until their next use.
            until(lambda: len(silent - proxy.connections) >= 1)


@pytest.mark.parametrize("silence", SILENCES)
def test_writes_on_silent_connections_are_reported_truthfully(proxy: Proxy, tasks: str, silence: Silence) -> None:
    with (
        in_thread(settings(proxy.url, db_pool_size=2, db_pool_timeout=TIMEOUT)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        location = client.post(tasks, json={"title": "old"}).headers["Location"]
        open_connections(proxy, url, 2)
        proxy.silence(silence)
        calls = [Call("PATCH", f"{location}/complete"), *[Call("POST", tasks, {"title": "new"})] * 7]
        answers = send_concurrently(url, calls)
        until(lambda: client.get("/health").status_code == 200, LIMIT)
        toggle, *creations = answers
        outcomes = {NOT_WRITTEN: (0, 0), MAYBE_WRITTEN: (0, 1)}

        def bounds(answer: httpx.Response) -> tuple[int, int]:
            if answer.status_code < 300:
                return 1, 1
            assert_error(answer, 503)
            return outcomes[answer.json()["detail"].split("; ")[1].removesuffix(".")]

        low, high = bounds(toggle)
        assert low <= client.get(location).json()["completed"] <= high
        created = sum(task["title"] == "new" for task in client.get(tasks).json())
        assert sum(bounds(it)[0] for it in creations) <= created <= sum(bounds(it)[1] for it in creations)


def test_a_silent_connection_releases_its_slot(proxy: Proxy, tasks: str) -> None:
    with (
        in_thread(settings(proxy.url, db_pool_size=1, db_pool_timeout=TIMEOUT)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        assert client.get(tasks).status_code == 200
        proxy.freeze()
        for _ in range(3):
            started = time.monotonic()
            assert_error(client.get(tasks), 503)
            assert time.monotonic() - started < LIMIT
        # The delayed messages are lost too.
        proxy.silence("swallow")
        proxy.thaw()
        until(lambda: client.get(tasks).status_code == 200, LIMIT)
