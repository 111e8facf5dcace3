"""A task: its table, what clients send and get, and the statements over it, one for each operation."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID, uuid4, uuid5

from pydantic.config import JsonDict
from sqlalchemy import BigInteger, CheckConstraint, DateTime, Index, text
from sqlmodel import Field, SQLModel

from backend.core.connection import Parameter
from backend.core.db import Session, Statement
from backend.core.types import Completed, Cursor, Description, Limit, Offset, QueryFlag, SearchWords, Timestamp, Title

MICROSECONDS_NOW = text("(extract(epoch from now()) * 1000000)::bigint")
NEWEST_FIRST = (text("created_at DESC"), text("id DESC"))


EXAMPLE: JsonDict = {
    "id": "9b2d3c1e-7a54-4f0e-8f3b-6c1d2e3f4a5b",
    "user_id": "3f0c9b1e-5d0c-4c1f-9a53-2f1a6f0e7b11",
    "title": "Buy milk",
    "description": "Two bottles",
    "completed": False,
    "created_at": "2026-01-08T20:45:00.123456Z",
    "updated_at": "2026-01-08T20:45:00.123456Z",
}


class TaskTable(SQLModel, table=True):
    """A row of `tasks`; PostgreSQL itself holds what must never be otherwise.

    `version` grows with every write and is the ETag. It starts at the time of creation in microseconds, so that a task
    which is deleted and made again under the same Idempotency-Key never has an ETag it had before.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint("title <> ''", name="title_not_empty"),
        Index("ix_tasks_user_id_created_at_id", "user_id", *NEWEST_FIRST),
        Index("ix_tasks_user_id_completed_created_at_id", "user_id", "completed", *NEWEST_FIRST),
    )

    id: UUID = Field(primary_key=True)
    user_id: UUID = Field(foreign_key="users.id")
    title: str = Field(max_length=255)
    description: str | None = Field(max_length=2000)
    completed: bool = Field(sa_column_kwargs={"server_default": text("false")})
    version: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": MICROSECONDS_NOW})
    created_at: datetime = Field(sa_type=DateTime(timezone=True), sa_column_kwargs={"server_default": text("now()")})
    updated_at: datetime = Field(sa_type=DateTime(timezone=True), sa_column_kwargs={"server_default": text("now()")})


class TaskCreate(SQLModel):
    """What makes a task."""

    model_config = {"json_schema_extra": {"examples": [{"title": "Buy milk", "description": "Two bottles"}]}}

    # Defaults made by factories stay out of the OpenAPI document, where generated clients take them for "always there".
    title: Title
    description: Description | None = Field(default_factory=lambda: None)
    completed: Completed = Field(default_factory=bool)


class TaskUpdate(SQLModel):
    """What changes a task: fields left out stay as they are."""

    model_config = {"json_schema_extra": {"examples": [{"title": "Buy oat milk", "completed": True}]}}

    # The defaults are never read: `update` looks at what was named.
    title: Title = Field(default_factory=str)
    description: Description | None = Field(default_factory=lambda: None)
    completed: Completed = Field(default_factory=bool)


class TaskToggle(SQLModel):
    """What sets the completion instead of flipping it."""

    model_config = {"json_schema_extra": {"examples": [{"completed": True}]}}

    completed: Completed


class Task(SQLModel):
    """A task."""

    model_config = {"json_schema_extra": {"examples": [EXAMPLE]}}

    # PostgreSQL writes this JSON, in this order: COLUMNS below.
    id: UUID
    user_id: UUID
    title: str
    description: str | None
    completed: bool
    created_at: Timestamp
    updated_at: Timestamp


class TaskQuery(SQLModel):
    """Which of a user's tasks, and which page of them."""

    completed: QueryFlag | None = Field(None, description="Only tasks that are, or are not, completed.")
    q: SearchWords | None = Field(
        None, description="Only tasks whose title has each of these words in it, in any case."
    )
    limit: Limit = Field(50, description="How many tasks at the most.")
    # No default in the document: Swagger UI would send it, and with it no cursor is accepted.
    offset: Offset = Field(default_factory=int, description="How many tasks to leave out first; 0 if not given.")
    cursor: Cursor | None = Field(None, description="From the `next` of a `Link`; not together with `offset`.")
    total: QueryFlag = Field(False, description="Also count all tasks that match, in `X-Total-Count`.")


class TaskRow(NamedTuple):
    """A task as JSON, its id and ETag, and whether its creation was a repeat."""

    id: str
    body: str
    etag: str
    replayed: bool = False


class PageRow(NamedTuple):
    """A page of tasks as a JSON array, the cursor of the next if there is one, and how many match if that was asked."""

    body: str
    next_cursor: str | None
    total: int | None


class Gone(NamedTuple):
    """The id of a task that was deleted."""

    id: str


COLUMNS = """id, user_id, title, description, completed,
            to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at,
            to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS updated_at"""
PUBLIC = f"(SELECT row_to_json(public)::text FROM (SELECT {COLUMNS}) AS public)"
ETAG = """'"' || version || '"'"""
# The owner is part of every WHERE: a task of somebody else is a task that does not exist.
THIS = f"""user_id = %(user_id)s AND id = %(id)s
      AND (%(if_match)s::text[] IS NULL OR {ETAG} = ANY (%(if_match)s::text[]))"""
# Two writes within one microsecond, or a clock that steps back, still move `updated_at` on.
WRITTEN = "version = version + 1, updated_at = greatest(now(), updated_at + interval '1 microsecond')"

