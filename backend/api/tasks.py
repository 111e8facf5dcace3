"""The six operations on the tasks of a user."""

import re
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Header, HTTPException, Path, Query, Request, Response
from pydantic import BeforeValidator
from pydantic_core import to_json

from backend.api.paging import links, tasks_path
from backend.api.responses import (
    ALWAYS,
    CONDITIONAL,
    CREATION,
    ETAG,
    ONE_TASK,
    PAGE,
    WITH_BODY,
    Responses,
)
from backend.core.db import SessionDep
from backend.core.errors import invalid
from backend.core.route import StrictJSONRoute
from backend.core.types import Key, Omittable
from backend.models import task as tasks
from backend.models.task import NoFields, TaskCreate, TaskQuery, TaskRead, TaskRow, TaskToggle, TaskUpdate

UserId = Annotated[
    UUID,
    Path(
        description="The id of the user who owns the tasks.",
        # Not `examples`: Swagger UI fills in parameters from `example` only.
        json_schema_extra={"example": "3f0c9b1e-5d0c-4c1f-9a53-2f1a6f0e7b11"},
    ),
]
TaskId = Annotated[UUID, Path(description="The task's `id`.")]
IfMatch = Annotated[
    Omittable[str], Header(alias="If-Match", description="The `ETag` last seen; 412 if the task has changed since.")
]
IfNoneMatch = Annotated[
    Omittable[str],
    Header(alias="If-None-Match", description="An `ETag` seen earlier; 304 if the task has not changed since."),
]
IdempotencyKey = Annotated[
    Omittable[Key],
    Header(alias="Idempotency-Key", description="Unique per creation; repeating it returns the original task."),
]
# `{}` toggles too: some clients always send an object.
Toggle = Annotated[
    TaskToggle | None,
    BeforeValidator(lambda value: None if value == {} else value, json_schema_input_type=TaskToggle | NoFields | None),
    Body(),
]

# A browser may cache a task but must revalidate it; shared caches may not store it.
PRIVATE = {"Cache-Control": "private, no-cache"}

router = APIRouter(
    prefix="/api/{user_id}/tasks",
    tags=["tasks"],
    route_class=StrictJSONRoute,
    responses=ALWAYS,
)
CHANGED: Responses = {200: {"headers": ETAG}} | ONE_TASK | CONDITIONAL | WITH_BODY
CREATED: Responses = {201: {"headers": CREATION | ETAG}, **WITH_BODY}
FOUND: Responses = {200: {"headers": ETAG}, 304: {"description": "Not modified.", "headers": ETAG}, **ONE_TASK}


@router.get("/{task_id}", summary="Get a task", response_model=TaskRead, responses=FOUND)
async def get_task(
    session: SessionDep, user_id: UserId, task_id: TaskId, if_none_match: IfNoneMatch = None
) -> Response:
    """Get one task."""
    row = await tasks.get(session, user_id, task_id)
    if row is None:
        raise _not_found()
    if if_none_match is not None and (if_none_match.strip() == "*" or str(row.version) in _parse_etags(if_none_match)):
        return Response(status_code=304, headers={"ETag": f'"{row.version}"', **PRIVATE})
    return _task_response(row)


@router.get("", summary="List tasks by page", response_model=list[TaskRead], responses={200: {"headers": PAGE}})
async def list_tasks(
    request: Request, session: SessionDep, user_id: UserId, query: Annotated[TaskQuery, Query()]
) -> Response:
    """List the user's tasks, newest first, in pages: `Link` contains the URL of the next one."""
    if query.cursor is not None and "offset" in query.model_fields_set:
        raise invalid("query", "cursor", "Cursor cannot be combined with offset")
    if query.completed is not None and "status" in query.model_fields_set:
        raise invalid("query", "status", "Status cannot be combined with completed")
    page = await tasks.page(session, user_id, query)
    headers = dict(PRIVATE)
    if link := links(request, user_id, query, page.next_cursor):
        headers["Link"] = link
    if page.total is not None:
        headers["X-Total-Count"] = str(page.total)
    return Response(to_json(page.tasks), media_type="application/json", headers=headers)


