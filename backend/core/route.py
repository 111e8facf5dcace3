"""A FastAPI route that validates a request in a single pass.

It is faster than FastAPI's own handler because it supports only some kinds of parameters and dependencies. Any other
declaration that FastAPI allows raises a TypeError when the route is declared.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterator, Sequence
from inspect import iscoroutinefunction, signature
from typing import Annotated, Any, NoReturn, get_args, get_origin, get_type_hints

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response, params
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import AliasChoices, AliasPath, BaseModel
from starlette.types import Receive, Scope, Send

MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT = 10
# Attributes of FastAPI's Dependant that the route does not support.
_UNSUPPORTED = (
    "background_tasks_param_name", "cookie_params", "http_connection_param_name", "response_param_name",
    "security_scopes_param_name", "websocket_param_name",
)  # fmt: skip
_UNSUPPORTED_IN_DEPENDENCIES = (
    *_UNSUPPORTED, "body_params", "concurrency", "header_params", "own_oauth_scopes", "parent_oauth_scopes",
    "path_params", "query_params", "scope",
)  # fmt: skip


def _reject_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# Not None, which is the value of the body `null`.
_ABSENT: object = object()
_JSON = json.JSONDecoder(parse_constant=_reject_constant)


class StrictJSONRequest(Request):
    """A request whose body is strict JSON (RFC 8259) of at most 64 KiB that arrives within ten seconds.

    Reading it raises HTTPException 400, 408 or 413 otherwise.
    """

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._body = await _read(self)
        return self._body

    async def stream(self) -> AsyncGenerator[bytes, None]:
        yield await self.body()

    async def json(self) -> object:
        return _parse(await self.body())

    async def is_disconnected(self) -> bool:
        # Starlette's method takes the next message, and would lose a part of a body that has not been read yet.
        is_unread = _announces_body(self) and not hasattr(self, "_body")
        return not is_unread and await super().is_disconnected()


async def _read_content(request: Request) -> object:
    """The JSON value of the body, or _ABSENT without a body, or bytes if the content type is not JSON."""
    body = await request.body()
    if not body:
        return _ABSENT
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type.startswith("application/") and media_type.endswith(("/json", "+json"))
    return _parse(body) if is_json else body


def _parse(body: bytes) -> object:
    try:
        value: object = _JSON.decode(body.decode())
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is not valid JSON.") from None
    return value


def _announces_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


async def _read(request: Request) -> bytes:
    if not _announces_body(request):
        return b""
    length = request.headers.get("content-length", "0")
    # A longer number is too large in any case, and int() refuses thousands of digits.
    announced = int(length) if length.isdecimal() and len(length) < 19 else MAX_BODY_BYTES + 1
    body, more = b"", announced <= MAX_BODY_BYTES
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            while more and len(body) <= MAX_BODY_BYTES:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise HTTPException(400, "The body is incomplete.")
                body += message.get("body", b"")
                more = message.get("more_body", False)
    except TimeoutError:
        raise HTTPException(408, "The body did not arrive in time.", {"Connection": "close"}) from None
    if max(announced, len(body)) > MAX_BODY_BYTES:
        raise HTTPException(413, "The body is larger than 64 KiB.")
    if not body:
        # A parser may lose a body, as uvicorn's httptools protocol does after `Upgrade`. A request that lost its body
        # must not toggle a task.
        raise HTTPException(400, "The body is missing, although the headers announce one.", {"Connection": "close"})
    return body


class StrictJSONRoute(APIRoute):
    """An APIRoute for coroutine functions that return a Response. It reads bodies as StrictJSONRequest does.

    Parameters are scalars in the path or in headers, one model for the query and one for the body. Dependencies are
    coroutine functions that take the request, or what other dependencies return, and run before the body is read.

    `serve` handles the requests if `add_routes` declared the route, without spans for dependencies and endpoints in
    traces. Otherwise, with `max_body_size`, and while the app has `dependency_overrides`, FastAPI's own handler does.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        if unsupported := list(_unsupported(self)):
            raise TypeError(f"{self.name}: StrictJSONRoute does not support {', '.join(unsupported)}")
        self._path_fields = [(field, field.validation_alias or field.alias) for field in self.dependant.path_params]
        self._header_fields = [(field, field.validation_alias or field.alias) for field in self.dependant.header_params]
        self._fastapi_app = self.app

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictJSONRequest(request.scope, request.receive, request._send))

        return handle

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI app of a route of the app itself; it validates a request in a single pass.

        FastAPI's has exit stacks for dependencies with `yield`, which are not supported, and handles exceptions, which
        the app's ExceptionMiddleware does anyway.
        """
        if getattr(self.dependency_overrides_provider, "dependency_overrides", None):
            await self._fastapi_app(scope, receive, send)
            return
        response = await self._respond(StrictJSONRequest(scope, receive, send))
        await response(scope, receive, send)

    async def _respond(self, request: StrictJSONRequest) -> Response:
        arguments = await _call_dependencies(self.dependant, request, {})
        errors: list[dict[str, Any]] = []

        def validate(field: Any, raw: object, *location: str) -> None:
            if raw is _ABSENT:
                if field.field_info.is_required():
                    errors.append({"type": "missing", "loc": location, "msg": "Field required"})
                arguments[field.name] = field.get_default()
            else:
                arguments[field.name], found = field.validate(raw, {}, loc=location)
                errors.extend(found)

        for field, name in self._path_fields:
            validate(field, request.path_params[name], "path", name)
        for field, name in self._header_fields:
            lines = request.headers.getlist(name)
            # Several lines are one list (RFC 9110, section 5.2).
            validate(field, ", ".join(lines) if lines else _ABSENT, "header", name)
        for field in self.dependant.query_params:
            validate(field, dict(request.query_params), "query")
        for field in self.dependant.body_params:
            validate(field, await _read_content(request), "body")
        if errors:
            raise RequestValidationError(errors)
        response: Response = await self.endpoint(**arguments)
        return response


def add_routes(
    app: FastAPI, router: APIRouter, dependencies: Sequence[params.Depends], responses: dict[int | str, dict[str, Any]]
) -> None:
    """Declare the routes of `router` on the app itself, as StrictJSONRoutes.

    `dependencies` run before those of each route; `responses` are added to those of each route. Unlike
    `include_router`, this does not match every request twice: the second match costs as much as the rest of the
    routing.
    """
    options = signature(APIRouter.add_api_route).parameters.keys() - {"self", "route_class_override"}
    # FastAPI keeps the routes of `router.frontend` in a list of their own.
    for route in [*router.routes, *router._low_priority_routes]:
        if type(route) not in (APIRoute, StrictJSONRoute):
            raise TypeError(f"add_routes does not support {type(route).__name__}")
        declared = {name: getattr(route, name) for name in options}
        declared["dependencies"] = [*dependencies, *declared["dependencies"]]
        declared["responses"] = {**responses, **declared["responses"]}
        app.router.add_api_route(**declared, route_class_override=StrictJSONRoute)
        added = app.router.routes[-1]
        if isinstance(added, StrictJSONRoute) and added.max_body_size is None:
            added.app = added.serve
    has_lifespan = type(router.lifespan_context) is not type(APIRouter().lifespan_context)
    if has_lifespan or router.on_startup or router.on_shutdown:
        raise TypeError("add_routes does not support the lifespan of a router")


async def _call_dependencies(
    dependant: Dependant, request: Request, results: dict[object, object]
) -> dict[str, object]:
    """The arguments of `dependant` that are the request or results of its dependencies."""
    arguments: dict[str, object] = {}
    for dependency in dependant.dependencies:
        call = dependency.call
        assert call is not None
        values = await _call_dependencies(dependency, request, results)
        result = results[call] if dependency.use_cache and call in results else await call(**values)
        results.setdefault(call, result)
        if dependency.name:
            arguments[dependency.name] = result
    if dependant.request_param_name:
        arguments[dependant.request_param_name] = request
    return arguments


def _unsupported(route: APIRoute) -> Iterator[str]:
    dependant = route.dependant
    yield from (name for name in _UNSUPPORTED if getattr(dependant, name))
    returned = get_type_hints(route.endpoint).get("return")
    headers = [field.field_info for field in dependant.header_params]
    models = [field.field_info.annotation for field in dependant.query_params]
    queried = [info for model in models for info in getattr(model, "model_fields", {}).values()]
    bodies = [field.field_info for field in dependant.body_params]
    found = {
        "an endpoint that is not a coroutine function": not iscoroutinefunction(route.endpoint),
        "an endpoint that is not annotated to return a Response": not _is_subclass(returned, Response),
        "strict_content_type=False": route.strict_content_type is False,
        "convert_underscores=False": not all(getattr(info, "convert_underscores", True) for info in headers),
        "alias choices in headers": any(isinstance(i.validation_alias, AliasChoices | AliasPath) for i in headers),
        "validate_default=True": any(info.validate_default for info in headers + bodies),
        "lists or models in headers or the query": not all(_is_scalar(info.annotation) for info in headers + queried),
        'extra="allow" in the query': any(getattr(m, "model_config", {}).get("extra") == "allow" for m in models),
        "query parameters other than one model": len(models) > 1 or not all(_is_subclass(m, BaseModel) for m in models),
        "several bodies": len(bodies) > 1,
        "an embedded body or a form": any(isinstance(i, params.Form) or getattr(i, "embed", None) for i in bodies),
    }
    yield from (name for name, is_found in found.items() if is_found)
    yield from _unsupported_dependencies(dependant.dependencies)


def _unsupported_dependencies(dependencies: Sequence[Dependant]) -> Iterator[str]:
    for dependency in dependencies:
        call = dependency.call
        name = getattr(call, "__name__", type(call).__name__)
        yield from (
            f"{kind} of dependency {name}" for kind in _UNSUPPORTED_IN_DEPENDENCIES if getattr(dependency, kind)
        )
        if isinstance(call, type) or not any(map(iscoroutinefunction, (call, getattr(call, "__call__", None)))):  # noqa: B004  # tests for a coroutine function, not for being callable
            yield f"dependency {name}, which is not a coroutine function"
        yield from _unsupported_dependencies(dependency.dependencies)


def _is_subclass(annotation: object, parent: type) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, parent)


def _is_scalar(annotation: object) -> bool:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _is_scalar(get_args(annotation)[0])
    if isinstance(origin, type) and issubclass(origin, Collection):
        return False
    if isinstance(annotation, type):
        return issubclass(annotation, str | bytes) or not issubclass(annotation, Collection | BaseModel)
    return all(map(_is_scalar, get_args(annotation)))
