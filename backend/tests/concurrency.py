"""Concurrent requests, and waiting for conditions."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import httpx


class Call(NamedTuple):
    """A request to be sent."""

    method: str
    path: str
    json: object = None
    headers: dict[str, str] | None = None


def concurrent_client(base_url: str) -> httpx.AsyncClient:
    """A client that opens a connection for each concurrent request and times out after a minute."""
    return httpx.AsyncClient(
        base_url=base_url, limits=httpx.Limits(max_connections=None), timeout=60, trust_env=False, verify=False
    )


def send_concurrently(base_url: str, calls: Sequence[Call]) -> list[httpx.Response]:
    """Send all `calls` at the same time, each over its own connection; raises if one gets no response."""

    async def send() -> list[httpx.Response]:
        async with concurrent_client(base_url) as client:
            requests = (client.request(call.method, call.path, json=call.json, headers=call.headers) for call in calls)
            return await asyncio.gather(*requests)

    return asyncio.run(send())


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Poll `condition`, which depends on another process; raises after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met"
        time.sleep(0.01)