CREATE = Statement(
    "create task",
    TaskRow,
    f"""
    WITH owner AS (INSERT INTO users (id) VALUES (%(user_id)s) ON CONFLICT DO NOTHING)
    INSERT INTO tasks (id, user_id, title, description, completed)
    VALUES (%(id)s, %(user_id)s, %(title)s, %(description)s, %(completed)s)
    ON CONFLICT (id) DO UPDATE SET id = excluded.id -- DO NOTHING would return no row to the loser of a race
    RETURNING id, {PUBLIC}, {ETAG}, xmax <> 0
    """,
)
GET = Statement("get task", TaskRow, f"SELECT id, {PUBLIC}, {ETAG} FROM tasks WHERE {THIS}")
UPDATE = Statement(
    "update task",
    TaskRow,
    f"""
    UPDATE tasks
    SET title = coalesce(%(title)s, title),
        description = CASE WHEN %(describes)s THEN %(description)s ELSE description END,
        completed = coalesce(%(completed)s, completed),
        {WRITTEN}
    WHERE {THIS}
    RETURNING id, {PUBLIC}, {ETAG}
    """,
)
TOGGLE = Statement(
    "toggle task",
    TaskRow,
    f"""
    UPDATE tasks SET completed = coalesce(%(completed)s, NOT completed), {WRITTEN}
    WHERE {THIS}
    RETURNING id, {PUBLIC}, {ETAG}
    """,
)
DELETE = Statement("delete task", Gone, f"DELETE FROM tasks WHERE {THIS} RETURNING id")

# psycopg2 sends the parameters as literals, so the planner drops every condition and count that was not asked for.
MATCHING = """user_id = %(user_id)s
      AND (%(completed)s IS NULL OR completed = %(completed)s)
      AND (%(words)s IS NULL OR title ILIKE ALL (%(words)s::text[]))"""
# A cursor is where the last task of a page stands: its creation in microseconds since 1970, and its id.
LIST = Statement(
    "list tasks",
    PageRow,
    f"""
    WITH page AS (
        SELECT * FROM tasks
        WHERE {MATCHING}
          AND (%(cursor)s IS NULL OR (created_at, id) < (
               timestamptz 'epoch' + split_part(%(cursor)s, '-', 1)::bigint * interval '1 microsecond',
               split_part(%(cursor)s, '-', 2)::uuid))
        ORDER BY created_at DESC, id DESC
        OFFSET %(offset)s LIMIT %(limit)s + 1
    )
    SELECT '[' || coalesce(array_to_string((array_agg(row_to_json(public)::text))[:%(limit)s], ','), '') || ']',
           CASE WHEN count(*) > %(limit)s THEN
               lpad((extract(epoch FROM (array_agg(created_at))[%(limit)s]::timestamptz) * 1e6)::bigint::text, 16, '0')
               || '-' || replace((array_agg(id))[%(limit)s]::text, '-', '') END,
           CASE WHEN %(total)s THEN (SELECT count(*) FROM tasks WHERE {MATCHING}) END
    FROM (SELECT {COLUMNS} FROM page) AS public
    """,
)


async def create(session: Session, user_id: UUID, task: TaskCreate, key: str | None) -> TaskRow:
    """Make a task and, before their first, its user; under a `key` used before, the task made then."""
    # The id is known before the statement is sent: whoever repeats it finds the task instead of making another.
    task_id = uuid4() if key is None else uuid5(user_id, key)
    values = {"id": str(task_id), "user_id": str(user_id), **task.model_dump()}
    row = await session.fetch(CREATE, values, effect="idempotent")
    assert row is not None
    return row


async def get(session: Session, user_id: UUID, task_id: UUID, if_match: list[str] | None = None) -> TaskRow | None:
    """The task, or None where this user has no such task or its ETag is not in `if_match`."""
    return await session.fetch(GET, _this(user_id, task_id, if_match), effect="read")


async def update(
    session: Session, user_id: UUID, task_id: UUID, change: TaskUpdate, if_match: list[str] | None
) -> TaskRow | None:
    """Change the fields that `change` names, and nothing at all where it names none; None as in `get`."""
    named = change.model_dump(exclude_unset=True)
    if not named:
        return await get(session, user_id, task_id, if_match)
    nothing = {"title": None, "description": None, "completed": None, "describes": "description" in named}
    values = nothing | named | _this(user_id, task_id, if_match)
    return await session.fetch(UPDATE, values, effect="once" if if_match else "idempotent")


async def toggle(
    session: Session, user_id: UUID, task_id: UUID, completed: bool | None, if_match: list[str] | None
) -> TaskRow | None:
    """Set the completion, or flip it where `completed` is None; None as in `get`."""
    values = {"completed": completed, **_this(user_id, task_id, if_match)}
    return await session.fetch(TOGGLE, values, effect="once" if completed is None or if_match else "idempotent")


async def delete(session: Session, user_id: UUID, task_id: UUID, if_match: list[str] | None) -> bool:
    """Remove the task; False where `get` gives None."""
    return await session.fetch(DELETE, _this(user_id, task_id, if_match), effect="once") is not None


async def page(session: Session, user_id: UUID, query: TaskQuery) -> PageRow:
    """One page of the user's tasks that match, newest first."""
    words = [f"%{_literal(word)}%" for word in query.q.split()] if query.q is not None else None
    row = await session.fetch(LIST, {"user_id": str(user_id), "words": words, **query.model_dump()}, effect="read")
    assert row is not None
    return row


def _this(user_id: UUID, task_id: UUID, if_match: list[str] | None) -> dict[str, Parameter]:
    return {"user_id": str(user_id), "id": str(task_id), "if_match": if_match}


def _literal(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
