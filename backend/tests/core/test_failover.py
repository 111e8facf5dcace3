"""After a failover, open sessions are read-only, and new connections reach a server that accepts writes."""

from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from backend.core.errors import NOT_WRITTEN
from backend.tests.concurrency import Call, send_concurrently
from backend.tests.errors import assert_error
from backend.tests.proxy import Proxy, proxied
from backend.tests.serving import in_thread, settings


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with proxied(database_url) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "", {"title": "new"}, 201),
        ("PUT", "/{id}", {"title": "new"}, 200),
        ("PATCH", "/{id}/complete", None, 200),
        ("DELETE", "/{id}", None, 204),
    ],
)
def test_read_only_sessions_are_replaced(
    proxy: Proxy, tasks: str, method: str, path: str, body: object, status: int
) -> None:
    with in_thread(settings(proxy.url)) as url, httpx.Client(base_url=url, timeout=30) as client:
        ids = [client.post(tasks, json={"title": "old"}).json()["id"] for _ in range(5)]
        proxy.delay = 0.1
        send_concurrently(url, [Call("GET", f"/api/{uuid4()}/tasks") for _ in range(6)])
        proxy.delay = 0
        assert proxy.make_read_only() == 6
        assert client.get(tasks).status_code == 200
        first, *others = (client.request(method, tasks + path.format(id=task_id), json=body) for task_id in ids)
        if first.status_code != status:
            assert_error(first, 503)
            assert first.json()["detail"].endswith(f"; {NOT_WRITTEN}.")
        assert [other.status_code for other in others] == [status] * 4
