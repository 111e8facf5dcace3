"""What tests stand on: a real PostgreSQL with our schema, the service on it, and a user of the test's own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import psycopg2
import pytest

from backend.core import embedded, schema
from backend.tests.serving import in_thread, settings


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server to test on, thrown away afterwards unless TEST_DATABASE_URL names one."""
    given = os.environ.get("TEST_DATABASE_URL")
    # Not in pytest's folder, which the next run of root's would close to the user that PostgreSQL runs as.
    with TemporaryDirectory() as folder, nullcontext(given) if given else embedded.postgres(Path(folder)) as url:
        yield url


@pytest.fixture(scope="session")
def database_url(postgres_url: str) -> str:
    """A database with our schema, shared by the tests: each has users of its own."""
    schema.upgrade(postgres_url)
    return postgres_url


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A database without any table, for tests that change the schema or count rows."""
    with empty_database(postgres_url) as url:
        yield url


@contextmanager
def empty_database(server_url: str) -> Iterator[str]:
    """Make a database on the server and drop it afterwards; its URL."""
    name = f"test_{uuid4().hex}"
    parts = urlsplit(server_url)
    with_name = f"{parts.scheme}://{parts.netloc}/{name}?{parts.query}"
    _execute(server_url, f"CREATE DATABASE {name}")
    try:
        yield with_name
    finally:
        _execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(url: str, sql: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(sql)
    connection.close()


@pytest.fixture(scope="session")
def base_url(database_url: str) -> Iterator[str]:
    """The service, running in a thread."""
    with in_thread(settings(database_url)) as url:
        yield url


@pytest.fixture(scope="session")
def client(base_url: str) -> Iterator[httpx.Client]:
    """A client of the service."""
    # No limits: over one, a thread of the client closes a connection that another is about to use.
    with httpx.Client(base_url=base_url, timeout=30, limits=httpx.Limits()) as session:
        yield session


@pytest.fixture
def user() -> str:
    """Somebody who has no task yet."""
    return str(uuid4())


@pytest.fixture
def tasks(user: str) -> str:
    """The path of the user's tasks."""
    return f"/api/{user}/tasks"
