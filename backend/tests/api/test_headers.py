"""Headers of every response: the request's id, and CORS."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from uuid import uuid4

import httpx
import pytest

from backend.core.request_log import configure_logging
from backend.tests.serving import in_thread, settings

ORIGIN = "http://localhost:3000"
TASKS = f"/api/{uuid4()}/tasks"
JSON = {"Content-Type": "application/json"}
UNREACHABLE = "postgresql://127.0.0.1:1/"


@pytest.mark.parametrize("given", ["a", "A-z_0.9", "x" * 128, "-", "0749d86e-3d88-4c03-88bd-6dfdd832b4fd"])
def test_a_request_keeps_its_id(client: httpx.Client, given: str) -> None:
    response = client.get("/health/live", headers={"X-Request-ID": given})
    assert response.headers.get_list("X-Request-ID") == [given]


@pytest.mark.parametrize("given", [None, b"", b"x" * 129, b"a b", b"a,b", b"a\tb", b"\xe4", b"a/b", "é".encode(), b"$"])
def test_a_request_without_a_valid_id_gets_a_new_one(client: httpx.Client, given: bytes | None) -> None:
    headers = {} if given is None else {b"X-Request-ID": given}
    new = [client.get("/health/live", headers=headers).headers["X-Request-ID"] for _ in range(2)]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,128}", one) for one in new)
    assert new[0] != new[1]


def test_every_response_has_the_id_and_the_frontend_may_read_it(client: httpx.Client) -> None:
    created = client.post(TASKS, json={"title": "Buy milk"}, headers={"Origin": ORIGIN})
    task = created.headers["Location"]
    answers = {
        200: ("GET", task, {}, b""),
        201: ("POST", TASKS, JSON, b'{"title": "Buy milk"}'),
        304: ("GET", task, {"If-None-Match": "*"}, b""),
        400: ("POST", TASKS, JSON, b"{"),
        404: ("GET", "/nothing", {}, b""),
        405: ("PUT", TASKS, {}, b""),
        412: ("DELETE", task, {"If-Match": '"other"'}, b""),
        413: ("POST", TASKS, JSON, b" " * 70_000),
        422: ("POST", TASKS, JSON, b"{}"),
        204: ("DELETE", task, {}, b""),
    }
    for status, (method, path, headers, body) in answers.items():
        sent = headers | {"X-Request-ID": f"request-{status}", "Origin": ORIGIN}
        response = client.request(method, path, headers=sent, content=body)
        assert response.status_code == status
        assert response.headers.get_list("X-Request-ID") == [f"request-{status}"]
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert response.headers["Access-Control-Allow-Credentials"] == "true"
        exposed = {name.strip() for name in response.headers["Access-Control-Expose-Headers"].split(",")}
        assert exposed == {
            "ETag", "Link", "Location", "Idempotency-Replayed", "Retry-After", "X-Request-ID", "X-Total-Count",
        }  # fmt: skip
    for path in ("/docs", "/redoc", "/openapi.json", "/health"):
        assert client.get(path, headers={"X-Request-ID": "mine"}).headers["X-Request-ID"] == "mine"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def test_a_browser_may_send_every_header_that_the_operations_take(client: httpx.Client, method: str) -> None:
    wanted = "authorization,content-type,idempotency-key,if-match,if-none-match,x-request-id"
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": wanted}
    allowed = client.options(TASKS, headers=preflight)
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert allowed.headers["Access-Control-Allow-Credentials"] == "true"
    assert method in allowed.headers["Access-Control-Allow-Methods"].split(", ")
    assert set(wanted.split(",")) <= set(allowed.headers["Access-Control-Allow-Headers"].lower().split(","))
    assert allowed.headers["X-Request-ID"]


@pytest.mark.parametrize(
    "origin", ["http://localhost:3001", "https://localhost:3000", "http://localhost:3000.evil.test", "null"]
)
def test_other_origins_are_refused(client: httpx.Client, origin: str) -> None:
    preflight = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    refused = client.options(TASKS, headers=preflight)
    assert refused.status_code == 400
    assert isinstance(refused.json()["detail"], str)
    for response in (client.options(TASKS, headers=preflight), client.get(TASKS, headers={"Origin": origin})):
        assert "Access-Control-Allow-Origin" not in response.headers
        assert response.headers["X-Request-ID"]


def test_only_the_origins_in_the_settings_are_allowed() -> None:
    configured = settings(UNREACHABLE, cors_origins="https://a.test,https://b.test")
    with in_thread(configured) as url, httpx.Client(base_url=url) as client:
        for origin in ("https://a.test", "https://b.test"):
            allowed = client.get("/health/live", headers={"Origin": origin}).headers
            assert allowed["Access-Control-Allow-Origin"] == origin
            assert allowed["Access-Control-Allow-Credentials"] == "true"
        assert "Access-Control-Allow-Origin" not in client.get("/health/live", headers={"Origin": ORIGIN}).headers


def test_with_a_wildcard_any_origin_is_allowed_without_credentials() -> None:
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "if-match"}
    with in_thread(settings(UNREACHABLE, cors_origins="*")) as url, httpx.Client(base_url=url) as client:
        for response in (
            client.get("/health/live", headers={"Origin": ORIGIN}),
            client.get(TASKS, headers={"Origin": ORIGIN, "Cookie": "session=1"}),
            client.options(TASKS, headers=preflight),
        ):
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            assert "Access-Control-Allow-Credentials" not in response.headers


def test_every_response_varies_by_origin(client: httpx.Client) -> None:
    # Otherwise a cache could answer a cross-origin request with a response to another origin, or to none.
    for path, status in ((TASKS, 200), (f"{TASKS}?limit=0", 422), ("/docs", 200), ("/redoc.js", 200), ("/x", 404)):
        for headers in ({}, {"Origin": ORIGIN}, {"Origin": "http://localhost:3001"}):
            response = client.get(path, headers=headers)
            assert response.status_code == status
            assert response.headers.get_list("Vary") == ["Origin"], (path, headers)
    task = client.post(TASKS, json={"title": "Buy milk"}).headers["Location"]
    not_modified = client.get(task, headers={"If-None-Match": "*"})
    assert (not_modified.status_code, not_modified.headers["Vary"]) == (304, "Origin")
    preflight = client.options(TASKS, headers={"Origin": ORIGIN, "Access-Control-Request-Method": "PUT"})
    assert "Origin" in preflight.headers["Vary"].split(", ")


@pytest.fixture
def log(client: httpx.Client, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """The log lines of this process; logging is reset afterwards."""

    def lines() -> list[str]:
        for handler in logging.getLogger().handlers:
            handler.flush()
        return capfd.readouterr().err.splitlines()

    yield lines
    configure_logging(settings(UNREACHABLE))


def test_the_log_line_of_a_request_has_its_id(database_url: str, log: Callable[[], list[str]]) -> None:
    with in_thread(settings(database_url)) as url:
        for method, path, request_id in (("GET", TASKS, "mine-1"), ("GET", "/x", "mine-2"), ("HEAD", TASKS, "mine-3")):
            httpx.request(method, url + path, headers={"X-Request-ID": request_id})
    lines = [line for line in log() if "[mine-" in line]
    assert len(lines) == 3
    assert re.search(r" GET /api/\{user_id\}/tasks 200 \d+\.\d ms 127\.0\.0\.1 \[mine-1\]$", lines[0])
    assert re.search(r" 404 \d+\.\d ms 127\.0\.0\.1 \[mine-2\]$", lines[1])
    assert re.search(r" HEAD /api/\{user_id\}/tasks 200 \d+\.\d ms 127\.0\.0\.1 \[mine-3\]$", lines[2])


def test_in_production_every_log_line_is_json(database_url: str, log: Callable[[], list[str]]) -> None:
    with in_thread(settings(database_url, environment="production", auth_disabled=True)) as url:
        httpx.patch(f"{url}{TASKS}/{uuid4()}/complete", headers={"X-Request-ID": "mine"})
        try:
            raise ValueError('two\nlines and a "quote"')
        except ValueError:
            logging.getLogger("backend").exception("it was %s", "raised")
    entries = [json.loads(line) for line in log()]
    [logged] = [entry for entry in entries if entry["request_id"] == "mine"]
    assert (logged["level"].lower(), logged["method"], logged["status"]) == ("info", "PATCH", 404)
    assert logged["route"] == "/api/{user_id}/tasks/{task_id}/complete"
    assert logged["milliseconds"] >= 0
    assert logged["client"] == "127.0.0.1"
    assert datetime.fromisoformat(logged["time"]).tzinfo is not None
    [error] = [entry for entry in entries if entry["message"] == "it was raised"]
    assert error["level"].lower() == "error"
    assert any('ValueError: two\nlines and a "quote"' in str(value) for value in error.values())


def test_the_log_line_of_a_request_has_level_info(database_url: str, log: Callable[[], list[str]]) -> None:
    with in_thread(settings(database_url, log_level="warning")) as url:
        httpx.get(url + TASKS, headers={"X-Request-ID": "mine"})
        logging.getLogger("backend").warning("hear")
    lines = log()
    assert not any("mine" in line for line in lines)
    assert any("hear" in line for line in lines)
