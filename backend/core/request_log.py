"""Request ids and the line each request leaves in the log."""

import json
import logging
import logging.config
import re
import time
from contextvars import ContextVar
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given if _ACCEPTED.fullmatch(given) else uuid4().hex.encode()
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
                route = getattr(scope.get("route"), "path", "-")
                took = (time.perf_counter() - started) * 1000
                logger.info(
                    "%s %s %d %.1f ms", scope["method"], route, status, took,
                    extra={"method": scope["method"], "route": route, "status": status, "milliseconds": round(took, 1)},
                )  # fmt: skip


class _Readable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.request_id = _request_id.get()
        return super().format(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": _request_id.get(),
        }
        for name in ("method", "route", "status", "milliseconds"):
            if hasattr(record, name):
                fields[name] = getattr(record, name)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


_Json.converter = time.gmtime


def configure_logging(level: str, *, as_json: bool) -> None:
    """Send all of the process's logging to standard error, as JSON lines or for the eye."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if as_json else _Readable("%(asctime)s %(levelname)-7s %(message)s [%(request_id)s]"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # Its line says less than ours; without a handler uvicorn does not make it.
    logging.getLogger("uvicorn.access").handlers.clear()
    logging.getLogger("uvicorn.access").propagate = False
