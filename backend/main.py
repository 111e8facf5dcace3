"""The application factory: settings in, FastAPI out."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import TypedDict

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline

from backend.api import health, tasks
from backend.core import embedded, errors, schema
from backend.core.config import Settings, load_settings
from backend.core.db import Session
from backend.core.request_log import RequestLog, configure_logging

MAX_BODY_BYTES = 64 * 1024


class State(TypedDict):
    """What lives as long as the process and is at hand in every request."""

    session: Session


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service for `settings`, or for those of the environment; nothing is opened before it starts to serve."""
    settings = settings or load_settings()
    if settings.database_url is None:
        embedded.binaries()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        configure_logging(settings.log_level, as_json=settings.environment == "production")
        with ExitStack() as stack:
            if settings.database_url is None:
                url = stack.enter_context(embedded.postgres())
                schema.upgrade(url)
            else:
                url = settings.database_url.get_secret_value()
            session = Session(url, settings.db_pool_size, settings.db_pool_timeout)
            stack.callback(session.close)
            yield {"session": session}

    app = FastAPIOffline(
        title="Tasks",
        version="1.0.0",
        lifespan=lifespan,
        max_body_size=MAX_BODY_BYTES,
        generate_unique_id_function=lambda route: route.name,
    )
    app.include_router(tasks.router)
    app.include_router(health.router)
    errors.install(app)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],
        expose_headers=[
            "ETag",
            "Link",
            "Location",
            "Idempotency-Replayed",
            "Retry-After",
            "X-Request-ID",
            "X-Total-Count",
        ],
    )
    app.add_middleware(RequestLog)
    return app


app = create_app()
