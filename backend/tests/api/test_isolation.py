"""In every operation, a task of another user is treated exactly like one that does not exist."""

from typing import NamedTuple
from uuid import uuid4

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from backend.main import create_app
from backend.tests.serving import settings

THIS = "/api/{user_id}/tasks/{task_id}"
ALL = "/api/{user_id}/tasks"


class Attempt(NamedTuple):
    """A request for a task by its id."""

    method: str
    path: str
    body: object = None
    header: tuple[str, str] = ("Accept", "*/*")

    def __str__(self) -> str:
        return " ".join(map(str, (self.method, self.path.removeprefix(ALL), self.body, self.header)))


# `{etag}` is replaced by the ETag of the other user's task.
ATTEMPTS = [
    Attempt("GET", THIS),
    Attempt("GET", THIS, header=("If-None-Match", "*")),
    Attempt("GET", THIS, header=("If-None-Match", "{etag}")),
    Attempt("PUT", THIS, {"title": "mine"}),
    Attempt("PUT", THIS, {}),
    Attempt("PUT", THIS, {"title": "mine"}, ("If-Match", "*")),
    Attempt("PUT", THIS, {"title": "mine"}, ("If-Match", "{etag}")),
    Attempt("PUT", THIS, {"title": "mine"}, ("If-Match", '"0"')),
    Attempt("PUT", THIS, {"title": ""}),
    Attempt("PATCH", f"{THIS}/complete"),
    Attempt("PATCH", f"{THIS}/complete", {"completed": True}),
    Attempt("PATCH", f"{THIS}/complete", {"completed": 1}),
    Attempt("PATCH", f"{THIS}/complete", None, ("If-Match", "{etag}")),
    Attempt("PATCH", f"{THIS}/complete", {"completed": True}, ("If-Match", '"0"')),
    Attempt("DELETE", THIS),
    Attempt("DELETE", THIS, header=("If-Match", "*")),
    Attempt("DELETE", THIS, header=("If-Match", "{etag}")),
    Attempt("DELETE", THIS, header=("If-Match", '"0"')),
]
# These have no task id; the tests at the end of this file cover them.
WITHOUT_TASK = {("GET", ALL), ("POST", ALL)}


@pytest.fixture
def secret(client: httpx.Client) -> httpx.Response:
    """A task of another user, read by that user."""
    created = client.post(f"/api/{uuid4()}/tasks", json={"title": "secret", "description": "secret"})
    assert created.status_code == 201
    return client.get(created.headers["Location"])


@pytest.mark.parametrize("has_tasks", [False, True], ids=["a user without tasks", "a user with tasks"])
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=str)
def test_a_task_of_another_user_cannot_be_distinguished_from_a_missing_one(
    client: httpx.Client, user: str, tasks: str, secret: httpx.Response, attempt: Attempt, has_tasks: bool
) -> None:
    if has_tasks:
        assert client.post(tasks, json={"title": "mine"}).status_code == 201
    before = client.get(tasks).content
    name, value = attempt.header

    def answer(task_id: str) -> tuple[int, bytes, list[tuple[str, str]]]:
        response = client.request(
            attempt.method,
            attempt.path.format(user_id=user, task_id=task_id),
            json=attempt.body,
            headers={name: value.format(etag=secret.headers["ETag"])},
        )
        headers = [(n, v) for n, v in response.headers.multi_items() if n not in ("date", "x-request-id")]
        return response.status_code, response.content, headers

    of_another_user, of_none = answer(secret.json()["id"]), answer(str(uuid4()))
    assert of_another_user == of_none
    assert of_another_user[0] in (404, 422)
    seen = client.get(secret.request.url)
    assert (seen.content, seen.headers["ETag"]) == (secret.content, secret.headers["ETag"])
    assert client.get(tasks).content == before


def test_every_operation_has_an_attempt(database_url: str) -> None:
    tried = {(attempt.method, attempt.path) for attempt in ATTEMPTS} | WITHOUT_TASK
    assert _operations(database_url) == tried


def _operations(database_url: str) -> set[tuple[str, str]]:
    """Method and path of all routes under /api or with a parameter, in the OpenAPI document or not."""
    found = set()
    for route in iter_route_contexts(create_app(settings(database_url)).routes):
        path = route.path or "a route without a path"
        if path.startswith("/api") or "{" in path:
            found |= {(method, path) for method in route.methods or ("anything",)}
    return found


def test_a_list_has_no_tasks_of_other_users(client: httpx.Client, tasks: str, secret: httpx.Response) -> None:
    mine = client.post(tasks, json={"title": "secret mine"}).json()
    before = client.get(tasks)
    others = str(secret.request.url).rsplit("/", 1)[0]
    for _ in range(3):
        assert client.post(others, json={"title": "secret"}).status_code == 201
    for query in ({}, {"search": "secret"}, {"status": "pending"}, {"completed": "false"}, {"offset": "0"}):
        page = client.get(tasks, params={**query, "total": "true"})
        assert page.json() == [mine]
        assert page.headers["X-Total-Count"] == "1"
        assert "next" not in page.links
    assert client.get(tasks).content == before.content


def test_a_cursor_of_another_user_selects_only_own_tasks(
    client: httpx.Client, tasks: str, secret: httpx.Response
) -> None:
    mine = client.post(tasks, json={"title": "mine"}).json()
    others = str(secret.request.url).rsplit("/", 1)[0]
    for _ in range(2):
        assert client.post(others, json={"title": "secret"}).status_code == 201
    following = client.get(others, params={"limit": 1}).links["next"]["url"]
    cursor = httpx.URL(following).params["cursor"]
    assert client.get(tasks, params={"cursor": cursor}).json() == [mine]


def test_ids_in_a_body_give_no_access_to_tasks_of_other_users(
    client: httpx.Client, user: str, tasks: str, secret: httpx.Response
) -> None:
    created = client.post(tasks, json=secret.json() | {"title": "mine"})
    assert created.status_code == 201
    assert created.json()["user_id"] == user
    assert created.json()["id"] != secret.json()["id"]
    changed = client.put(created.headers["Location"], json=secret.json() | {"title": "still mine"})
    assert (changed.json()["user_id"], changed.json()["id"]) == (user, created.json()["id"])
    assert client.get(secret.request.url).content == secret.content


def test_the_same_idempotency_key_of_two_users_creates_two_tasks(client: httpx.Client, tasks: str) -> None:
    key = {"Idempotency-Key": "same"}
    theirs = client.post(f"/api/{uuid4()}/tasks", json={"title": "theirs"}, headers=key)
    mine = client.post(tasks, json={"title": "mine"}, headers=key)
    assert (mine.status_code, mine.json()["title"]) == (201, "mine")
    assert mine.json()["id"] != theirs.json()["id"]
    assert "Idempotency-Replayed" not in mine.headers
    assert set(mine.headers) == set(theirs.headers)
