"""DATABASE_URL may name several hosts, and a name may have several addresses: the first that answers is used."""

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

import httpx
import pytest

from backend.core.errors import NOT_WRITTEN
from backend.tests.concurrency import concurrent_client
from backend.tests.errors import assert_error
from backend.tests.proxy import Proxy, Silence, proxied, silent_host
from backend.tests.serving import Loop, free_port, in_thread, settings

TIMEOUT = 2.0
"""DB_POOL_TIMEOUT in seconds."""
SILENCES = [
    "swallow",
    pytest.param("drop", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's socket filters")),
]


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with proxied(database_url) as proxy:
        yield proxy


def with_hosts(proxy: Proxy, *hosts: tuple[str, int]) -> str:
    """The URL of `proxy` with these names and ports instead of its own."""
    names, ports = zip(*hosts, strict=True)
    # Empty values are left out: an empty `hostaddr` counts as an address.
    given = dict(parse_qsl(urlsplit(proxy.url).query))
    return f"postgresql:///?{urlencode({**given, 'host': ','.join(names), 'port': ','.join(map(str, ports))})}"


class Resolver:
    """Resolves `names`; a name without addresses gets no answer before `stop`.

    asyncio looks names up by `socket.getaddrinfo` in a thread; uvloop has its own resolver.
    """

    def __init__(self, patch: pytest.MonkeyPatch, **names: list[str]) -> None:
        self.lookups = threading.Semaphore(0)
        """Counts the lookups without an answer."""
        self._names = {name.replace("_", "."): addresses for name, addresses in names.items()}
        self._stopped = threading.Event()
        self._original = socket.getaddrinfo
        patch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def stop(self) -> None:
        """Let all lookups end."""
        self._stopped.set()

    def _getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        addresses = self._names.get(host, [host])
        if not addresses:
            self.lookups.release()
            self._stopped.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [info for address in addresses for info in self._original(address, port, *args, **kwargs)]


@pytest.mark.parametrize("silence", SILENCES)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_after_a_silent_host_the_next_is_tried(proxy: Proxy, tasks: str, silence: Silence, loop: Loop) -> None:
    with silent_host("127.0.0.1", silence) as silent_port:
        url = with_hosts(proxy, ("127.0.0.1", silent_port), ("127.0.0.1", proxy.port))
        with in_thread(settings(url, db_pool_timeout=TIMEOUT), loop) as base_url, httpx.Client(timeout=30) as client:
            assert client.get(f"{base_url}{tasks}").status_code == 200
            assert client.post(f"{base_url}{tasks}", json={"title": "a"}).status_code == 201


@pytest.mark.parametrize("silence", SILENCES)
def test_overlapping_requests_skip_a_silent_host(proxy: Proxy, silence: Silence) -> None:
    async def get_overlapping(base_url: str) -> list[int]:
        async with concurrent_client(base_url) as client:

            async def get(delay: float) -> int:
                # Each begins while the previous one is still trying the first host.
                await asyncio.sleep(delay)
                return (await client.get(f"/api/{uuid4()}/tasks")).status_code

            return await asyncio.gather(*(get(i * TIMEOUT / 10) for i in range(8)))

    with silent_host("127.0.0.1", silence) as silent_port:
        url = with_hosts(proxy, ("127.0.0.1", silent_port), ("127.0.0.1", proxy.port))
        with in_thread(settings(url, db_pool_timeout=TIMEOUT)) as base_url:
            assert asyncio.run(get_overlapping(base_url)) == [200] * 8


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_after_a_host_that_refuses_connections_the_next_is_tried(proxy: Proxy, tasks: str, loop: Loop) -> None:
    url = with_hosts(proxy, ("127.0.0.1", free_port()), ("127.0.0.1", proxy.port))
    with in_thread(settings(url, db_pool_timeout=TIMEOUT), loop) as base_url:
        assert httpx.get(f"{base_url}{tasks}", timeout=30).status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
@pytest.mark.parametrize("silence", ["swallow", "drop"])
def test_after_a_silent_address_of_a_name_the_next_is_tried(
    proxy: Proxy, tasks: str, silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    Resolver(monkeypatch, database_test=["127.0.0.2", "127.0.0.1"])
    with silent_host("127.0.0.2", silence, proxy.port):
        url = with_hosts(proxy, ("database.test", proxy.port))
        with in_thread(settings(url, db_pool_timeout=TIMEOUT), "asyncio") as base_url:
            assert httpx.get(f"{base_url}{tasks}", timeout=30).status_code == 200


@pytest.mark.parametrize("silence", SILENCES)
def test_silent_hosts_fail_within_the_timeout(proxy: Proxy, tasks: str, silence: Silence) -> None:
    with silent_host("127.0.0.1", silence) as first, silent_host("127.0.0.1", silence) as second:
        url = with_hosts(proxy, ("127.0.0.1", first), ("127.0.0.1", second))
        with in_thread(settings(url, db_pool_timeout=1)) as base_url:
            started = time.monotonic()
            answer = httpx.post(f"{base_url}{tasks}", json={"title": "a"}, timeout=30)
            assert time.monotonic() - started < 2
            assert_error(answer, 503)
            assert answer.json()["detail"].endswith(f"; {NOT_WRITTEN}.")


@pytest.mark.parametrize("names", [["silent.test"], ["silent.test", "other.test"]])
def test_a_silent_name_server_delays_only_requests_to_the_database(
    proxy: Proxy, tasks: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(monkeypatch, silent_test=[], other_test=[])
    url = with_hosts(proxy, *((name, proxy.port) for name in names))
    with in_thread(settings(url, db_pool_timeout=1), "asyncio") as base_url, ThreadPoolExecutor() as pool:
        try:
            waiting = pool.submit(httpx.get, f"{base_url}{tasks}", timeout=30)
            assert resolver.lookups.acquire(timeout=10)
            assert httpx.get(f"{base_url}/health/live", timeout=10).status_code == 200
            assert_error(waiting.result(), 503)
            assert waiting.result().json()["detail"].endswith(f"; {NOT_WRITTEN}.")
        finally:
            resolver.stop()
