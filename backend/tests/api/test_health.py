"""Liveness and readiness."""

import httpx

from backend.core import schema
from backend.tests.database import execute
from backend.tests.errors import assert_error
from backend.tests.serving import in_thread, settings


def test_a_working_service_is_healthy(client: httpx.Client) -> None:
    for path in ("/health", "/health/live"):
        response = client.get(path)
        assert response.status_code == 200
        assert response.json() == {"status": "ok"}


def test_without_its_database_the_service_is_live_and_not_ready() -> None:
    with in_thread(settings("postgresql://127.0.0.1:1/")) as url, httpx.Client(base_url=url) as client:
        assert client.get("/health/live").json() == {"status": "ok"}
        not_ready = client.get("/health")
        assert_error(not_ready, 503)
        assert "reached" in not_ready.json()["detail"]
        assert not_ready.headers["Retry-After"]


def test_the_service_is_ready_exactly_when_the_schema_is_at_head(empty_database_url: str) -> None:
    with in_thread(settings(empty_database_url)) as url, httpx.Client(base_url=url) as client:

        def assert_not_ready() -> None:
            not_ready = client.get("/health")
            assert_error(not_ready, 503)
            assert "`alembic upgrade head`" in not_ready.json()["detail"]
            assert client.get("/health/live").status_code == 200

        assert_not_ready()
        schema.upgrade(empty_database_url)
        assert client.get("/health").json() == {"status": "ok"}
        execute(empty_database_url, "UPDATE alembic_version SET version_num = '0000'")
        assert_not_ready()
        execute(empty_database_url, "DELETE FROM alembic_version")
        assert_not_ready()
