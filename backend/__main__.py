"""`python -m backend`: migrate, say where everything is, and serve."""

import math
import signal
import socket
import sys
import threading
from contextlib import nullcontext
from uuid import uuid4

import psycopg2
import uvicorn

from backend.core import embedded, schema
from backend.core.config import fail_startup, load_settings
from backend.core.request_log import configure_logging


def main() -> None:
    """Serve until a signal says stop."""
    if sys.argv[1:]:
        fail_startup("options are not supported: set HOST and PORT, or run `uvicorn backend.main:app`")
    settings = load_settings()
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listening = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        fail_startup(f"HOST and PORT: nothing can listen on {settings.host}:{settings.port}, {error.strerror}")
    configure_logging(settings)
    # A signal never interrupts: while the database starts it would leave it running, and uvicorn, which stops at one,
    # sends it again to a process that has yet to give back its database.
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    url = settings.database_url
    with nullcontext(url.get_secret_value()) if url else embedded.postgres() as database_url:
        migrate(database_url)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        where = f"http://{host}:{settings.port}"
        database = "yours, from DATABASE_URL" if url else f"embedded PostgreSQL, kept in {embedded.DATA}/"
        token = ' -H "Authorization: Bearer $TOKEN"' if settings.auth_jwks_url else ""
        example = f"curl -i {where}/api/{uuid4()}/tasks{token} -H 'Content-Type: application/json'"
        body = """-d '{"title": "Buy milk"}'"""
        print(f"\n  Docs      {where}/docs\n  Database  {database}\n  Try it    {example} {body}\n", flush=True)
        # A request in flight may wait for its turn and then for the database.
        grace = math.ceil(2 * settings.db_pool_timeout) + 1
        config = uvicorn.Config(
            "backend.main:app", lifespan="on", log_config=None, timeout_graceful_shutdown=grace, ws="none"
        )
        if not stopping.is_set():
            uvicorn.Server(config).run([listening])


def migrate(database_url: str) -> None:
    """Bring the schema to head; a database that is away is waited for by the service, not here."""
    try:
        schema.upgrade(database_url)
    except psycopg2.OperationalError as error:
        print(f"Not migrated, the database cannot be reached: {' '.join(str(error).split())}", file=sys.stderr)
    except Exception as error:  # noqa: BLE001  # whatever it is, what serves without its schema serves nobody
        fail_startup(f"the migration failed: {' '.join(str(next(iter(error.args), error)).split())}")


if __name__ == "__main__":
    main()
