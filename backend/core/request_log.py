"""Request ids and the line each request leaves in the log."""

import logging
import os
import re
import time
from contextvars import ContextVar

from pythonjsonlogger.json import JsonFormatter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.core.config import Settings

logger = logging.getLogger(__name__)

_request_id: ContextVar[str] = ContextVar("request_id", default="-")
_ACCEPTED = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestLog:
    """ASGI middleware: gives each request an id, sent back as `X-Request-ID`, and a line in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = os.urandom(16).hex().encode()
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _ACCEPTED.fullmatch(value):
                request_id = value
        _request_id.set(request_id.decode())
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if logger.isEnabledFor(logging.INFO):
                method, route = scope["method"], getattr(scope.get("route"), "path", "-")
                milliseconds = round((time.perf_counter() - started) * 1000, 1)
                fields = {"method": method, "route": route, "status": status, "milliseconds": milliseconds}
                logger.info("%s %s %d %.1f ms", method, route, status, milliseconds, extra=fields)


def _complete(record: logging.LogRecord) -> bool:
    record.request_id = _request_id.get()
    record.__dict__.pop("color_message", None)  # uvicorn's, for its own formatter
    return True


def configure_logging(settings: Settings) -> None:
    """Send all of the process's logging to standard error: as JSON lines in production, else for the eye."""
    handler = logging.StreamHandler()
    handler.addFilter(_complete)
    handler.setFormatter(
        JsonFormatter(
            ["levelname", "name", "message", "request_id"], timestamp="time", rename_fields={"levelname": "level"}
        )
        if settings.environment == "production"
        else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s [%(request_id)s]")
    )
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        # uvicorn's access line says less than ours; it makes none for which there is no handler.
        logging.getLogger(name).propagate = name != "uvicorn.access"
