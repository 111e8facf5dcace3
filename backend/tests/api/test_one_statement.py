"""Each request is one statement, counted on the wire between the service and the database."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import uuid4

import httpx
import pytest

from backend.tests.proxy import Proxy, proxied
from backend.tests.serving import in_thread, settings


@pytest.fixture(scope="module")
def proxy(database_url: str) -> Iterator[Proxy]:
    with proxied(database_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def client(proxy: Proxy) -> Iterator[httpx.Client]:
    # With one connection, a late message of a request is sent before the statement of the next request.
    with in_thread(settings(proxy.url, db_pool_size=1)) as url, httpx.Client(base_url=url, timeout=30) as client:
        assert client.get("/health").status_code == 200
        yield client


@dataclass
class Variant:
    """A request for a user's oldest of three tasks, and the expected status."""

    name: str
    method: str
    path: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    json: object = None


ONE = "/{id}"
VARIANTS = [
    Variant("create", "POST", "", 201, {}, {"title": "a", "description": "b", "completed": True}),
    Variant("create of a user's first task", "POST", "/api/{new_user}/tasks", 201, {}, {"title": "a"}),
    Variant("create with a new key", "POST", "", 201, {"Idempotency-Key": "new"}, {"title": "a"}),
    Variant("create with a used key", "POST", "", 201, {"Idempotency-Key": "used"}, {"title": "first task"}),
    Variant("list", "GET"),
    Variant("list of a user without tasks", "GET", "/api/{new_user}/tasks"),
    Variant("list, completed", "GET", "?completed=true"),
    Variant("list, not completed", "GET", "?completed=false"),
    Variant("list, pending", "GET", "?status=pending"),
    Variant("list, search", "GET", "?search=first+task"),
    Variant("list, total", "GET", "?total=true"),
    Variant("list, by offset", "GET", "?limit=1&offset=1"),
    Variant("list, past the end", "GET", "?offset=1000&total=true"),
    Variant("list, by cursor", "GET", "?limit=1&cursor={cursor}"),
    Variant("list, all at once", "GET", "?completed=false&search=a&limit=2&cursor={cursor}&total=true"),
    Variant("get", "GET", ONE),
    Variant("get, If-None-Match of another", "GET", ONE, 200, {"If-None-Match": '"0"'}),
    Variant("get, If-None-Match", "GET", ONE, 304, {"If-None-Match": "{etag}"}),
    Variant("put", "PUT", ONE, 200, {}, {"title": "c", "description": None, "completed": True}),
    Variant("put, If-Match", "PUT", ONE, 200, {"If-Match": "{etag}"}, {"title": "c"}),
    Variant("put of nothing", "PUT", ONE, 200, {}, {}),
    Variant("put of nothing, If-Match", "PUT", ONE, 200, {"If-Match": "{etag}"}, {}),
    Variant("toggle", "PATCH", ONE + "/complete"),
    Variant("toggle, empty object", "PATCH", ONE + "/complete", 200, {}, {}),
    Variant("toggle, If-Match", "PATCH", ONE + "/complete", 200, {"If-Match": "{etag}"}),
    Variant("set", "PATCH", ONE + "/complete", 200, {}, {"completed": True}),
    Variant("set, If-Match", "PATCH", ONE + "/complete", 200, {"If-Match": "{etag}"}, {"completed": True}),
    Variant("delete", "DELETE", ONE, 204),
    Variant("delete, If-Match", "DELETE", ONE, 204, {"If-Match": "{etag}"}),
    *(
        Variant(f"{name}, no such task", method, f"/{{missing}}{path}", 404, {}, json)
        for name, method, path, json in (
            ("get", "GET", "", None),
            ("put", "PUT", "", {"title": "c"}),
            ("put of nothing", "PUT", "", {}),
            ("toggle", "PATCH", "/complete", None),
            ("set", "PATCH", "/complete", {"completed": True}),
            ("delete", "DELETE", "", None),
        )
    ),
    Variant("health", "GET", "/health"),
]


def prepare(client: httpx.Client, tasks: str) -> dict[str, str]:
    """Create the three tasks of a variant's user; returns what the variant's path and headers refer to."""
    task = client.post(tasks, json={"title": "first task"}, headers={"Idempotency-Key": "used"})
    for title in ("second task", "third task"):
        client.post(tasks, json={"title": title})
    return {
        "id": task.json()["id"],
        "etag": task.headers["ETag"],
        "cursor": client.get(tasks, params={"limit": 1}).links["next"]["url"].rpartition("=")[2],
        "new_user": str(uuid4()),
        "missing": str(uuid4()),
    }


def send(client: httpx.Client, tasks: str, variant: Variant, known: dict[str, str]) -> httpx.Response:
    path = variant.path.format(**known)
    headers = {name: value.format(**known) for name, value in variant.headers.items()}
    url = path if path.startswith(("/api", "/health")) else tasks + path
    return client.request(variant.method, url, headers=headers, json=variant.json)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_request_is_one_statement(client: httpx.Client, proxy: Proxy, tasks: str, variant: Variant) -> None:
    known = prepare(client, tasks)
    with proxy.recording() as sent:
        response = send(client, tasks, variant, known)
        client.get("/health")
    assert response.status_code == variant.status
    *of_request, of_health = sent
    assert len(of_request) == 1, of_request
    limit, statement = of_request[0].split("; ")
    assert limit.startswith("SET LOCAL statement_timeout = ")
    assert statement.startswith(("SELECT", "WITH", "INSERT", "UPDATE", "DELETE"))
    assert "alembic_version" in of_health


def test_liveness_does_not_query_the_database(client: httpx.Client, proxy: Proxy) -> None:
    with proxy.recording() as sent:
        assert client.get("/health/live").status_code == 200
        client.get("/health")
    assert len(sent) == 1


def test_every_operation_has_a_variant(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    methods = sorted(method.upper() for path, item in paths.items() for method in item if path != "/health/live")
    tested = {
        (v.method, v.path.partition("?")[0].replace("/api/{new_user}/tasks", "").replace("missing", "id"))
        for v in VARIANTS
    }
    assert sorted(method for method, _ in tested) == methods
