"""A task: its table, the models that clients send and receive, and the statements over it."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid4, uuid5

import sqlalchemy as sa
from pydantic_core import to_jsonable_python
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Field, SQLModel

from backend.core.connection import Parameter
from backend.core.db import Session
from backend.core.statement import Statement
from backend.core.types import Completed, Cursor, Description, Flag, Limit, Offset, Omittable, Search, Timestamp, Title
from backend.models.user import User

MICROSECONDS_NOW = sa.text("(extract(epoch from now()) * 1000000)::bigint")
NEWEST_FIRST = (sa.text("created_at DESC"), sa.text("id DESC"))


def _examples(**values: object) -> Callable[[dict[str, Any]], None]:
    """Examples for the fields of a model; in an example for the whole model, pydantic would sort the fields."""

    def add(schema: dict[str, Any]) -> None:
        for name, value in values.items():
            schema["properties"][name]["examples"] = [value]

    return add


class Task(SQLModel, table=True):
    """The table `tasks`; invariants are enforced by database constraints.

    `version` increases with every write and is the ETag. It starts at the time of creation in microseconds, so that a
    task that is deleted and created again with the same Idempotency-Key never reuses an ETag.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        # The user's id is the first column of every key, so that the table can be distributed by user.
        sa.PrimaryKeyConstraint("user_id", "id"),
        sa.CheckConstraint("title <> ''", name="title_not_empty"),
        sa.Index("ix_tasks_user_id_created_at_id", "user_id", *NEWEST_FIRST),
        sa.Index("ix_tasks_user_id_completed_created_at_id", "user_id", "completed", *NEWEST_FIRST),
    )

    id: UUID = Field(primary_key=True)
    user_id: UUID = Field(primary_key=True, foreign_key="users.id")
    title: str = Field(max_length=255)
    description: str | None = Field(max_length=2000)
    completed: bool = Field(sa_column_kwargs={"server_default": sa.text("false")})
    version: int = Field(sa_type=sa.BigInteger, sa_column_kwargs={"server_default": MICROSECONDS_NOW})
    created_at: datetime = Field(
        sa_type=sa.DateTime(timezone=True), sa_column_kwargs={"server_default": sa.text("now()")}
    )
    updated_at: datetime = Field(
        sa_type=sa.DateTime(timezone=True), sa_column_kwargs={"server_default": sa.text("now()")}
    )


class TaskCreate(SQLModel):
    """Request body for creating a task."""

    model_config = {"json_schema_extra": _examples(title="Buy milk", description="Two bottles", completed=False)}

    # Not plain defaults: these would be in the OpenAPI document, and generated clients treat such a field as required.
    title: Title
    description: Description | None = Field(default_factory=lambda: None)
    completed: Completed = Field(default_factory=bool)


class TaskUpdate(SQLModel):
    """Request body for updating a task: fields that are left out do not change."""

    model_config = {"json_schema_extra": _examples(title="Buy oat milk", description="One bottle", completed=True)}

    # The defaults are never used: `update` takes the fields that were set.
    title: Title = Field(default_factory=str)
    description: Description | None = Field(default_factory=lambda: None)
    completed: Completed = Field(default_factory=bool)


class TaskToggle(SQLModel):
    """Request body for setting `completed` instead of toggling it."""

    model_config = {"json_schema_extra": _examples(completed=True)}

    completed: Completed


class NoFields(SQLModel):
    """Request body for toggling `completed`: an empty object, equivalent to no body."""

    model_config = {"extra": "forbid"}


class TaskRead(SQLModel):
    """A task."""

    model_config = {
        "json_schema_extra": _examples(
            id="9b2d3c1e-7a54-4f0e-8f3b-6c1d2e3f4a5b",
            user_id="3f0c9b1e-5d0c-4c1f-9a53-2f1a6f0e7b11",
            title="Buy milk",
            description="Two bottles",
            completed=False,
            created_at="2026-01-08T20:45:00.123456Z",
            updated_at="2026-01-08T20:45:00.123456Z",
        )
    }

    id: UUID
    user_id: UUID
    title: str
    description: str | None
    completed: bool
    created_at: Timestamp
    updated_at: Timestamp


class TaskQuery(SQLModel):
    """The filters of a list, and which page of it to return."""

    completed: Omittable[Flag] = Field(None, description="Only completed (`true`) or only pending (`false`) tasks.")
    # Default factories are not in the document: Swagger UI would send plain defaults, and `status` and `offset` are
    # refused in combination with `completed` and `cursor`.
    status: Literal["all", "pending", "completed"] = Field(
        default_factory=lambda: "all",
        description="All, only pending or only completed tasks. Cannot be combined with `completed`.",
    )
    search: Omittable[Search] = Field(
        None, description="Only tasks whose title contains each of these words, at most ten, ignoring case."
    )
    limit: Limit = Field(50, description="The maximum number of tasks.")
    offset: Offset = Field(default_factory=int, description="The number of tasks to skip; 0 if absent.")
    cursor: Omittable[Cursor] = Field(
        None, description="The cursor from the `next` URL in `Link`. Cannot be combined with `offset`."
    )
    total: Flag = Field(False, description="Also count all matching tasks, in `X-Total-Count`.")


