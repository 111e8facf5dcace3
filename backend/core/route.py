"""A FastAPI route that takes a request apart in one pass.

Most of what a request costs in FastAPI is spent on kinds of parameters and dependencies that this service has none of.
What is declared stays FastAPI's (parameters, `Depends`, OpenAPI, the fields' validation); only the walk through it per
request is this one. Its endpoints and dependencies are coroutines, dependencies take the request and nothing else, and
endpoints return a `Response`.
"""

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NoReturn

from fastapi import HTTPException, Request, Response
from fastapi._compat import ModelField
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

MAX_BODY_BYTES = 64 * 1024


class Route(APIRoute):
    """As APIRoute, with bodies in strict JSON of 64 KiB at most: 400 and 413 otherwise, 422 for what is not valid."""

    def __init__(self, path: str, endpoint: Callable[..., Coroutine[Any, Any, Response]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = self._answer
        self._parameters = [
            (location, field, field.alias.replace("_", "-") if location == "header" else field.alias)
            for location, fields in (
                ("path", self.dependant.path_params),
                ("query", self.dependant.query_params),
                ("header", self.dependant.header_params),
            )
            for field in fields
        ]

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        arguments: dict[str, object] = {}
        for dependency in self.dependant.dependencies:
            assert dependency.call is not None
            arguments[dependency.name or ""] = await dependency.call(request)
        arguments.pop("", None)
        if self.dependant.request_param_name:
            arguments[self.dependant.request_param_name] = request
        errors: list[dict[str, Any]] = []
        for location, field, key in self._parameters:
            source: Mapping[str, str] = getattr(request, _SOURCES[location])
            is_model = isinstance(field.field_info.annotation, type) and issubclass(
                field.field_info.annotation, BaseModel
            )
            raw = dict(source) if is_model else source.get(key)
            arguments[field.name] = _validated(field, raw, (location,) if is_model else (location, key), errors)
        for field in self.dependant.body_params:
            arguments[field.name] = _validated(field, await _body(request), ("body",), errors)
        if errors:
            raise RequestValidationError(errors)
        response = await self.endpoint(**arguments)
        await response(scope, receive, send)


_SOURCES = {"path": "path_params", "query": "query_params", "header": "headers"}


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
        async for chunk in request.stream():
            body += chunk
            size = len(body)
            if size > MAX_BODY_BYTES:
                break
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
