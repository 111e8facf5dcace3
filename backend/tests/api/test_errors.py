"""Errors: always JSON in one format, without echoing input."""

import socket
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from backend.core import route, schema
from backend.tests.database import execute
from backend.tests.errors import assert_error
from backend.tests.serving import in_thread, settings

JSON = {"Content-Type": "application/json"}
LARGEST = 64 * 1024
CANARY = "cAnArY"

# Constants, because they are part of test ids, which must not differ between processes.
USER = "/api/3f5e4a2e-6f0a-4f4e-9d8b-5c9a6c1d7e21"
TASKS = f"{USER}/tasks"
TASK = f"{TASKS}/9f0c7a64-1b2d-4f4b-8e57-0d2c9b6a4f10"
COMPLETE = f"{TASK}/complete"
METHODS = {
    TASKS: {"GET", "HEAD", "POST"},
    TASK: {"GET", "HEAD", "PUT", "DELETE"},
    COMPLETE: {"PATCH"},
    **{page: {"GET", "HEAD"} for page in ["/", "/health", "/health/live", "/openapi.json", "/docs", "/redoc"]},
}
with_a_body = pytest.mark.parametrize(("method", "path"), [("POST", TASKS), ("PUT", TASK), ("PATCH", COMPLETE)])


@with_a_body
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"title",
        b"{'title': 'a'}",
        b'{"title": "a",}',
        b'{"title": "a"} {}',
        b'{"title": "a\nb"}',
        b'{"title": NaN}',
        b'{"title": "a", "x": Infinity}',
        b'{"title": "a", "x": [-Infinity]}',
        b'{"title": "caf\xe9"}',
        b'{"title": "\xed\xa0\x80"}',
        '{"title": "a"}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"[" * 50_000,
        b" ",
    ],
)
def test_a_body_that_is_not_json_is_400(client: httpx.Client, method: str, path: str, body: bytes) -> None:
    assert_error(client.request(method, path, content=body, headers=JSON), 400)


@with_a_body
def test_a_body_over_64_kib_is_413(client: httpx.Client, method: str, path: str) -> None:
    valid = b'{"title": "a", "completed": true}'
    # There is no task to update or toggle.
    accepted = 201 if method == "POST" else 404
    assert client.request(method, path, content=valid.ljust(LARGEST), headers=JSON).status_code == accepted
    larger = valid.ljust(LARGEST + 1)
    assert_error(client.request(method, path, content=larger, headers=JSON), 413)
    assert_error(client.request(method, path, content=iter([larger[:9], larger[9:]]), headers=JSON), 413)


def test_an_incomplete_body_is_408_and_closes_the_connection(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "BODY_TIMEOUT", 0.1)
    head = f"POST {TASKS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=30) as connection:
        connection.sendall(head.encode() + b'{"title"')
        with connection.makefile("rb") as answer:
            status, *_ = answer.read().decode().splitlines()
    assert status.startswith("HTTP/1.1 408 ")