@router.post("", summary="Create a task", status_code=201, response_model=TaskRead, responses=CREATED)
async def create_task(
    request: Request, session: SessionDep, user_id: UserId, task: TaskCreate, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a task. The user is created with their first task."""
    row = await tasks.create(session, user_id, task, idempotency_key)
    headers = {"Location": f"{tasks_path(request, user_id)}/{row.public_dict['id']}"}
    if idempotency_key is not None and row.replayed:
        # The original body is not stored: the new one can be compared only with a task that is still unchanged.
        unchanged = row.public_dict["updated_at"] == row.public_dict["created_at"]
        if unchanged and not task.model_dump().items() <= row.public_dict.items():
            raise invalid("header", "Idempotency-Key", "The key was used before with another body")
        headers["Idempotency-Replayed"] = "true"
    return _task_response(row, 201, headers)


@router.put("/{task_id}", summary="Update a task", response_model=TaskRead, responses=CHANGED)
async def update_task(
    session: SessionDep, user_id: UserId, task_id: TaskId, change: TaskUpdate, if_match: IfMatch = None
) -> Response:
    """Change a task: fields that are left out do not change."""
    versions = _if_match_versions(if_match)
    row = await tasks.update(session, user_id, task_id, change, versions)
    if row is None:
        raise await _not_found_or_precondition_failed(session, user_id, task_id, versions)
    return _task_response(row)


@router.patch("/{task_id}/complete", summary="Toggle a task's completion", response_model=TaskRead, responses=CHANGED)
async def toggle_task(
    session: SessionDep, user_id: UserId, task_id: TaskId, body: Toggle = None, if_match: IfMatch = None
) -> Response:
    """Toggle a task between pending and completed; with `completed` in the body, set it, which is safe to retry."""
    versions = _if_match_versions(if_match)
    row = await tasks.toggle(session, user_id, task_id, body.completed if body else None, versions)
    if row is None:
        raise await _not_found_or_precondition_failed(session, user_id, task_id, versions)
    return _task_response(row)


@router.delete("/{task_id}", summary="Delete a task", status_code=204, responses=ONE_TASK | CONDITIONAL)
async def delete_task(session: SessionDep, user_id: UserId, task_id: TaskId, if_match: IfMatch = None) -> Response:
    """Delete a task permanently."""
    versions = _if_match_versions(if_match)
    if not await tasks.delete(session, user_id, task_id, versions):
        raise await _not_found_or_precondition_failed(session, user_id, task_id, versions)
    return Response(status_code=204)


def _task_response(row: TaskRow, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    all_headers = {"ETag": f'"{row.version}"', **PRIVATE, **(headers or {})}
    return Response(to_json(row.public_dict), status, all_headers, "application/json")


def _parse_etags(header: str, *, weak: bool = True) -> list[str]:
    """The values of a header's entity tags (RFC 9110, section 8.8.3). Weak ones are included only if `weak` is true."""
    return [tag for prefix, tag in re.findall(r'(W/)?"([^"]*)"', header) if weak or not prefix]


def _if_match_versions(if_match: str | None) -> list[str] | None:
    # Strong comparison (RFC 9110, section 13.1.1); "*" only requires that the task exists.
    return None if if_match is None or if_match.strip() == "*" else _parse_etags(if_match, weak=False)


async def _not_found_or_precondition_failed(
    session: SessionDep, user_id: UUID, task_id: UUID, versions: list[str] | None
) -> HTTPException:
    if versions is not None and await tasks.get(session, user_id, task_id) is not None:
        return HTTPException(412, "The task has changed: its ETag is not the one in If-Match.")
    return _not_found()


def _not_found() -> HTTPException:
    return HTTPException(404, "There is no such task.")
