"""Fixtures: a real PostgreSQL with the schema, the service on it, and a new user for each test."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from backend.core import embedded, schema
from backend.tests.database import execute
from backend.tests.embedded_data import RUN_FOLDER, copy_data
from backend.tests.serving import ROOT, in_thread, settings

SLOWEST = [
    "test_processes",
    "test_http_edge",
    "test_silent_connections",
    "test_lifecycle",
    "test_hosts",
    "test_migrations",
    "test_embedded",
    "test_event_loops",
    "test_overload",
    "test_locked_rows",
    "test_better_auth",
    "test_broken_connections",
    "test_dying_database",
    "test_schema",
    "test_fairness",
    "test_hostile_input",
]
PATIENT = """
from backend.core import http_protocol
from backend.main import app
http_protocol.DRAIN_SECONDS = 60
"""
"""A module whose `app` serves idle connections for a minute of the shutdown, because a test may be slow to use them."""
# PgBouncer may have given this session the lock of an earlier migration.
EMPTY = """
SELECT pg_advisory_unlock_all();
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid();
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$)' LOOP
        EXECUTE format('DROP SCHEMA %%I CASCADE', name);
    END LOOP;
    EXECUTE format('ALTER DATABASE %%I RESET ALL', current_database());
END $$;
CREATE SCHEMA public;
"""


def pytest_configure(config: pytest.Config) -> None:
    """Create a folder for embedded servers, once for all processes of a test run; they inherit its name."""
    # A shell may start a background job with these ignored, and the services under test would inherit that.
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        # Not in pytest's folder: the next run as root would make it inaccessible to the user that PostgreSQL runs as.
        folder = TemporaryDirectory()
        os.environ[RUN_FOLDER] = folder.name
        # A folder without certificates: otherwise each client of httpx reads a file of them, which takes 20 ms.
        os.environ["SSL_CERT_DIR"] = folder.name
        os.environ.pop("SSL_CERT_FILE", None)
        config.add_cleanup(folder.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files that take longest first, so that no process of a test run is left with one of them at the end."""
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The server that TEST_DATABASE_URL names; if unset, an embedded one that is shared by the processes of a run."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    folder = Path(os.environ[RUN_FOLDER], "shared")
    copy_data(folder)
    with embedded.postgres(folder) as url:
        yield url


@pytest.fixture(scope="session")
def database_url(postgres_url: str) -> Iterator[str]:
    """A database with the schema, shared by the tests of a process: each test has its own users."""
    with empty_database(postgres_url) as url:
        schema.upgrade(url)
        yield url


@pytest.fixture(scope="session")
def reused_database_url(postgres_url: str) -> Iterator[str]:
    """A database that tests use one after the other."""
    with empty_database(postgres_url) as url:
        yield url


@pytest.fixture
def empty_database_url(reused_database_url: str) -> str:
    """A database without any table, for tests that change the schema or count rows."""
    # Emptied, because creating and dropping one takes PostgreSQL 0.1 s of CPU time.
    execute(reused_database_url, EMPTY)
    return reused_database_url


@contextmanager
def empty_database(server_url: str) -> Iterator[str]:
    """Create a database on the server and drop it afterwards; yields its URL."""
    name = f"test_{uuid4().hex}"
    parts = urlsplit(server_url)
    with_name = f"{parts.scheme}://{parts.netloc}/{name}?{parts.query}"
    execute(server_url, f"CREATE DATABASE {name}")
    try:
        yield with_name
    finally:
        execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def base_url(database_url: str) -> Iterator[str]:
    """The service, running in a thread."""
    with in_thread(settings(database_url)) as url:
        yield url


@pytest.fixture(scope="session")
def client(base_url: str) -> Iterator[httpx.Client]:
    """A client of the service."""
    # Without connection limits: above one, a thread of the client closes a connection that another is about to use.
    with httpx.Client(base_url=base_url, timeout=30, limits=httpx.Limits()) as session:
        yield session


@pytest.fixture
def user() -> str:
    """The id of a user without tasks."""
    return str(uuid4())


@pytest.fixture
def tasks(user: str) -> str:
    """The path of the user's tasks."""
    return f"/api/{user}/tasks"


@pytest.fixture
def patient(database_url: str, tmp_path: Path) -> dict[str, str]:
    """Settings for a service that serves idle connections for a minute of its shutdown."""
    (tmp_path / "patient.py").write_text(PATIENT)
    return {"DATABASE_URL": database_url, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
