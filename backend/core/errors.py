"""Converts errors to responses: JSON with one human-readable sentence, and no internals."""

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
MAYBE_WRITTEN = "the change may have been written"
SCHEMA_MISMATCH = "The database's schema is not the one this version needs: run `alembic upgrade head`"

# SQLSTATE classes (PostgreSQL, appendix A) of errors that are due to the server's state, not to the statement:
# conflict with other transactions, resources, locks, operator intervention, system.
_UNAVAILABLE_CLASSES = ("40", "53", "55", "57", "58")
# ON CONFLICT resolves conflicts of the primary key only. While a migration builds the index of another key, two
# creations with one Idempotency-Key can conflict in that index.
_UNIQUE_VIOLATION = "23505"
_READ_ONLY = "25006"
_STATEMENT_TIMEOUT = "57014"
_SCHEMA_MISSING_CODES = ("42P01", "3F000")
# pydantic's own messages for these quote the input, show a regular expression, or mention Python.
_MESSAGES = {
    "uuid_parsing": "Input should be a valid UUID",
    "string_pattern_mismatch": "String has characters or a form that is not allowed",
    "model_attributes_type": "Input should be a JSON object, and be sent as application/json",
}
_SENTENCES = {
    "Not Found": "There is nothing at this path.",
    "Method Not Allowed": "This path does not support this method.",
}


def unavailable(reason: str, outcome: str = NOT_WRITTEN) -> HTTPException:
    """503 with `Retry-After`; `outcome` tells whether something may have been written."""
    return HTTPException(503, f"{reason}; {outcome}.", {"Retry-After": "1"})


def unauthorized(reason: str, code: str | None = None) -> HTTPException:
    """401 with the challenge of RFC 6750, section 3; `code` is its error code, None if there was no token."""
    return HTTPException(401, reason, {"WWW-Authenticate": f'Bearer error="{code}"' if code else "Bearer"})


def invalid(place: str, parameter: str, message: str) -> RequestValidationError:
    """422 for a parameter in the query or a header, for rules that no type can express."""
    return RequestValidationError([{"type": "value_error", "loc": (place, parameter), "msg": message}])


def from_sqlstate(error: psycopg2.Error, outcome: str) -> Exception:
    """The exception to raise for an error from PostgreSQL: 503, or the error itself (a bug, so 500)."""
    code = error.pgcode or ""
    if code in _SCHEMA_MISSING_CODES:
        return unavailable(SCHEMA_MISMATCH, outcome)
    if code == _STATEMENT_TIMEOUT:
        return unavailable("The database did not finish in time", outcome)
    if code.startswith(_UNAVAILABLE_CLASSES) or code in (_READ_ONLY, _UNIQUE_VIOLATION):
        return unavailable("The database is unavailable", outcome)
    return error


async def http_exception_handler(request: Request, error: StarletteHTTPException) -> Response:
    """Answer an HTTPException as JSON; a 405 lists all methods of the resource (RFC 9110, section 15.5.6)."""
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _allowed(request)
    return JSONResponse({"detail": _SENTENCES.get(error.detail, error.detail)}, error.status_code, headers)


def _allowed(request: Request) -> str:
    # Starlette lists the methods of the first route that matches the path; RFC 9110 requires those of the resource.
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    routes = (
        route for route in iter_route_contexts(request.app.routes) if route.methods and route.path_regex.match(path)
    )
    methods = {method for route in routes for method in route.methods or ()} or {"GET"}  # static files have no methods
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


async def validation_exception_handler(_: Request, error: RequestValidationError) -> Response:
    """Answer 422 without echoing input: a sentence in `detail`, and the location and reason of each error in `errors`.

    The response's length is bounded: unknown fields are ignored, and each declared one contributes at most one part.
    """
    errors = [{"type": e["type"], "loc": e["loc"], "msg": _MESSAGES.get(e["type"], e["msg"])} for e in error.errors()]
    return JSONResponse({"detail": "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in errors), "errors": errors}, 422)


HANDLERS: dict[Any, Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    StarletteHTTPException: http_exception_handler,
    RequestValidationError: validation_exception_handler,
}
"""The value of FastAPI's `exception_handlers`."""


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
            await JSONResponse({"detail": error.detail}, error.status_code, error.headers)(scope, receive, send)
        except Exception:  # a bug: it belongs in the log
            if started:
                raise
            logger.exception("unhandled error")
            await JSONResponse({"detail": "Something went wrong on our side."}, 500)(scope, receive, send)