@pytest.mark.parametrize("media_type", ["application/x-www-form-urlencoded", "text/plain", None])
def test_a_body_of_another_media_type_is_422_and_names_the_right_one(
    client: httpx.Client, media_type: str | None
) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    refused = client.post(TASKS, content=b'{"title": "Buy milk"}', headers=headers)
    assert_error(refused, 422, "body")
    assert "application/json" in refused.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/api",
        USER,
        f"{TASK}/incomplete",
        f"{COMPLETE}/x",
        "/health/x",
        "/%00",
        "/a//b",
        f"{TASKS}//",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_an_unknown_path_is_404(client: httpx.Client, method: str, path: str) -> None:
    assert_error(client.request(method, path), 404)


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.replace(TASK, "TASK").replace(TASKS, "TASKS"))
def test_an_unsupported_method_is_405_and_lists_the_supported_ones(client: httpx.Client, path: str) -> None:
    for method in {"HEAD", "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - METHODS[path]:
        for spelling in {path, f"{path.rstrip('/')}/"}:
            response = client.request(method, spelling)
            if method == "HEAD":
                assert response.status_code == 405
                assert response.content == b""
            else:
                assert_error(response, 405)
            assert {allowed.strip() for allowed in response.headers["Allow"].split(",")} == METHODS[path], method


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "loc"),
    [
        ("GET", f"/api/{CANARY}/tasks", {}, "", ("path", "user_id")),
        ("GET", f"{TASKS}/{CANARY}", {}, "", ("path", "task_id")),
        *(("GET", f"{TASKS}?{name}={CANARY}", {}, "", ("query", name))
          for name in ("limit", "offset", "cursor", "completed", "status", "total")),
        ("GET", f"{TASKS}?search={CANARY}%00", {}, "", ("query", "search")),
        ("GET", f"{TASKS}?search={CANARY * 50}", {}, "", ("query", "search")),
        ("POST", TASKS, {"Idempotency-Key": CANARY * 50}, '{"title": "a"}', ("header", "Idempotency-Key")),
        ("POST", TASKS, {}, f'"{CANARY}"', ("body",)),
        ("POST", TASKS, {}, f'["{CANARY}"]', ("body",)),
        ("POST", TASKS, {}, f'{{"{CANARY}": "{CANARY}"}}', ("body", "title")),
        ("POST", TASKS, {}, f'{{"title": {{"{CANARY}": 1}}}}', ("body", "title")),
        ("POST", TASKS, {}, f'{{"title": "{CANARY * 50}"}}', ("body", "title")),
        ("POST", TASKS, {}, f'{{"title": "{CANARY}\\u0000"}}', ("body", "title")),
        ("POST", TASKS, {}, f'{{"title": "{CANARY}\\ud800"}}', ("body", "title")),
        ("POST", TASKS, {}, f'{{"title": "a", "description": "{CANARY}\\udfff"}}', ("body", "description")),
        ("PUT", TASK, {}, f'{{"completed": "{CANARY}"}}', ("body", "completed")),
        ("PATCH", COMPLETE, {}, f'{{"completed": ["{CANARY}"]}}', ("body", "completed")),
    ],
)  # fmt: skip
def test_a_422_contains_location_and_reason_but_not_the_value(
    client: httpx.Client, method: str, path: str, headers: dict[str, str], body: str, loc: tuple[str, ...]
) -> None:
    refused = client.request(method, path, headers=JSON | headers, content=body)
    assert_error(refused, 422, *loc)
    assert CANARY.lower() not in refused.text.lower()
    # The beginning of a regular expression.
    assert "^" not in refused.text


def test_a_422_for_an_id_does_not_quote_a_single_letter(client: httpx.Client) -> None:
    refused = {client.get(f"/api/{text}/tasks").text for text in ("x", "y" * 36, str(uuid4())[:-1] + "z", "{" * 38)}
    assert len(refused) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", TASK, 404), ("GET", f"/{CANARY}", 404), ("POST", f"/health?{CANARY}", 405), ("POST", TASKS, 400)],
)
def test_no_error_echoes_input(client: httpx.Client, method: str, path: str, status: int) -> None:
    response = client.request(method, path, content=f'{{"title": {CANARY}', headers=JSON | {"If-Match": CANARY})
    assert_error(response, status)
    assert CANARY not in response.text


def test_the_detail_of_a_422_is_one_sentence_for_all_invalid_values(client: httpx.Client) -> None:
    refused = client.post(TASKS, json={"title": "", "description": 5, "completed": "yes"})
    assert_error(refused, 422)
    assert refused.json()["detail"] == (
        "title: String should have at least 1 character; description: Input should be a valid string; "
        "completed: Input should be a valid boolean"
    )
    assert [error["loc"] for error in refused.json()["errors"]] == [
        ["body", "title"], ["body", "description"], ["body", "completed"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "name"),
    [
        ("GET", "/api/x/tasks", {}, None, "user_id"),
        ("GET", f"{TASKS}?limit=0", {}, None, "limit"),
        ("POST", TASKS, {"Idempotency-Key": "k" * 256}, {"title": "a"}, "Idempotency-Key"),
        ("POST", TASKS, {}, [], "body"),
        ("POST", TASKS, {}, None, "body"),
        ("PUT", TASK, {}, {"title": None}, "title"),
    ],
)
def test_the_detail_of_a_422_begins_with_the_documented_name(
    client: httpx.Client, method: str, path: str, headers: dict[str, str], body: object, name: str
) -> None:
    refused = client.request(method, path, headers=headers, json=body)
    assert_error(refused, 422)
    assert refused.json()["detail"].startswith(f"{name}: ")


