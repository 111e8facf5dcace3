"""A database whose encoding is not UTF8 cannot store every title: no request uses it, and the log has the reason."""

from collections.abc import Iterator
from io import StringIO
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import psycopg2
import pytest
from alembic import command
from alembic.config import Config

from backend.core import schema
from backend.core.errors import NOT_WRITTEN
from backend.tests.database import execute
from backend.tests.errors import assert_error
from backend.tests.serving import ROOT, in_thread, settings


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def database_url(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[str]:
    """A database with this encoding and the schema, created from Alembic's SQL."""
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
        # The later migrations are not one transaction, and do not affect this test.
        command.upgrade(config, "0001", sql=True)
        assert isinstance(config.output_buffer, StringIO)
        execute(url, config.output_buffer.getvalue())
        yield url
    finally:
        execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def test_a_database_whose_encoding_is_not_utf8_is_refused(
    database_url: str, tasks: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with in_thread(settings(database_url)) as url, httpx.Client(base_url=url, timeout=30) as client:
        for answer in (
            client.get("/health"),
            client.get(tasks, params={"search": "€"}),
            client.post(tasks, json={"title": "a"}),
            client.post(tasks, json={"title": "€" * 255}),
        ):
            assert_error(answer, 503)
            assert answer.json()["detail"].endswith(f"; {NOT_WRITTEN}.")
    assert "UTF8" in capfd.readouterr().err
    with pytest.raises(psycopg2.OperationalError, match="UTF8"):
        schema.upgrade(database_url)
    assert execute(database_url, "SELECT version_num FROM alembic_version") == [("0001",)]
    assert execute(database_url, "SELECT count(*) FROM tasks") == [(0,)]
