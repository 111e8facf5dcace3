"""The application factory: settings in, FastAPI out."""

import gc
import logging
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import TypedDict

from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline
from uvicorn.config import STARTUP_FAILURE

from backend.api import docs, health, tasks
from backend.api.responses import AUTH_RESPONSES
from backend.core import embedded, errors, schema
from backend.core.config import Settings, load_settings
from backend.core.cors import CORSMiddleware
from backend.core.pool import Pool
from backend.core.request_log import LogFormatter, RequestLogMiddleware, configure_logging
from backend.core.route import add_routes

EXPOSED = "ETag Idempotency-Replayed Link Location Retry-After X-Request-ID X-Total-Count"

logger = logging.getLogger(__name__)


class State(TypedDict):
    """What lives as long as the process and is at hand in every request."""

    pool: Pool
    traced: bool


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service for `settings`, or for those of the environment; nothing is opened before it starts to serve."""
    settings = settings or load_settings()
    if settings.database_url is None:
        embedded.binaries()

    # FastAPI looks for a provider in every request unless told that there is none.
    traced = any(name.startswith(("OTEL_", "FASTAPI_OTEL_")) for name in os.environ)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        configure_logging(settings)
        if settings.auth_jwks_url is None:
            logger.warning("AUTHENTICATION IS OFF: whoever reaches this service sees every task (AUTH_JWKS_URL)")
        with ExitStack() as stack:
            if settings.database_url is None:
                try:
                    url = stack.enter_context(embedded.postgres())
                except SystemExit:
                    # Starlette and uvicorn would print a traceback below the line that says it all.
                    os._exit(STARTUP_FAILURE)
                schema.upgrade(url)
            else:
                url = settings.database_url.get_secret_value()
            pool = Pool(url, settings.db_pool_size, settings.db_pool_timeout)
            stack.callback(pool.close)
            # Else a full garbage collection looks through all modules: nobody is served for a twelfth of a second.
            gc.freeze()
            yield {"pool": pool, "traced": traced}

    app = FastAPIOffline(
        title="Tasks",
        version="1.0.0",
        lifespan=lifespan,
        exception_handlers=errors.HANDLERS,
        redoc_url=None,
        # A redirect would name a scheme and a host that a service behind a proxy does not know.
        redirect_slashes=False,
        telemetry={"tracing": traced, "metrics": traced, "logs": traced},
        generate_unique_id_function=lambda route: route.name,
    )
    dependencies = []
    if settings.auth_jwks_url and settings.auth_issuer and settings.auth_audience:
        # Imported by who needs it: its libraries take a tenth of a second and 12 MB.
        from backend.core.auth import BearerAuth

        dependencies = [Depends(BearerAuth(str(settings.auth_jwks_url), settings.auth_issuer, settings.auth_audience))]
    add_routes(app, tasks.router, dependencies, AUTH_RESPONSES if dependencies else {})
    app.include_router(health.router)
    app.include_router(docs.router)
    app.add_middleware(errors.ServerErrorMiddleware)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],
        expose_headers=EXPOSED.split(),
    )
    app.add_middleware(RequestLogMiddleware, lines=LogFormatter(settings))
    return app


app = create_app()
