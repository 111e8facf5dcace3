"""The six operations on the tasks of a user."""

import re
from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Header, HTTPException, Path, Query, Request, Response, params
from pydantic_core import to_json
from starlette.routing import BaseRoute

from backend.api.paging import links
from backend.api.responses import (
    ALWAYS,
    AUTH_RESPONSES,
    CONDITIONAL,
    ETAG,
    LOCATION,
    ONE_TASK,
    PAGE,
    WITH_BODY,
    Responses,
)
from backend.core.db import SessionDep
from backend.core.errors import invalid
from backend.core.route import Route
from backend.core.types import Key
from backend.models import task as tasks
from backend.models.task import TaskCreate, TaskQuery, TaskRead, TaskRow, TaskToggle, TaskUpdate

UserId = Annotated[
    UUID,
    Path(
        description="The user whose tasks these are.",
        # Not `examples`: Swagger UI fills in no more than this one.
        json_schema_extra={"example": "3f0c9b1e-5d0c-4c1f-9a53-2f1a6f0e7b11"},
    ),
]
TaskId = Annotated[UUID, Path(description="The task's `id`.")]
IfMatch = Annotated[
    str | None,
    Header(description="The task's `ETag` as last seen: if it has another by now, 412, and nothing changes."),
]
IfNoneMatch = Annotated[str | None, Header(description="An `ETag`: if the task still has it, 304 without a body.")]
IdempotencyKey = Annotated[
    Key | None,
    Header(description="A text that is new for each task: sent again, it gives the task that was made the first time."),
]

# A browser may keep a task but has to ask if it still holds; nobody between it and us may.
PRIVATE = {"Cache-Control": "private, no-cache"}


async def create_task(
    request: Request, session: SessionDep, user_id: UserId, task: TaskCreate, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a task. The user needs no making: it comes with the first task."""
    row = await tasks.create(session, user_id, task, idempotency_key)
    headers = {"Location": f"{request.scope['raw_path'].decode()}/{row.id}"}
    if idempotency_key is not None and row.replayed:
        headers["Idempotency-Replayed"] = "true"
    return _task(row, 201, headers)


async def list_tasks(
    request: Request, session: SessionDep, user_id: UserId, query: Annotated[TaskQuery, Query()]
) -> Response:
    """List the user's tasks, newest first, in pages: `Link` says where the next one is."""
    if query.cursor is not None and "offset" in query.model_fields_set:
        raise invalid("cursor", "Cursor should not be used together with offset")
    page = await tasks.page(session, user_id, query)
    headers = dict(PRIVATE)
    if link := links(request, query, page.next_cursor):
        headers["Link"] = link
    if page.total is not None:
        headers["X-Total-Count"] = str(page.total)
    return Response(to_json([row.public_dict() for row in page.tasks]), media_type="application/json", headers=headers)


async def get_task(
    session: SessionDep, user_id: UserId, task_id: TaskId, if_none_match: IfNoneMatch = None
) -> Response:
    """Get one task."""
    row = await tasks.get(session, user_id, task_id)
    if row is None:
        raise _no_such_task()
    if if_none_match is not None and (if_none_match.strip() == "*" or str(row.version) in _tags(if_none_match)):
        return Response(status_code=304, headers={"ETag": f'"{row.version}"', **PRIVATE})
    return _task(row)


async def update_task(
    session: SessionDep, user_id: UserId, task_id: TaskId, change: TaskUpdate, if_match: IfMatch = None
) -> Response:
    """Change a task: fields left out stay as they are."""
    expected = _expected(if_match)
    row = await tasks.update(session, user_id, task_id, change, expected)
    if row is None:
        raise await _refusal(session, user_id, task_id, expected)
    return _task(row)


async def toggle_task(
    session: SessionDep,
    user_id: UserId,
    task_id: TaskId,
    wish: Annotated[TaskToggle | None, Body()] = None,
    if_match: IfMatch = None,
) -> Response:
    """Flip a task between open and completed; with a body, set it, which a client can repeat safely."""
    expected = _expected(if_match)
    row = await tasks.toggle(session, user_id, task_id, wish.completed if wish else None, expected)
    if row is None:
        raise await _refusal(session, user_id, task_id, expected)
    return _task(row)


async def delete_task(session: SessionDep, user_id: UserId, task_id: TaskId, if_match: IfMatch = None) -> Response:
    """Delete a task for good."""
    expected = _expected(if_match)
    if not await tasks.delete(session, user_id, task_id, expected):
        raise await _refusal(session, user_id, task_id, expected)
    return Response(status_code=204)


def routes(dependencies: Sequence[params.Depends] = ()) -> list[BaseRoute]:
    """The six operations, each behind the `dependencies`."""
    router = APIRouter(
        prefix="/api/{user_id}/tasks",
        tags=["tasks"],
        route_class=Route,
        dependencies=dependencies,
        responses=ALWAYS | (AUTH_RESPONSES if dependencies else {}),
        generate_unique_id_function=lambda route: route.name,
    )
    add, one = router.add_api_route, "/{task_id}"
    known: Responses = {200: {"headers": ETAG}, 304: {"description": "It is as you know it.", "headers": ETAG}}
    made: Responses = {201: {"headers": LOCATION | ETAG}}
    changed: Responses = {200: {"headers": ETAG}} | ONE_TASK | CONDITIONAL | WITH_BODY
    add("", list_tasks, methods=["GET"], response_model=list[TaskRead], responses={200: {"headers": PAGE}})
    add("", create_task, methods=["POST"], status_code=201, response_model=TaskRead, responses=made | WITH_BODY)
    add(one, get_task, methods=["GET"], response_model=TaskRead, responses=known | ONE_TASK)
    add(one, update_task, methods=["PUT"], response_model=TaskRead, responses=changed)
    add(one + "/complete", toggle_task, methods=["PATCH"], response_model=TaskRead, responses=changed)
    add(one, delete_task, methods=["DELETE"], status_code=204, responses=ONE_TASK | CONDITIONAL)
    return router.routes


def _task(row: TaskRow, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    known = {"ETag": f'"{row.version}"', **PRIVATE, **(headers or {})}
    return Response(to_json(row.public_dict()), status, known, "application/json")


def _tags(header: str, *, weak: bool = True) -> list[str]:
    """What is in the entity tags of a header (RFC 9110, section 8.8.3); a weak one as its strong twin, or left out."""
    return [tag for prefix, tag in re.findall(r'(W/)?"([^"]*)"', header) if weak or not prefix]


def _expected(if_match: str | None) -> list[str] | None:
    # Strong comparison (RFC 9110, section 13.1.1); "*" asks for no more than that the task exists.
    return None if if_match is None or if_match.strip() == "*" else _tags(if_match, weak=False)


async def _refusal(session: SessionDep, user_id: UUID, task_id: UUID, expected: list[str] | None) -> HTTPException:
    if expected is not None and await tasks.get(session, user_id, task_id) is not None:
        return HTTPException(412, "The task has changed: its ETag is not the one in If-Match.")
    return _no_such_task()


def _no_such_task() -> HTTPException:
    return HTTPException(404, "There is no such task.")