class TaskRow(NamedTuple):
    """A task as the API returns it, its version, and whether a creation found it instead of inserting it."""

    public_dict: dict[str, object]
    version: int
    replayed: bool = False


class Page(NamedTuple):
    """Tasks, the cursor of the next page if there is one, and the number of all matching tasks if requested."""

    tasks: list[dict[str, object]]
    next_cursor: str | None
    total: int | None


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COLUMN = Task.metadata.tables["tasks"].c
PUBLIC_FIELDS = tuple(TaskRead.model_fields)
# The ids are in the request already: fetching a column costs more than keeping its value.
FETCHED_COLUMNS = [COLUMN[name] for name in PUBLIC_FIELDS if name not in ("id", "user_id")]
UTC_ZONE: sa.ColumnElement[str] = sa.literal_column("'UTC'")
STEP: sa.ColumnElement[timedelta] = sa.literal_column("interval '1 microsecond'")
# `updated_at` increases even if two writes are in the same microsecond or the clock is set back. It uses `timezone`
# instead of timestamptz arithmetic, because a distributed table allows only IMMUTABLE functions of a column here.
WRITTEN = {
    "version": COLUMN.version + sa.literal_column("1"),
    "updated_at": sa.func.greatest(
        sa.func.now(), sa.func.timezone(UTC_ZONE, sa.func.timezone(UTC_ZONE, COLUMN.updated_at) + STEP)
    ),
}


def _parameter(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=COLUMN[name].type)


# The owner is part of every WHERE: another user's task is treated as missing.
OWNED = COLUMN.user_id == _parameter("user_id")
BY_ID = sa.and_(OWNED, COLUMN.id == _parameter("id"))
IF_MATCH = sa.cast(COLUMN.version, sa.String) == sa.any_(sa.bindparam("if_match", type_=sa.ARRAY(sa.String)))


def _public_dict(values: tuple[Any, ...]) -> dict[str, object]:
    # Further columns (a version, `replayed`, a total) are left out.
    return dict(zip(PUBLIC_FIELDS, values))  # noqa: B905  # `strict` takes longer than the rest of each call


def _row(columns: tuple[Any, ...], parameters: Mapping[str, Parameter]) -> TaskRow:
    ids = (parameters["id"], parameters["user_id"])
    return TaskRow(_public_dict(ids + columns), *columns[len(FETCHED_COLUMNS) :])


@cache
def _get() -> Statement[TaskRow]:
    return Statement("get task", sa.select(*FETCHED_COLUMNS, COLUMN.version).where(BY_ID), "read_only", _row)


@cache
def _create(may_exist: bool) -> Statement[TaskRow]:
    owner = insert(User).values(id=_parameter("user_id")).on_conflict_do_nothing().cte("owner")
    task = insert(Task).values({name: _parameter(name) for name in ("id", "user_id", *TaskCreate.model_fields)})
    # Without ON CONFLICT, PostgreSQL needs a tenth less CPU time.
    if may_exist:
        # DO NOTHING would return no row, and a SELECT in the same statement would not see a row inserted concurrently.
        # With revision 0001, the key is (id) alone: never return another user's task.
        task = task.on_conflict_do_update(
            constraint="pk_tasks", set_={"id": task.excluded.id}, where=COLUMN.user_id == task.excluded.user_id
        )
    # xmax is 0 in a row that was inserted, and not 0 in one that ON CONFLICT updated.
    replayed = sa.literal_column("xmax <> 0", sa.Boolean).label("replayed")
    returning = task.add_cte(owner).returning(*FETCHED_COLUMNS, COLUMN.version, replayed)
    return Statement("create task", returning, "idempotent" if may_exist else _create(True), _row)


@cache
def _update(name: str, fields: tuple[str, ...], conditional: bool) -> Statement[TaskRow]:
    """Set `fields` to the parameters of the same name, or toggle `completed` if there are none."""
    changes: dict[str, sa.ColumnElement[Any]] = {field: _parameter(field) for field in fields} or {
        "completed": sa.not_(COLUMN.completed)
    }
    matching = sa.and_(BY_ID, IF_MATCH) if conditional else BY_ID
    statement = (
        sa.update(Task).where(matching).values({**changes, **WRITTEN}).returning(*FETCHED_COLUMNS, COLUMN.version)
    )
    # If the first attempt succeeded, a retry with If-Match would fail with 412.
    return Statement(name, statement, "idempotent" if fields and not conditional else "never", _row)


@cache
def _delete(conditional: bool) -> Statement[str]:
    matching = sa.and_(BY_ID, IF_MATCH) if conditional else BY_ID
    statement = sa.delete(Task).where(matching).returning(COLUMN.id)
    # If the first attempt succeeded, a retry would return 404.
    return Statement("delete task", statement, "never", lambda columns, _: str(columns[0]))


