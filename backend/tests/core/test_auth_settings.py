"""Authentication switched on and off: settings, the log, the OpenAPI document, and the protected routes."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from pydantic import ValidationError
from uvicorn.config import STARTUP_FAILURE

from backend.main import create_app
from backend.tests.errors import assert_error
from backend.tests.serving import in_thread, settings

NAMES = ("auth_jwks_url", "auth_issuer", "auth_audience")
ON = dict.fromkeys(NAMES, "https://auth.example.org")
DATABASE = "postgresql://tasks@127.0.0.1:5432/tasks"
OPERATIONS = {"create_task", "list_tasks", "get_task", "update_task", "toggle_task", "delete_task"}


@pytest.fixture(scope="module")
def app(database_url: str) -> FastAPI:
    return create_app(settings(database_url, **ON))


@pytest.fixture(scope="module")
def api(app: FastAPI) -> Iterator[httpx.Client]:
    """A client without a token of a service that requires one."""
    with in_thread(app) as base_url, httpx.Client(base_url=base_url, timeout=30) as client:
        yield client


@pytest.mark.parametrize("given", range(1, 7))
def test_the_three_settings_are_required_together(given: int) -> None:
    chosen = [name for number, name in enumerate(NAMES) if given & 1 << number]
    with pytest.raises(ValidationError) as refused:
        settings(DATABASE, **{name: ON[name] for name in chosen})
    missing, _, _ = refused.value.errors()[0]["msg"].partition(" must be set too")
    assert sorted(missing.removeprefix("Value error, ").split(" and ")) == sorted(
        name.upper() for name in NAMES if name not in chosen
    )


def test_an_issuer_without_keys_fails_startup_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("AUTH_ISSUER", "https://auth.example.org")
    with pytest.raises(SystemExit) as stopped:
        create_app()
    assert stopped.value.code == STARTUP_FAILURE
    error_output = capsys.readouterr().err
    assert error_output.count("\n") == 1
    assert "AUTH_JWKS_URL and AUTH_AUDIENCE" in error_output


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_setting_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValidationError):
        settings(DATABASE, **{**ON, name: value})


def test_production_requires_authentication_or_auth_disabled() -> None:
    with pytest.raises(ValidationError, match="AUTH_JWKS_URL"):
        settings(DATABASE, environment="production")
    with pytest.raises(ValidationError, match="AUTH_DISABLED"):
        settings(DATABASE, auth_disabled=True, **ON)
    settings(DATABASE, environment="production", auth_disabled=True)
    settings(DATABASE, environment="production", **ON)


@pytest.mark.parametrize(("others", "lines"), [({}, 1), (ON, 0)], ids=["off", "on"])
def test_the_log_warns_that_authentication_is_off(
    database_url: str, caplog: pytest.LogCaptureFixture, others: dict[str, str], lines: int
) -> None:
    with in_thread(settings(database_url, **others)):
        pass
    loud = [record for record in caplog.records if "AUTHENTICATION IS OFF" in record.message]
    assert [record.levelname for record in loud] == ["WARNING"] * lines


def test_openapi_requires_a_token_if_authentication_is_on(api: httpx.Client) -> None:
    document = api.get("/openapi.json").json()
    assert {name: scheme["type"] for name, scheme in document["components"]["securitySchemes"].items()} == {
        "BetterAuth": "http"
    }
    scheme = document["components"]["securitySchemes"]["BetterAuth"]
    assert (scheme["scheme"], scheme["bearerFormat"]) == ("bearer", "JWT")
    operations = {
        operation["operationId"]: operation for path in document["paths"].values() for operation in path.values()
    }
    assert set(operations) > OPERATIONS
    for name, operation in operations.items():
        guarded = name in OPERATIONS
        assert operation.get("security") == ([{"BetterAuth": []}] if guarded else None)
        assert ({"401", "403"} & set(operation["responses"])) == ({"401", "403"} if guarded else set())
    for name in OPERATIONS:
        unauthorized = operations[name]["responses"]["401"]
        assert unauthorized["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorResponse"}
        assert "WWW-Authenticate" in unauthorized["headers"]


def test_openapi_has_no_token_if_authentication_is_off(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert "securitySchemes" not in document["components"]
    for path in document["paths"].values():
        for operation in path.values():
            assert "security" not in operation
            assert not {"401", "403"} & set(operation["responses"])


def test_every_task_route_requires_a_token(app: FastAPI, api: httpx.Client) -> None:
    guarded = [
        (method, route.path)
        for route in iter_route_contexts(app.routes)
        for method in route.methods or ()
        if route.path and route.path.startswith("/api")
    ]
    assert len(guarded) >= len(OPERATIONS)
    for method, path in guarded:
        response = api.request(method, path.format(user_id=uuid4(), task_id=uuid4()), json={"title": "Buy milk"})
        assert_error(response, 401)
        assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/health", "/health/live", "/docs", "/redoc", "/openapi.json"])
def test_public_paths_need_no_token(api: httpx.Client, path: str) -> None:
    assert api.get(path).status_code == 200


def test_preflight_needs_no_token_and_a_401_has_cors_headers(api: httpx.Client) -> None:
    origin = {"Origin": "http://localhost:3000"}
    preflight_headers = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}
    preflight = api.options(f"/api/{uuid4()}/tasks/{uuid4()}", headers=origin | preflight_headers)
    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"].lower()
    refused = api.get(f"/api/{uuid4()}/tasks", headers=origin)
    assert_error(refused, 401)
    assert refused.headers["Access-Control-Allow-Origin"] == origin["Origin"]
