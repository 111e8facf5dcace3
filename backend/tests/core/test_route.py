"""Each declaration that FastAPI allows is supported, or refused when the route is declared; none is ignored."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Cookie,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    Security,
)
from fastapi.security import SecurityScopes
from pydantic import AliasChoices, BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection

from backend.core.db import Session, get_session
from backend.core.route import StrictJSONRoute, add_routes
from backend.main import create_app
from backend.tests.errors import assert_error
from backend.tests.serving import in_thread, settings


class Model(BaseModel):
    value: int = 0


class ModelWithList(BaseModel):
    values: list[int] = []


class ModelWithExtra(BaseModel):
    model_config = {"extra": "allow"}


async def of_request(request: Request) -> str:
    return request.url.path


def sync_dependency(request: Request) -> None: ...


async def with_parameter(value: int) -> None: ...


async def with_header(value: Annotated[str, Header()]) -> None: ...


async def with_body(value: Model) -> None: ...


async def with_yield(request: Request) -> AsyncIterator[None]:
    yield


async def with_scopes(scopes: SecurityScopes) -> None: ...


async def with_response(response: Response) -> None: ...


class WithAsyncCall:
    async def __call__(self) -> None: ...


async def on_a_sync_one(value: Annotated[None, Depends(sync_dependency)]) -> None: ...


async def sync_depends(value: Annotated[None, Depends(sync_dependency)]) -> Response:
    return Response()


async def class_depends(value: Annotated[WithAsyncCall, Depends(WithAsyncCall)]) -> Response:
    return Response()


async def parameter_depends(value: Annotated[None, Depends(with_parameter)]) -> Response:
    return Response()


async def header_depends(value: Annotated[None, Depends(with_header)]) -> Response:
    return Response()


async def body_depends(value: Annotated[None, Depends(with_body)]) -> Response:
    return Response()


async def yield_depends(value: Annotated[None, Depends(with_yield)]) -> Response:
    return Response()


async def scopes_depends(value: Annotated[None, Security(with_scopes)]) -> Response:
    return Response()


async def security_scopes(value: Annotated[None, Security(of_request, scopes=["read"])]) -> Response:
    return Response()


async def scope_depends(value: Annotated[None, Depends(of_request, scope="request")]) -> Response:
    return Response()


async def response_depends(value: Annotated[None, Depends(with_response)]) -> Response:
    return Response()


async def nested_sync_depends(value: Annotated[None, Depends(on_a_sync_one)]) -> Response:
    return Response()


async def cookie(value: Annotated[str, Cookie()]) -> Response:
    return Response()


async def plain_query(value: int = 0) -> Response:
    return Response()


async def query_list(values: Annotated[list[int], Query()]) -> Response:
    return Response()


async def two_queries(a: Annotated[Model, Query()], b: Annotated[Model, Query()]) -> Response:
    return Response()


async def list_in_query(query: Annotated[ModelWithList, Query()]) -> Response:
    return Response()


async def header_model(value: Annotated[Model, Header()]) -> Response:
    return Response()


async def header_list(values: Annotated[list[str] | None, Header()] = None) -> Response:
    return Response()


async def underscores(x_y: Annotated[str, Header(convert_underscores=False)]) -> Response:
    return Response()


async def alias_choices(value: Annotated[str, Header(validation_alias=AliasChoices("X-A", "X-B"))]) -> Response:
    return Response()


async def validated_default(value: Annotated[int, Header(validate_default=True)] = 7) -> Response:
    return Response()


async def extra_in_query(query: Annotated[ModelWithExtra, Query()]) -> Response:
    return Response()


async def two_bodies(a: Model, b: Model) -> Response:
    return Response()


async def embedded(value: Annotated[Model, Body(embed=True)]) -> Response:
    return Response()


async def background(tasks: BackgroundTasks) -> Response:
    return Response()


async def response_parameter(response: Response) -> Response:
    return Response()


async def connection(connection: HTTPConnection) -> Response:
    return Response()


def sync_endpoint() -> Response:
    return Response()


async def returns_a_dict() -> dict[str, str]:
    return {}


async def returns_anything(): ...  # type: ignore[no-untyped-def]  # the test needs the missing annotation


@pytest.mark.parametrize(
    ("endpoint", "named"),
    [
        (sync_depends, "sync_dependency, which is not a coroutine function"),
        (class_depends, "WithAsyncCall, which is not a coroutine function"),
        (parameter_depends, "query_params of dependency with_parameter"),
        (header_depends, "header_params of dependency with_header"),
        (body_depends, "body_params of dependency with_body"),
        (yield_depends, "with_yield, which is not a coroutine function"),
        (scopes_depends, "security_scopes_param_name of dependency with_scopes"),
        (security_scopes, "own_oauth_scopes of dependency of_request"),
        (scope_depends, "scope of dependency of_request"),
        (response_depends, "response_param_name of dependency with_response"),
        (nested_sync_depends, "sync_dependency, which is not a coroutine function"),
        (cookie, "cookie_params"),
        (plain_query, "query parameters other than one model"),
        (query_list, "query parameters other than one model"),
        (two_queries, "query parameters other than one model"),
        (list_in_query, "lists or models in headers or the query"),
        (header_model, "lists or models in headers or the query"),
        (header_list, "lists or models in headers or the query"),
        (underscores, "convert_underscores=False"),
        (alias_choices, "alias choices in headers"),
        (validated_default, "validate_default=True"),
        (extra_in_query, 'extra="allow" in the query'),
        (two_bodies, "several bodies"),
        (embedded, "an embedded body or a form"),
        (background, "background_tasks_param_name"),
        (response_parameter, "response_param_name"),
        (connection, "http_connection_param_name"),
        (sync_endpoint, "an endpoint that is not a coroutine function"),
        (returns_a_dict, "an endpoint that is not annotated to return a Response"),
        (returns_anything, "an endpoint that is not annotated to return a Response"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_unsupported_declaration_is_refused_by_name(endpoint: Callable[..., Any], named: str) -> None:
    router = APIRouter(route_class=StrictJSONRoute)
    with pytest.raises(TypeError, match=f"{endpoint.__name__}: StrictJSONRoute does not support .*{named}"):
        router.post("/")(endpoint)


def test_an_unsupported_dependency_of_the_router_is_refused() -> None:
    router = APIRouter(route_class=StrictJSONRoute, dependencies=[Depends(sync_dependency)])
    with pytest.raises(TypeError, match="sync_dependency"):
        router.get("/")(ok)


def test_a_lax_content_type_is_refused() -> None:
    with pytest.raises(TypeError, match="strict_content_type=False"):
        APIRouter(route_class=StrictJSONRoute, strict_content_type=False).get("/")(ok)


def test_what_add_routes_would_leave_out_is_refused_by_name(tmp_path: Path) -> None:
    nested = APIRouter()
    nested.include_router(APIRouter(), dependencies=[Depends(refuse)])
    mounted = APIRouter()
    mounted.mount("/", FastAPI())
    with_frontend = APIRouter()
    with_frontend.frontend("/ui", directory=tmp_path)
    with_lifespan = APIRouter(lifespan=lambda _: nullcontext())
    with_handler = APIRouter(on_startup=[ok])
    of_subclass = APIRouter(route_class=type("Subclass", (StrictJSONRoute,), {}))
    of_subclass.get("/")(ok)
    for router, named in (
        (nested, "IncludedRouter"),
        (mounted, "Mount"),
        (with_frontend, "FrontendRouteGroup"),
        (with_lifespan, "lifespan"),
        (with_handler, "lifespan"),
        (of_subclass, "Subclass"),
    ):
        with pytest.raises(TypeError, match=f"add_routes does not support .*{named}"):
            add_routes(FastAPI(), router, [], {})


def send(app: FastAPI, method: str, path: str, **request: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(once())


async def ok() -> Response:
    return Response("ok")


async def refuse(path: Annotated[str, Depends(of_request)]) -> None:
    raise HTTPException(403, f"Not for {path}.")


@pytest.mark.parametrize("where", ["app", "router", "add_routes", "include_router", "endpoint"])
def test_dependencies_run_wherever_they_are_declared(where: str) -> None:
    denied = [Depends(refuse)]

    def given(here: str) -> list[Any]:
        return denied if where == here else []

    app = FastAPI(dependencies=given("app"))
    router = APIRouter(route_class=StrictJSONRoute, dependencies=given("router"))
    router.get("/path", dependencies=given("endpoint"))(ok)
    if where == "include_router":
        app.include_router(router, dependencies=denied)
    else:
        add_routes(app, router, given("add_routes"), {})
    assert send(app, "GET", "/path").json() == {"detail": "Not for /path."}


def test_a_dependency_runs_once_per_request_and_after_what_it_depends_on() -> None:
    calls: list[str] = []

    async def first() -> int:
        calls.append("first")
        return 1

    async def second(one: Annotated[int, Depends(first)], request: Request) -> int:
        calls.append("second")
        return one + 1

    app = FastAPI()
    router = APIRouter(route_class=StrictJSONRoute)

    @router.get("/")
    async def endpoint(two: Annotated[int, Depends(second)], one: Annotated[int, Depends(first)]) -> Response:
        return Response(f"{one} {two}")

    add_routes(app, router, [], {})
    assert send(app, "GET", "/").text == "1 2"
    assert calls == ["first", "second"]


@pytest.mark.parametrize("include", [False, True], ids=["add_routes", "include_router"])
def test_a_dependency_without_a_cache_runs_for_each_use(include: bool) -> None:
    calls: list[int] = []

    async def count() -> int:
        calls.append(len(calls))
        return len(calls)

    app = FastAPI()
    router = APIRouter(route_class=StrictJSONRoute)

    @router.get("/")
    async def endpoint(
        a: Annotated[int, Depends(count, use_cache=False)], b: Annotated[int, Depends(count, use_cache=False)]
    ) -> Response:
        return Response(f"{a} {b}")

    if include:
        app.include_router(router)
    else:
        add_routes(app, router, [], {})
    assert send(app, "GET", "/").text == "1 2"


async def empty() -> AsyncIterator[bytes]:
    yield b""


@pytest.mark.parametrize("include", [False, True], ids=["add_routes", "include_router"])
def test_the_alias_of_a_header_is_used_unchanged(include: bool) -> None:
    async def values(
        x_y: Annotated[str, Header()], a_b: Annotated[str, Header(alias="a_b")], c: Annotated[str, Header(alias="C-D")]
    ) -> Response:
        return Response(f"{x_y} {a_b} {c}")

    app = FastAPI()
    router = APIRouter(route_class=StrictJSONRoute)
    router.get("/")(values)
    if include:
        app.include_router(router)
    else:
        add_routes(app, router, [], {})
    headers = {"x-y": "1", "x_y": "wrong", "a_b": "2", "a-b": "wrong", "c-d": "3"}
    assert send(app, "GET", "/", headers=headers).text == "1 2 3"


@pytest.mark.parametrize("include", [False, True], ids=["add_routes", "include_router"])
def test_bodies_are_strict_however_the_route_is_registered(include: bool) -> None:
    app = FastAPI()
    router = APIRouter(route_class=StrictJSONRoute)

    @router.post("/")
    async def endpoint(body: Model) -> Response:
        return Response(str(body.value))

    if include:
        app.include_router(router)
    else:
        add_routes(app, router, [], {})
    json = {"Content-Type": "application/json"}
    assert send(app, "POST", "/", content=b'{"value": 1}', headers=json).text == "1"
    assert send(app, "POST", "/", content=b"null", headers=json).json()["detail"][0]["type"] == "model_attributes_type"
    assert send(app, "POST", "/", content=b'{"value": NaN}', headers=json).status_code == 400
    assert send(app, "POST", "/", content=b" " * 65_537, headers=json).status_code == 413
    assert send(app, "POST", "/", content=b'{"value": "x"}', headers=json).status_code == 422
    assert send(app, "POST", "/", content=empty(), headers=json).status_code == 400


@pytest.mark.parametrize("where", ["router", "route"])
def test_a_smaller_limit_of_fastapi_for_bodies_applies(where: str) -> None:
    def limit(here: str) -> int | None:
        return 20 if where == here else None

    app = FastAPI()
    router = APIRouter(route_class=StrictJSONRoute, max_body_size=limit("router"))

    @router.post("/", max_body_size=limit("route"))
    async def endpoint(body: Model) -> Response:
        return Response(str(body.value))

    add_routes(app, router, [], {})
    assert send(app, "POST", "/", json={"value": 1}).text == "1"
    assert send(app, "POST", "/", json={"value": 10**20}).status_code == 413


def test_middleware_around_a_mounted_router_sees_the_response_to_an_exception() -> None:
    router = APIRouter(route_class=StrictJSONRoute)
    router.get("/", dependencies=[Depends(refuse)])(ok)
    app = FastAPI()
    app.mount("/v1", CORSMiddleware(router, allow_origins=["*"]))
    answer = send(app, "GET", "/v1/", headers={"Origin": "https://app.example.com"})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (403, "*")


@pytest.mark.parametrize("include", [False, True], ids=["add_routes", "include_router"])
def test_dependencies_and_endpoints_may_read_the_body_too(include: bool) -> None:
    app = FastAPI()
    router = APIRouter(route_class=StrictJSONRoute)

    async def of_stream(request: Request) -> bytes:
        return b"".join([chunk async for chunk in request.stream()])

    @router.post("/")
    async def endpoint(request: Request, body: Model, before: Annotated[bytes, Depends(of_stream)]) -> Response:
        assert before == await request.body()
        return Response(f"{body.value} {await request.json()}")

    @router.post("/without-model")
    async def without_model(request: Request) -> Response:
        return Response(await request.body())

    if include:
        app.include_router(router)
    else:
        add_routes(app, router, [], {})
    assert send(app, "POST", "/", json={"value": 1}).text == "1 {'value': 1}"
    assert send(app, "POST", "/without-model", content=b"a").text == "a"
    assert send(app, "POST", "/without-model", content=b" " * 65_537).status_code == 413


@pytest.mark.parametrize("include", [False, True], ids=["add_routes", "include_router"])
def test_asking_whether_the_client_has_disconnected_loses_no_body(include: bool) -> None:
    app = FastAPI()
    router = APIRouter(route_class=StrictJSONRoute)

    async def is_disconnected(request: Request) -> bool:
        return await request.is_disconnected()

    @router.post("/")
    async def endpoint(body: Model, disconnected: Annotated[bool, Depends(is_disconnected)]) -> Response:
        return Response(f"{body.value} {disconnected}")

    if include:
        app.include_router(router)
    else:
        add_routes(app, router, [], {})
    assert send(app, "POST", "/", json={"value": 1}).text == "1 False"


def test_dependency_overrides_of_every_kind_replace_the_session(base_url: str, database_url: str, tasks: str) -> None:
    app = create_app(settings(database_url))
    used: list[str] = []

    def refuse_sync(path: Annotated[str, Depends(of_request)]) -> Session:
        raise HTTPException(403, f"Not for {path}.")

    async def count_yield(request: Request) -> AsyncIterator[Session]:
        session = await get_session(request)
        yield session
        used.append(request.method)

    with in_thread(app) as url, httpx.Client(base_url=url) as client:
        app.dependency_overrides[get_session] = refuse_sync
        assert_error(client.get(tasks), 403)
        app.dependency_overrides[get_session] = count_yield
        created = client.post(tasks, json={"title": "a"})
        assert client.get(created.headers["Location"]).json() == created.json()
        assert used == ["POST", "GET"]
        app.dependency_overrides.clear()
        assert client.get(tasks).json() == [created.json()]
        assert used == ["POST", "GET"]
