"""A task: its table, what clients send and get, and the statements over it, one for each operation."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID, uuid4, uuid5

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Index, text
from sqlmodel import Field, SQLModel

from backend.core.connection import Parameter
from backend.core.db import Session, Statement
from backend.core.types import Completed, Description, Timestamp, Title


class TaskTable(SQLModel, table=True):
    """A row of `tasks`; PostgreSQL itself holds what must never be otherwise.

    `version` grows with every write and is the ETag. It starts at the time of creation in microseconds, so that a task
    which is deleted and made again under the same Idempotency-Key never has an ETag it had before.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint("title <> ''", name="title_not_empty"),
        Index("ix_tasks_user_id_created_at_id", "user_id", text("created_at DESC"), text("id DESC")),
        Index(
            "ix_tasks_user_id_completed_created_at_id", "user_id", "completed", text("created_at DESC"), text("id DESC")
        ),
    )

    id: UUID = Field(primary_key=True)
    user_id: UUID = Field(foreign_key="users.id")
    title: str = Field(max_length=255)
    description: str | None = Field(max_length=2000)
    completed: bool = Field(sa_column_kwargs={"server_default": text("false")})
    version: int = Field(
        sa_type=BigInteger, sa_column_kwargs={"server_default": text("(extract(epoch from now()) * 1000000)::bigint")}
    )
    created_at: datetime = Field(sa_type=DateTime(timezone=True), sa_column_kwargs={"server_default": text("now()")})
    updated_at: datetime = Field(sa_type=DateTime(timezone=True), sa_column_kwargs={"server_default": text("now()")})


class TaskCreate(SQLModel):
    """What makes a task."""

    model_config = {"json_schema_extra": {"examples": [{"title": "Buy milk", "description": "Two bottles"}]}}

    title: Title
    description: Description | None = None
    completed: Completed = False


class TaskUpdate(SQLModel):
    """What changes a task: fields left out stay as they are."""

    model_config = {"json_schema_extra": {"examples": [{"title": "Buy oat milk", "completed": True}]}}

    # The defaults are never read (see `update`); being factories, they stay out of the OpenAPI document.
    title: Title = Field(default_factory=str)
    description: Description | None = Field(default_factory=lambda: None)
    completed: Completed = Field(default_factory=bool)


class TaskToggle(SQLModel):
    """What sets the completion instead of flipping it."""

    model_config = {"json_schema_extra": {"examples": [{"completed": True}]}}

    completed: Completed


class Task(SQLModel):
    """A task."""

    # PostgreSQL writes this JSON, in this order: PUBLIC below.
    id: UUID
    user_id: UUID
    title: str
    description: str | None
    completed: bool
    created_at: Timestamp
    updated_at: Timestamp


class TaskRow(NamedTuple):
    """A task as JSON, its id and ETag, and whether its creation was a repeat."""

    id: str
    body: str
    etag: str
    replayed: bool = False


class PageRow(NamedTuple):
    """A page of tasks as a JSON array, whether there are more, where its last task stands, how many match in all."""

    body: str
    more: bool
    last_microseconds: int
    last_id: str
    total: int | None

    @property
    def following(self) -> "Position | None":
        """Where the next page begins, if there is one."""
        return Position(self.last_microseconds, self.last_id) if self.more else None


class Gone(NamedTuple):
    """The id of a task that was deleted."""

    id: str


class Position(NamedTuple):
    """Where a task stands in the list: its creation in microseconds since 1970, and its id."""

    microseconds: int
    id: str


TIME = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
PUBLIC = f"""(
        SELECT row_to_json(public)::text
        FROM (SELECT id, user_id, title, description, completed,
                     {TIME.format("created_at")} AS created_at, {TIME.format("updated_at")} AS updated_at) AS public
    )"""
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
LIST = Statement(
    "list tasks",
    PageRow,
    f"""
    WITH page AS (
        SELECT * FROM tasks
        WHERE {MATCHING}
          AND (%(after)s IS NULL OR (created_at, id) <
               (timestamptz 'epoch' + %(after)s * interval '1 microsecond', %(after_id)s::uuid))
        ORDER BY created_at DESC, id DESC
        OFFSET %(offset)s LIMIT %(limit)s + 1
    )
    SELECT '[' || coalesce(array_to_string((array_agg({PUBLIC}))[:%(limit)s], ','), '') || ']',
           count(*) > %(limit)s,
           (array_agg((extract(epoch FROM created_at) * 1000000)::bigint))[%(limit)s],
           (array_agg(id))[%(limit)s],
           CASE WHEN %(total)s THEN (SELECT count(*) FROM tasks WHERE {MATCHING}) END
    FROM page
    """,
)


async def create(session: Session, user_id: UUID, task: TaskCreate, key: str | None) -> TaskRow:
    """Make a task and, before their first, its user; under a `key` used before, the task made then."""
    values: dict[str, Parameter] = {
        # The id is known before the statement is sent: whoever repeats it finds the task instead of making another.
        "id": str(uuid5(user_id, key) if key is not None else uuid4()),
        "user_id": str(user_id),
        **task.model_dump(),
    }
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
    values: dict[str, Parameter] = {
        "title": None, "description": None, "completed": None, "describes": "description" in named,
        **named, **_this(user_id, task_id, if_match),
    }  # fmt: skip
    return await session.fetch(UPDATE, values, effect="once" if if_match else "idempotent")


async def toggle(
    session: Session, user_id: UUID, task_id: UUID, completed: bool | None, if_match: list[str] | None
) -> TaskRow | None:
    """Set the completion, or flip it where `completed` is None; None as in `get`."""
    values: dict[str, Parameter] = {"completed": completed, **_this(user_id, task_id, if_match)}
    is_flip = completed is None
    return await session.fetch(TOGGLE, values, effect="once" if is_flip or if_match else "idempotent")


async def delete(session: Session, user_id: UUID, task_id: UUID, if_match: list[str] | None) -> bool:
    """Remove the task; False where `get` gives None."""
    return await session.fetch(DELETE, _this(user_id, task_id, if_match), effect="once") is not None


async def page(
    session: Session,
    user_id: UUID,
    *,
    completed: bool | None,
    q: str | None,
    limit: int,
    offset: int,
    after: Position | None,
    total: bool,
) -> PageRow:
    """The tasks of a user that match, newest first: `limit` of them, behind `after` or the first `offset`."""
    values: dict[str, Parameter] = {
        "user_id": str(user_id),
        "completed": completed,
        "words": [f"%{_literal(word)}%" for word in q.split()] if q is not None else None,
        "limit": limit,
        "offset": offset,
        "after": after and after.microseconds,
        "after_id": after and after.id,
        "total": total,
    }
    row = await session.fetch(LIST, values, effect="read")
    assert row is not None
    return row


def _this(user_id: UUID, task_id: UUID, if_match: list[str] | None) -> dict[str, Parameter]:
    return {"user_id": str(user_id), "id": str(task_id), "if_match": if_match}


def _literal(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
