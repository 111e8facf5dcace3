"""A database whose encoding is not UTF8 cannot store every title: it is reported as unavailable, never by a 500."""

from collections.abc import Iterator
from io import StringIO
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from alembic import command
from alembic.config import Config

from backend.core.errors import NOT_WRITTEN
from backend.tests.database import execute
from backend.tests.errors import assert_error
from backend.tests.serving import ROOT, in_thread, settings


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def database_url(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[str]:
    """A database with this encoding, with the schema as written out by Alembic."""
    [(version,)] = execute(postgres_url, "SELECT current_setting('server_version_num')::int")
    provider = "LOCALE_PROVIDER libc" if version >= 150000 else ""
    name = f"test_{uuid4().hex}"
    options = f"TEMPLATE template0 ENCODING '{request.param}' {provider} LC_COLLATE 'C' LC_CTYPE 'C'"
    execute(postgres_url, f"CREATE DATABASE {name} {options}")
    try:
        parts = urlsplit(postgres_url)
        url = f"{parts.scheme}://{parts.netloc}/{name}?{parts.query}"
        config = Config(ROOT / "alembic.ini", output_buffer=StringIO())
        config.attributes["url"] = url
        command.upgrade(config, "head", sql=True)
        assert isinstance(config.output_buffer, StringIO)
        execute(url, config.output_buffer.getvalue())
        yield url
    finally:
        execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def test_a_database_that_is_not_utf8_is_not_healthy(database_url: str, tasks: str) -> None:
    with in_thread(settings(database_url)) as url, httpx.Client(base_url=url, timeout=30) as client:
        answer = client.get("/health")
        assert_error(answer, 503)
        assert "UTF8" in answer.json()["detail"]


def test_text_that_the_database_cannot_store_is_not_an_internal_error(database_url: str, tasks: str) -> None:
    with in_thread(settings(database_url)) as url, httpx.Client(base_url=url, timeout=30) as client:
        plain = client.post(tasks, json={"title": "a"})
        assert plain.status_code == 201
        for answer in (
            client.post(tasks, json={"title": "€" * 255}),
            client.put(plain.headers["Location"], json={"description": "€" * 2000}),
        ):
            assert_error(answer, 503)
            assert "UTF8" in answer.json()["detail"]
            assert answer.json()["detail"].endswith(f"; {NOT_WRITTEN}.")
        assert client.get(tasks, params={"search": "€", "q": "€"}).status_code in (200, 503)
        assert client.get(tasks).json() == [plain.json()]
