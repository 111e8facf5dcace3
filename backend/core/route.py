"""A FastAPI route that takes a request apart in one pass.

Most of what a request costs in FastAPI is spent on kinds of parameters and dependencies that this service has none of.
What is declared stays FastAPI's (parameters, `Depends`, OpenAPI, the fields' validation); only the walk through it per
request is this one. Endpoints and dependencies are coroutines, a dependency takes the request and nothing else, the
query is one model, the body is another, and an endpoint returns a `Response`.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import HTTPException, Request, Response
from fastapi._compat import ModelField
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 10


class Route(APIRoute):
    """As APIRoute, with bodies in strict JSON of 64 KiB at most that arrive within ten seconds.

    400, 413 and 408 otherwise, 422 for what is not valid.
    """

    def __init__(self, path: str, endpoint: Callable[..., Coroutine[Any, Any, Response]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        declared = self.dependant
        arguments: dict[str, object] = {}
        for dependency in declared.dependencies:
            assert dependency.call is not None
            result = await dependency.call(request)
            if dependency.name:
                arguments[dependency.name] = result
        if declared.request_param_name:
            arguments[declared.request_param_name] = request
        errors: list[dict[str, Any]] = []
        for field in declared.path_params:
            raw = request.path_params[field.alias]
            arguments[field.name] = _validated(field, raw, ("path", field.alias), errors)
        for field in declared.header_params:
            name = field.alias.replace("_", "-")
            lines = request.headers.getlist(name)
            # Several lines are one list (RFC 9110, section 5.2).
            arguments[field.name] = _validated(field, ", ".join(lines) if lines else None, ("header", name), errors)
        for field in declared.query_params:
            arguments[field.name] = _validated(field, dict(request.query_params), ("query",), errors)
        for field in declared.body_params:
            arguments[field.name] = _validated(field, await _body(request), ("body",), errors)
        if errors:
            raise RequestValidationError(errors)
        response = await self.endpoint(**arguments)
        await response(scope, receive, send)


def _validated(field: ModelField, raw: object, location: tuple[str, ...], errors: list[dict[str, Any]]) -> object:
    if raw is None:
        if field.field_info.is_required():
            errors.append({"type": "missing", "loc": location, "msg": "Field required"})
        return field.get_default()
    value, found = field.validate(raw, {}, loc=location)
    errors.extend(found)
    return value


async def _body(request: Request) -> object:
    """The body as JSON (RFC 8259), as bytes where it does not say that it is JSON, or None where there is none."""
    size = int(request.headers.get("content-length", 0))
    body = b""
    if size <= MAX_BODY_BYTES:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    size = len(body)
                    if size > MAX_BODY_BYTES:
                        break
        except TimeoutError:
            raise HTTPException(408, "The body did not arrive in time.", {"Connection": "close"}) from None
        except ClientDisconnect:
            raise HTTPException(400, "The body was cut off.") from None
    if size > MAX_BODY_BYTES:
        raise HTTPException(413, "The body is larger than 64 KiB.")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not body or not media_type.startswith("application/") or not media_type.endswith(("/json", "+json")):
        return body or None
    try:
        value: object = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is not valid JSON.") from None
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