@cache
def _page(completed: bool, search: bool, cursor: bool, total: bool) -> Statement[tuple[Any, ...]]:
    """Select tasks, newest first, with the filters, the cursor and the total that the request asks for."""
    matching = [OWNED]
    if completed:
        matching.append(COLUMN.completed == _parameter("completed"))
    if search:
        matching.append(COLUMN.title.ilike(sa.all_(sa.bindparam("patterns", type_=sa.ARRAY(sa.String)))))
    counted = sa.select(sa.func.count().label("total")).select_from(Task).where(*matching).subquery("counted")
    if cursor:
        position = sa.tuple_(_parameter("created_at"), _parameter("id"))
        matching.append(sa.tuple_(COLUMN.created_at, COLUMN.id) < position)
    page = sa.select(COLUMN.id, *FETCHED_COLUMNS).where(*matching).order_by(COLUMN.created_at.desc(), COLUMN.id.desc())
    page = page.offset(sa.bindparam("offset", type_=sa.Integer)).limit(sa.bindparam("limit", type_=sa.Integer))
    if total:
        # A join, because an empty page has a total too.
        wanted = page.subquery("wanted")
        joined = counted.outerjoin(wanted, sa.true())
        page = sa.select(*wanted.c, counted.c.total).select_from(joined)
        page = page.order_by(wanted.c.created_at.desc(), wanted.c.id.desc())
    return Statement("list tasks", page, "read_only", lambda columns, _: columns)


async def create(session: Session, user_id: UUID, task: TaskCreate, key: str | None) -> TaskRow:
    """Create a task, and its user if it is their first; with a `key` used before, return the original task."""
    # The id is known before the statement is sent, so that a retry finds the task instead of creating another.
    task_id = uuid4() if key is None else uuid5(user_id, key)
    [row] = await session.exec(_create(key is not None), {**_ids(user_id, task_id), **vars(task)})
    return row


async def get(session: Session, user_id: UUID, task_id: UUID) -> TaskRow | None:
    """Return the task, or None if this user has no such task."""
    return _first(await session.exec(_get(), _ids(user_id, task_id)))


async def update(
    session: Session, user_id: UUID, task_id: UUID, change: TaskUpdate, if_match: list[str] | None
) -> TaskRow | None:
    """Change the fields that were set in `change`; if there are none, write nothing.

    Returns None if this user has no such task, or if its version is not in `if_match`.
    """
    fields = {name: value for name, value in vars(change).items() if name in change.model_fields_set}
    if not fields:
        row = await get(session, user_id, task_id)
        return row if row is None or if_match is None or str(row.version) in if_match else None
    statement = _update("update task", tuple(fields), if_match is not None)
    return _first(await session.exec(statement, {**_ids(user_id, task_id, if_match), **fields}))


async def toggle(
    session: Session, user_id: UUID, task_id: UUID, completed: bool | None, if_match: list[str] | None
) -> TaskRow | None:
    """Set `completed`, or toggle it if the argument is None; returns None if `update` would."""
    statement = _update("toggle task", () if completed is None else ("completed",), if_match is not None)
    return _first(await session.exec(statement, {**_ids(user_id, task_id, if_match), "completed": completed}))


async def delete(session: Session, user_id: UUID, task_id: UUID, if_match: list[str] | None) -> bool:
    """Delete the task; returns False in the cases in which `update` returns None."""
    return bool(await session.exec(_delete(if_match is not None), _ids(user_id, task_id, if_match)))


async def page(session: Session, user_id: UUID, query: TaskQuery) -> Page:
    """Return one page of the user's matching tasks, newest first."""
    # One row more than the page, to know whether there is a next page.
    parameters: dict[str, Parameter] = {
        "user_id": to_jsonable_python(user_id),
        "offset": query.offset,
        "limit": query.limit + 1,
    }
    completed = query.completed if query.status == "all" else query.status == "completed"
    if completed is not None:
        parameters["completed"] = completed
    if query.search is not None:
        parameters["patterns"] = [f"%{_escape(word)}%" for word in query.search.split()]
    if query.cursor is not None:
        created, parameters["id"] = query.cursor.split("-")
        parameters["created_at"] = EPOCH + timedelta(microseconds=int(created))
    statement = _page(completed is not None, query.search is not None, query.cursor is not None, query.total)
    rows = await session.exec(statement, parameters)
    total = rows[0][-1] if query.total else None
    owner = (parameters["user_id"],)
    tasks = [_public_dict(row[:1] + owner + row[1:]) for row in rows[: query.limit] if row[0] is not None]
    return Page(tasks, _cursor(tasks[-1]) if len(rows) > query.limit else None, total)


def _ids(user_id: UUID, task_id: UUID, if_match: list[str] | None = None) -> dict[str, Parameter]:
    # `str` of a UUID takes three times as long.
    return {"user_id": to_jsonable_python(user_id), "id": to_jsonable_python(task_id), "if_match": if_match}


def _first(rows: list[TaskRow]) -> TaskRow | None:
    return rows[0] if rows else None


def _escape(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _cursor(last: Mapping[str, object]) -> str:
    """The task's position in the list: its creation in microseconds since 1970, and its id."""
    created = (datetime.fromisoformat(str(last["created_at"])) - EPOCH) // timedelta(microseconds=1)
    return f"{created:016}-{UUID(str(last['id'])).hex}"