def test_the_detail_of_a_422_has_a_maximum_length(client: httpx.Client) -> None:
    unknown = {f"{CANARY}{n}": CANARY for n in range(1000)}
    wrong = dict.fromkeys(["completed", "status", "limit", "offset", "cursor", "total"], CANARY) | {"search": ""}
    body = unknown | {"title": [CANARY] * 1000, "description": 1, "completed": unknown}
    refused = [
        client.get("/api/x/tasks", params=unknown | wrong),
        client.post("/api/x/tasks", json=body, headers={"Idempotency-Key": "k" * 300}),
        client.put("/api/x/tasks/y", json=body),
    ]
    for response in refused:
        assert_error(response, 422)
        assert len(response.json()["detail"]) < 500
        assert CANARY not in response.text


EVERY_OPERATION = [
    ("GET", TASKS, None),
    ("POST", TASKS, {"title": "Buy milk"}),
    ("GET", TASK, None),
    ("PUT", TASK, {"title": "Buy milk"}),
    ("PATCH", COMPLETE, None),
    ("PATCH", COMPLETE, {"completed": True}),
    ("DELETE", TASK, None),
]


@pytest.fixture
def broken(empty_database_url: str) -> Iterator[httpx.Client]:
    """A client of a service whose database has no schema."""
    with in_thread(settings(empty_database_url)) as url, httpx.Client(base_url=url) as client:
        yield client


def test_a_missing_schema_is_503_and_names_the_command_that_creates_it(
    broken: httpx.Client, empty_database_url: str
) -> None:
    for method, path, body in EVERY_OPERATION:
        response = broken.request(method, path, json=body)
        assert_error(response, 503)
        assert "`alembic upgrade head`" in response.json()["detail"]
        assert "nothing was written" in response.json()["detail"]
        assert int(response.headers["Retry-After"]) > 0
    schema.upgrade(empty_database_url)
    assert broken.post(TASKS, json={"title": "Buy milk"}).status_code == 201


def test_a_bug_is_a_500_without_details(broken: httpx.Client, empty_database_url: str) -> None:
    schema.upgrade(empty_database_url)
    execute(
        empty_database_url,
        f"""
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '{CANARY}'; END $$;
        CREATE TRIGGER fail BEFORE INSERT ON tasks EXECUTE FUNCTION fail();
        """,
    )
    origin = {"Origin": "http://localhost:3000"}
    failed = broken.post(TASKS, json={"title": "Buy milk"}, headers=origin | {"X-Request-ID": "mine"})
    assert_error(failed, 500)
    assert CANARY not in failed.text
    assert "tasks" not in failed.text
    assert failed.headers["X-Request-ID"] == "mine"
    assert failed.headers["Access-Control-Allow-Origin"] == origin["Origin"]
    assert broken.get(TASKS).json() == []


def test_an_error_due_to_the_state_of_the_server_is_503(broken: httpx.Client, empty_database_url: str) -> None:
    schema.upgrade(empty_database_url)
    execute(
        empty_database_url,
        """
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION USING ERRCODE = NEW.title; END $$;
        CREATE TRIGGER fail BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION fail();
        """,
    )
    for sqlstate in ("23505", "25006", "40001", "40P01", "53100", "53200", "55006", "55P03", "57P01", "58030"):
        failed = broken.post(TASKS, json={"title": sqlstate})
        assert_error(failed, 503)
        assert failed.json()["detail"] == "The database is unavailable; nothing was written."
        assert failed.headers["Retry-After"] == "1"
    for sqlstate in ("22012", "23514", "42601", "XX000"):
        assert_error(broken.post(TASKS, json={"title": sqlstate}), 500)


def test_an_unreachable_database_is_503(client: httpx.Client) -> None:
    unreachable = "postgresql://user:cAnArY@127.0.0.1:1/db"
    with in_thread(settings(unreachable)) as url, httpx.Client(base_url=url) as alone:
        for method, path, body in EVERY_OPERATION:
            response = alone.request(method, path, json=body)
            assert_error(response, 503)
            assert "nothing was written" in response.json()["detail"]
            assert int(response.headers["Retry-After"]) > 0
            assert CANARY not in response.text
