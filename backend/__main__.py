"""`python -m backend`: migrate, print the URLs, and serve."""

import math
import os
import signal
import socket
import sys
from contextlib import nullcontext, suppress
from uuid import uuid4

import uvicorn

from backend.core import embedded, schema
from backend.core.config import fail_startup, load_settings
from backend.core.request_log import configure_logging


def main() -> None:
    """Serve until a signal asks the process to stop."""
    if sys.argv[1:]:
        fail_startup("options are not supported: set HOST and PORT, or run `uvicorn backend.main:app`")
    settings = load_settings()
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listening = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except (OSError, TypeError) as error:  # TypeError: a name that cannot be encoded
        fail_startup(f"HOST and PORT: cannot listen on {settings.host}:{settings.port}: {error}")
    configure_logging(settings)
    # A request waits at most 10 s for its body, 10 s for the issuer's keys and, for each of two statements,
    # `db_pool_timeout` for a connection and again for the result.
    grace = math.ceil(10 + 10 + 4 * settings.db_pool_timeout) + 2
    config = uvicorn.Config(
        "backend.main:app", lifespan="on", log_config=None, timeout_graceful_shutdown=grace, ws="none"
    )
    server = uvicorn.Server(config)
    # Record signals instead of dying from them: one during startup would orphan PostgreSQL, and uvicorn re-raises the
    # signal it stopped on before the embedded server is shut down.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    url = settings.database_url
    with nullcontext(url.get_secret_value()) if url else embedded.postgres() as database_url:
        schema.upgrade_at_start(database_url)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        base_url = f"http://{host}:{settings.port}"
        database = "from DATABASE_URL" if url else f"embedded PostgreSQL, data in {embedded.DATA}/"
        token = ' -H "Authorization: Bearer $TOKEN"' if settings.auth_jwks_url else ""
        example = f"curl -i {base_url}/api/{uuid4()}/tasks{token} -H 'Content-Type: application/json'"
        body = """-d '{"title": "Buy milk"}'"""
        with suppress(OSError):
            # Unbuffered: Python would write the buffered text again at exit, and fail again.
            os.write(
                1, f"\n  Docs      {base_url}/docs\n  Database  {database}\n  Try it    {example} {body}\n\n".encode()
            )
        if not server.should_exit:
            server.run([listening])


if __name__ == "__main__":
    main()
