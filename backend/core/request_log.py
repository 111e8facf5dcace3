"""Request ids, the log line of each request, and a log handler that writes to standard error from a thread."""

import asyncio
import json
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache

from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.core.config import Settings

logger = logging.getLogger(__name__)

MAX_LINES = 10_000
# Minimum seconds between two writes to standard error.
WRITE_INTERVAL = 0.02
FLUSH_SECONDS = 0.25
LINE = "%(method)s %(route)s %(status)d %(milliseconds)s ms %(client)s"

_request_id: ContextVar[str] = ContextVar("request_id", default="-")
_VALID_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


@lru_cache(maxsize=1)
def _format_second(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat()[:19]


class LogFormatter(logging.Formatter):
    """Formats records as JSON or as text, with the id of the request that each belongs to.

    If the argument of a message is a dictionary, its items become fields of the JSON.
    """

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        timestamp = f"{_format_second(int(record.created))}.{int(record.msecs):03}+00:00"
        level, message, request_id = record.levelname.lower(), record.getMessage(), _request_id.get()
        exception = self.formatException(record.exc_info) if record.exc_info else None
        if not self._as_json:
            return f"{timestamp[11:23]} {level:8} {message} [{request_id}]" + (f"\n{exception}" if exception else "")
        line = {"time": timestamp, "level": level, "message": message, "request_id": request_id, "logger": record.name}
        if exception:
            line["exception"] = exception
        if isinstance(record.args, dict):
            line |= {name: value for name, value in record.args.items() if name not in line}
        try:
            return to_json(line, fallback=str, inf_nan_mode="null").decode()
        except ValueError:
            # Three times as slow, but it can write lone surrogates.
            return json.dumps(line, separators=(",", ":"), default=str)


class LogHandler(logging.Handler):
    """Writes to standard error from a thread. Lines that cannot be written are dropped, and their number is logged."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._wake, self._flush_requested = threading.Event(), threading.Event()
        self._writing = self._blocked = False
        # sys.__stderr__ is None if standard error was closed at the start: another file may have its descriptor.
        self._file = sys.__stderr__.fileno() if sys.__stderr__ else os.open(os.devnull, os.O_WRONLY)
        threading.Thread(target=self._write, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._lines) < MAX_LINES:
            try:
                self._lines.append(self.format(record))
            except Exception:  # noqa: BLE001  # a record that cannot be formatted must not fail the request
                self.handleError(record)
            if not self._wake.is_set():
                self._wake.set()
        else:
            self._dropped += 1
        # A worker of uvicorn that is stopped while it loads the application dies right after its last line, without
        # running exit handlers. Flushing blocks for at most FLUSH_SECONDS.
        if record.name.startswith("uvicorn"):
            self.flush()

    def flush(self) -> None:
        """Wait until all lines are written, for at most `FLUSH_SECONDS`."""
        self._flush_requested.set()
        deadline = time.monotonic() + FLUSH_SECONDS
        while (self._lines or self._writing) and not self._blocked:
            time.sleep(0.001)
            self._blocked = time.monotonic() > deadline

    def _write(self) -> None:
        while self._wake.wait():
            self._wake.clear()
            self._writing = True
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            data = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
            try:
                while data:
                    data = data[os.write(self._file, data) :]
            except OSError:
                self._dropped += len(lines)
            self._writing = self._blocked = False
            if self._dropped and not data:
                logger.warning("%d log lines were dropped: standard error was full or closed", self._dropped)
                self._dropped = 0
            # Write many lines per wake-up, because each wake-up takes time from the event loop.
            self._flush_requested.wait(WRITE_INTERVAL)
            self._flush_requested.clear()


class RequestLogMiddleware:
    """ASGI middleware that gives each request an id, returned as `X-Request-ID`, and a line in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, _without_traceback(send) if scope["type"] == "lifespan" else send)
            return
        request_id = os.urandom(16).hex().encode()
        for name, value in scope.get("headers", ()):
            if name == b"x-request-id" and _VALID_ID.fullmatch(value):
                request_id = value
        _request_id.set(request_id.decode())
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # A new list: otherwise a Response that is sent twice would collect ids in its own.
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", request_id)]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if logger.isEnabledFor(logging.INFO):
                method, route = scope["method"], getattr(scope.get("route"), "path", "-")
                took = round((time.perf_counter() - started) * 1000, 1)
                client = (scope.get("client") or "-")[0]
                fields = {"method": method, "route": route, "status": status, "milliseconds": took, "client": client}
                # logger.info() would also look up its caller, which takes up to a third more time.
                logger.handle(logger.makeRecord(logger.name, logging.INFO, "", 0, LINE, (fields,), None))


def _without_traceback(send: Send) -> Send:
    async def send_lifespan(message: Message) -> None:
        # Starlette would add a traceback: useless after a second Ctrl-C or fail_startup(), which prints the reason.
        if isinstance(sys.exception(), SystemExit | asyncio.CancelledError):
            message = {"type": message["type"]}
        await send(message)

    return send_lifespan


def configure_logging(settings: Settings) -> None:
    """Send all logging of the process to standard error, unless the root logger has handlers already."""
    # The formatter shows none of these, and collecting them takes longer than the rest (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.setLevel(settings.log_level.upper())
    if not root.handlers:
        root.addHandler(LogHandler())
    for handler in root.handlers:
        if isinstance(handler, LogHandler):
            handler.setFormatter(LogFormatter(as_json=settings.environment == "production"))
    for name in ("httpx", "alembic.runtime.plugins"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        # uvicorn writes no access log without a handler; the line of RequestLogMiddleware replaces it.
        logging.getLogger(name).propagate = name != "uvicorn.access"
