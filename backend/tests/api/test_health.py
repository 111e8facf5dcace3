"""Whether the service lives, and whether it works."""

import httpx

from backend.core import schema
from backend.tests.database import execute
from backend.tests.errors import assert_error
from backend.tests.serving import in_thread, settings


def test_all_is_well(client: httpx.Client) -> None:
    for path in ("/health", "/health/live"):
        response = client.get(path)
        assert response.status_code == 200
        assert response.json() == {"status": "ok"}
        asked = client.head(path)
        assert asked.status_code == 200
        assert asked.content == b""


def test_without_its_database_it_lives_and_does_not_work() -> None:
    with in_thread(settings("postgresql://127.0.0.1:1/")) as url, httpx.Client(base_url=url) as client:
        assert client.get("/health/live").json() == {"status": "ok"}
        unwell = client.get("/health")
        assert_error(unwell, 503)
        assert "reached" in unwell.json()["detail"]
        assert unwell.headers["Retry-After"]


def test_it_works_once_the_schema_is_at_head(empty_database_url: str) -> None:
    with in_thread(settings(empty_database_url)) as url, httpx.Client(base_url=url) as client:

        def assert_unwell() -> None:
            unwell = client.get("/health")
            assert_error(unwell, 503)
            assert "`alembic upgrade head`" in unwell.json()["detail"]
            assert client.get("/health/live").status_code == 200

        assert_unwell()
        schema.upgrade(empty_database_url)
        assert client.get("/health").json() == {"status": "ok"}
        execute(empty_database_url, "UPDATE alembic_version SET version_num = '0000'")
        assert_unwell()
        execute(empty_database_url, "DELETE FROM alembic_version")
        assert_unwell()
