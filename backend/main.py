"""The application factory."""

import gc
import logging
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from fastapi import Depends, FastAPI

from backend.api import docs, health, tasks
from backend.api.responses import AUTH_RESPONSES
from backend.core import embedded, errors, http_protocol, schema
from backend.core.config import Settings, load_settings
from backend.core.cors import CORSMiddleware
from backend.core.normalize import NormalizeMiddleware
from backend.core.pool import Pool
from backend.core.request_log import RequestLogMiddleware, configure_logging
from backend.core.route import add_routes

EXPOSED_HEADERS = "ETag Idempotency-Replayed Link Location Retry-After X-Request-ID X-Total-Count"

logger = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service with `settings`, by default those of the environment. Connections are opened in its lifespan only."""
    settings = settings or load_settings()
    if settings.database_url is None:
        # Only to end the process with one line if the wheel is not installed.
        embedded.binaries()
    http_protocol.install()

    configure_logging(settings)

    # Without an exporter, spans would only slow each request down.
    traced = (
        os.environ.get("FASTAPI_OTEL_AUTO_CONFIGURE", "").lower() == "true"
        and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"
        and any(os.environ.get(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT") for kind in ("", "TRACES_", "METRICS_"))
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Pool]]:
        http_protocol.stop_on_sigterm()
        if settings.auth_jwks_url is None:
            logger.warning("AUTHENTICATION IS OFF: any client can read and change every task (AUTH_JWKS_URL is unset)")
        with ExitStack() as stack:
            if settings.database_url is None:
                url = stack.enter_context(embedded.postgres())
                schema.upgrade_at_start(url)
            else:
                url = settings.database_url.get_secret_value()
            pool = Pool(url, settings.db_pool_size, settings.db_pool_timeout, traced=traced)
            stack.callback(pool.close)
            # Otherwise each full collection scans all modules and blocks the loop for about 80 ms.
            gc.freeze()
            # By default, every 700 new objects start a collection (2,000 since Python 3.13), which scans the objects of
            # requests in progress in vain.
            gc.set_threshold(10_000)
            yield {"pool": pool}

    app = FastAPI(
        title="Tasks",
        version="1.0.0",
        description=docs.DESCRIPTION,
        openapi_tags=docs.TAGS,
        lifespan=lifespan,
        exception_handlers=errors.HANDLERS,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Not FastAPI's log events: it creates them in its own route handler and outside ServerErrorMiddleware.
        telemetry={"tracing": traced, "metrics": traced, "logs": False},
        generate_unique_id_function=lambda route: route.name,
    )
    dependencies = []
    if settings.auth_jwks_url and settings.auth_issuer and settings.auth_audience:
        # Imported only if used: its libraries take 0.1 s and 12 MB.
        from backend.core.auth import BearerAuth

        dependencies = [Depends(BearerAuth(str(settings.auth_jwks_url), settings.auth_issuer, settings.auth_audience))]
    add_routes(app, tasks.router, dependencies, AUTH_RESPONSES if dependencies else {})
    app.include_router(health.router)
    docs.add_pages(app)
    app.add_middleware(NormalizeMiddleware)
    app.add_middleware(errors.ServerErrorMiddleware)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],
        # With `*` and credentials, any page could read whatever its visitor's cookies give access to.
        allow_credentials="*" not in settings.cors_origins,
        expose_headers=EXPOSED_HEADERS.split(),
    )
    app.add_middleware(RequestLogMiddleware)
    return app


app = create_app()
