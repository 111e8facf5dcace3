"""Request ids and the line each request leaves in the log, which looks like all other lines."""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.core.config import Settings

logger = logging.getLogger(__name__)

_request_id: ContextVar[str] = ContextVar("request_id", default="-")
_ACCEPTED = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class LogFormatter(logging.Formatter):
    """A log line: JSON in production, else for the eye; always with the id of the request it belongs to."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._as_json = settings.environment == "production"

    def line(self, level: str, message: str, fields: Mapping[str, object]) -> str:
        """The line for `message`; `fields` go into the JSON."""
        now, request_id = datetime.now(UTC).isoformat(timespec="milliseconds"), _request_id.get()
        if self._as_json:
            return json.dumps({"time": now, "level": level, "message": message, "request_id": request_id, **fields})
        exception = f"\n{fields['exception']}" if "exception" in fields else ""
        return f"{now[11:23]} {level:8} {message} [{request_id}]{exception}"

    def format(self, record: logging.LogRecord) -> str:
        fields = {"logger": record.name}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return self.line(record.levelname.lower(), record.getMessage(), fields)


class RequestLogMiddleware:
    """ASGI middleware: gives each request an id, sent back as `X-Request-ID`, and a line in the log."""

    def __init__(self, app: ASGIApp, lines: LogFormatter) -> None:
        self._app = app
        self._lines = lines

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
                took = round((time.perf_counter() - started) * 1000, 1)
                fields = {"method": method, "route": route, "status": status, "milliseconds": took}
                # Past the logging module, whose way to the same line takes as long as a fifth of the request.
                sys.stderr.write(self._lines.line("info", f"{method} {route} {status} {took} ms", fields) + "\n")


def configure_logging(settings: Settings) -> None:
    """Send all of the process's logging to standard error, in `LogFormatter`."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(settings))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for name in ("httpx", "alembic.runtime.plugins"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        # uvicorn's access line says less than ours; it makes none for which there is no handler.
        logging.getLogger(name).propagate = name != "uvicorn.access"
