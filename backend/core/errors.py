"""The one place where errors become responses: JSON, with a sentence for people and nothing of the inside."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg2
from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

NOT_WRITTEN = "nothing was written"
SCHEMA = "The database's schema is not the one this version needs: run `alembic upgrade head`"
MAYBE_WRITTEN = "it may have been written or not"

# SQLSTATE classes (PostgreSQL, appendix A) that speak of the server's state and not of the statement: connection,
# a conflict with other transactions, resources, locks, operator intervention, the system; and a server that is
# read-only while another takes over.
_UNAVAILABLE_CLASSES = ("08", "40", "53", "55", "57", "58")
# ON CONFLICT resolves conflicts of the primary key only. While a migration builds the index of another key, two
# creations with one Idempotency-Key can meet in that index.
_UNIQUE_VIOLATION = "23505"
_READ_ONLY = "25006"
_STATEMENT_TIMEOUT = "57014"
# pydantic's sentence for a UUID quotes a character of the input; that for a body speaks of Python.
_MESSAGES = {
    "uuid_parsing": "Input should be a valid UUID",
    "model_attributes_type": "Input should be a JSON object, and be sent as application/json",
}
_SCHEMA_MISSING = ("42P01", "3F000")


def unavailable(reason: str, outcome: str = NOT_WRITTEN) -> HTTPException:
    """503: the service works, the database does not; `outcome` says what became of a write."""
    return HTTPException(503, f"{reason}; {outcome}.", {"Retry-After": "1"})


def unauthorized(reason: str, code: str | None = None) -> HTTPException:
    """401 with the challenge of RFC 6750, section 3, whose error codes say what was wrong with a token."""
    return HTTPException(401, reason, {"WWW-Authenticate": f'Bearer error="{code}"' if code else "Bearer"})


def invalid(place: str, parameter: str, message: str) -> RequestValidationError:
    """422 for a parameter in the query or a header, for rules that no type can express."""
    return RequestValidationError([{"type": "value_error", "loc": (place, parameter), "msg": message}])


def from_sqlstate(error: psycopg2.Error, outcome: str) -> Exception:
    """What a client is told of an error PostgreSQL answered with: 503, or the error itself (a bug, so 500)."""
    code = error.pgcode or ""
    if code in _SCHEMA_MISSING:
        return unavailable(SCHEMA, outcome)
    if code == _STATEMENT_TIMEOUT:
        return unavailable("The database did not finish in time", outcome)
    if code.startswith(_UNAVAILABLE_CLASSES) or code in (_READ_ONLY, _UNIQUE_VIOLATION):
        return unavailable("The database cannot answer now", outcome)
    return error


def _error(status: int, detail: object, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)


async def http_exception_handler(request: Request, error: StarletteHTTPException) -> Response:
    """Answer an HTTPException as JSON; a 405 lists every method of the resource in `Allow` (RFC 9110, 15.5.6)."""
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _allowed(request)
    return _error(error.status_code, error.detail, headers)


def _allowed(request: Request) -> str:
    # Starlette names the methods of the first route that matches the path, RFC 9110 wants those of the resource.
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    routes = (
        route for route in iter_route_contexts(request.app.routes) if route.methods and route.path_regex.match(path)
    )
    methods = {method for route in routes for method in route.methods or ()}
    return ", ".join(sorted(methods or {"GET", "HEAD"}))  # nothing but static files is left


async def validation_exception_handler(_: Request, error: RequestValidationError) -> Response:
    """Answer 422 without repeating any input."""
    return _error(422, [{"type": e["type"], "loc": e["loc"], "msg": _message(e)} for e in error.errors()])


def _message(error: dict[str, object]) -> object:
    return _MESSAGES.get(str(error["type"]), error["msg"])


HANDLERS: dict[Any, Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    StarletteHTTPException: http_exception_handler,
    RequestValidationError: validation_exception_handler,
}
"""As FastAPI's `exception_handlers` takes them."""


class ServerErrorMiddleware:
    """ASGI middleware that answers an unexpected exception with a generic 500, and a cancelled request with 503.

    Starlette's own is outside all other middleware, so its response lacks CORS headers and X-Request-ID.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = scope["type"] != "http"

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            if started:
                raise
            # uvicorn cancels the requests that are still running when its grace period is over.
            outcome = NOT_WRITTEN if scope["method"] in ("GET", "HEAD", "OPTIONS") else MAYBE_WRITTEN
            error = unavailable("The service is shutting down", outcome)
            await _error(error.status_code, error.detail, dict(error.headers or {}))(scope, receive, send)
        except Exception:  # a bug: it belongs in the log
            if started:
                raise
            logger.exception("unhandled error")
            await _error(500, "Something went wrong on our side.")(scope, receive, send)
