"""Paths: a trailing slash changes nothing, HEAD works wherever GET does, and URLs in headers are canonical."""

from collections.abc import Callable, Iterator
from uuid import UUID

import httpx
import pytest

from backend.tests.errors import assert_error
from backend.tests.serving import in_thread, settings

PAGES = ["/docs", "/redoc", "/redoc.js", "/openapi.json", "/health", "/health/live", "/static/favicon.png"]
SPELLINGS = ["{}", "%7B{}%7D", "urn:uuid:{}"]
# These differ from one request to the next.
VARYING = ("date", "x-request-id")


def headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name not in VARYING}


UNKNOWN_USER = UUID(int=1)


def assert_same(one: httpx.Response, other: httpx.Response) -> None:
    assert (one.status_code, headers(one), one.content) == (other.status_code, headers(other), other.content)


@pytest.fixture
def task(client: httpx.Client, tasks: str) -> str:
    """The path of one of two tasks."""
    client.post(tasks, json={"title": "Buy bread"})
    location: str = client.post(tasks, json={"title": "Buy milk"}).headers["Location"]
    return location


@pytest.mark.parametrize(
    "page", [*PAGES, "/nothing", "/api", "/api/x/tasks", f"/api/{UUID(int=1)}/tasks/{UUID(int=2)}"]
)
def test_a_trailing_slash_changes_nothing(client: httpx.Client, page: str) -> None:
    assert_same(client.get(f"{page}/"), client.get(page))
    assert_same(client.delete(f"{page}/"), client.delete(page))


def test_every_operation_accepts_a_trailing_slash(client: httpx.Client, tasks: str) -> None:
    created = client.post(f"{tasks}/", json={"title": "Buy milk"}, headers={"Idempotency-Key": "k"})
    assert created.status_code == 201
    task = created.headers["Location"]
    assert task == f"{tasks}/{created.json()['id']}"
    assert_same(client.get(f"{task}/"), client.get(task))
    assert client.put(f"{task}/", json={"title": "Buy oat milk"}).json()["title"] == "Buy oat milk"
    assert client.patch(f"{task}/complete/").json()["completed"] is True
    assert_same(client.get(f"{tasks}/?completed=true&total=true"), client.get(f"{tasks}?completed=true&total=true"))
    assert client.delete(f"{task}/").status_code == 204
    assert_error(client.get(f"{task}/"), 404)


@pytest.mark.parametrize("way", ["limit=1", "limit=1&offset=1"])
def test_links_are_the_same_with_a_trailing_slash(client: httpx.Client, tasks: str, task: str, way: str) -> None:
    for _ in range(2):
        client.post(tasks, json={"title": "Buy salt"})
    with_slash, without = client.get(f"{tasks}/?{way}"), client.get(f"{tasks}?{way}")
    assert_same(with_slash, without)
    assert all(link["url"].startswith(f"{tasks}?") for link in with_slash.links.values())
    assert with_slash.links


@pytest.mark.parametrize("path", ["//docs", "/docs//", "/health//", "/api//"])
def test_a_second_slash_is_another_path(client: httpx.Client, path: str) -> None:
    # A client would read "//docs" as a host.
    assert_error(client.get(httpx.URL(client.base_url).copy_with(raw_path=path.encode())), 404)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_locations_and_links_spell_ids_canonically(
    client: httpx.Client, user: str, spelling: str, case: Callable[[str], str]
) -> None:
    path = f"/api/{spelling.format(case(user))}/tasks"
    created = client.post(path, json={"title": "Buy milk"})
    assert created.headers["Location"] == f"/api/{user}/tasks/{created.json()['id']}"
    assert client.get(created.headers["Location"]).json() == created.json()
    client.post(path, json={"title": "Buy bread"})
    for way in ("", "&offset=0"):
        for link in client.get(f"{path}?limit=1{way}").links.values():
            assert link["url"].startswith(f"/api/{user}/tasks?limit=1&")


@pytest.mark.parametrize("page", ["/", *PAGES])
def test_head_is_answered_like_get_without_the_body(client: httpx.Client, page: str) -> None:
    with_body = client.get(page)
    head = client.head(page)
    assert (head.status_code, headers(head)) == (with_body.status_code, headers(with_body))
    assert head.content == b""


@pytest.mark.parametrize("query", ["", "?limit=1", "?limit=1&offset=1&total=true", "?limit=0"])
def test_head_of_a_list_has_the_headers_of_its_pages(client: httpx.Client, tasks: str, task: str, query: str) -> None:
    with_body, head = client.get(tasks + query), client.head(tasks + query)
    assert (head.status_code, headers(head)) == (with_body.status_code, headers(with_body))
    assert head.content == b""


def test_head_of_a_task_has_its_etag(client: httpx.Client, task: str) -> None:
    with_body = client.get(task)
    for path in (task, f"{task}/"):
        head = client.head(path)
        assert (head.status_code, headers(head)) == (200, headers(with_body))
        assert head.content == b""
        assert client.head(path, headers={"If-None-Match": head.headers["ETag"]}).status_code == 304
    for missing, status in ((f"{task[:-12]}{'0' * 12}", 404), (f"{task}/complete", 405), (f"{task}x", 422)):
        refused = client.head(missing)
        assert (refused.status_code, refused.content) == (status, b"")
        assert int(refused.headers["Content-Length"]) > 0


def test_a_connection_can_be_reused_after_head(client: httpx.Client, task: str) -> None:
    with httpx.Client(base_url=client.base_url, limits=httpx.Limits(max_connections=1)) as one:
        for path in (task, "/docs", "/nothing", "/static/favicon.png"):
            one.head(path)
            assert one.get(task).json()["title"] == "Buy milk"


@pytest.fixture(scope="module")
def prefixed(database_url: str) -> Iterator[httpx.Client]:
    """A client of a service behind a proxy that removes the prefix /v1."""
    with in_thread(settings(database_url), root_path="/v1") as url, httpx.Client(base_url=url) as client:
        yield client


def test_behind_a_prefix_a_trailing_slash_changes_nothing(prefixed: httpx.Client) -> None:
    assert prefixed.get("/").headers["Location"] == "docs"
    for page in PAGES:
        assert_same(prefixed.get(f"{page}/"), prefixed.get(page))
        assert prefixed.head(f"{page}/").status_code == 200
    assert prefixed.post("/health/").headers["Allow"] == "GET, HEAD"


def test_behind_a_prefix_locations_and_links_contain_it(prefixed: httpx.Client, tasks: str) -> None:
    for _ in range(2):
        created = prefixed.post(f"{tasks}/", json={"title": "Buy milk"})
        assert created.headers["Location"] == f"/v1{tasks}/{created.json()['id']}"
    following = prefixed.get(f"{tasks}/?limit=1").links["next"]["url"]
    assert following.startswith(f"/v1{tasks}?limit=1&cursor=")
    assert len(prefixed.get(following.removeprefix("/v1")).json()) == 1
