"""`python -m backend`: migrate, say where everything is, and serve."""

import argparse
import socket
from contextlib import nullcontext, suppress
from uuid import uuid4

import uvicorn
from uvicorn.supervisors import Multiprocess

from backend.core import embedded, schema
from backend.core.config import load_settings, stop


def main() -> None:
    """Serve until a signal says stop."""
    settings = load_settings()
    parser = argparse.ArgumentParser("python -m backend", description="Migrate the database and serve the tasks API.")
    parser.add_argument("--host", default=settings.host, help="address to listen on (HOST, now %(default)s)")
    parser.add_argument("--port", default=settings.port, type=int, help="port to listen on (PORT, now %(default)s)")
    parser.add_argument("--workers", default=1, type=int, help="processes that serve (default %(default)s)")
    arguments = parser.parse_args()
    try:
        family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
        listening = socket.create_server((arguments.host, arguments.port), family=family, backlog=2048)
    except OSError as error:
        stop(f"HOST and PORT: nothing can listen on {arguments.host}:{arguments.port}, {error.strerror}")
    url = settings.database_url
    with nullcontext(url.get_secret_value()) if url else embedded.postgres() as database_url:
        schema.upgrade(database_url)
        where = f"http://{arguments.host}:{arguments.port}"
        print(
            f"Docs: {where}/docs\nTry:  curl -i {where}/api/{uuid4()}/tasks"
            """ -H 'Content-Type: application/json' -d '{"title": "Buy milk"}'""",
            flush=True,
        )
        config = uvicorn.Config(
            "backend.main:app", workers=arguments.workers, lifespan="on", timeout_graceful_shutdown=10
        )
        with suppress(KeyboardInterrupt):
            if arguments.workers > 1:
                Multiprocess(config, [listening]).run()
            else:
                uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    main()
