"""A task: its table, what clients send and get, and the statements over it, one for each operation."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID, uuid4, uuid5

from pydantic.config import JsonDict
from sqlalchemy import BigInteger, CheckConstraint, DateTime, Index, text
from sqlmodel import Field, SQLModel

from backend.core.connection import Parameter
from backend.core.db import Session, Statement
from backend.core.types import Completed, Cursor, Description, Limit, Offset, QueryFlag, SearchWords, Timestamp, Title

MICROSECONDS_NOW = text("(extract(epoch from now()) * 1000000)::bigint")
LATEST = (text("created_at DESC"), text("id DESC"))


EXAMPLE: JsonDict = {
    "id": "9b2d3c1e-7a54-4f0e-8f3b-6c1d2e3f4a5b",
    "user_id": "3f0c9b1e-5d0c-4c1f-9a53-2f1a6f0e7b11",
    "title": "Buy milk",
    "description": "Two bottles",
    "completed": False,
    "created_at": "2026-01-08T20:45:00.123456Z",
    "updated_at": "2026-01-08T20:45:00.123456Z",
}


class Task(SQLModel, table=True):
    """A row of `tasks`; PostgreSQL itself holds what must never be otherwise.

    `version` grows with every write and is the ETag. It starts at the time of creation in microseconds, so that a task
    which is deleted and made again under the same Idempotency-Key never has an ETag it had before.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint("title <> ''", name="title_not_empty"),
        Index("ix_tasks_user_id_created_at_id", "user_id", *LATEST),
        Index("ix_tasks_user_id_completed_created_at_id", "user_id", "completed", *LATEST),
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


class TaskRead(SQLModel):
    """A task."""

    model_config = {"json_schema_extra": {"examples": [EXAMPLE]}}

    # COLUMNS below come in this order.
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
    """A row of `tasks`: first what the API shows, as `TaskRead` orders it; then what a statement says besides."""

    id: str
    user_id: str
    title: str
    description: str | None
    completed: bool
    created_at: str
    updated_at: str
    version: int
    replayed: bool = False
    total: int | None = None

    def public_dict(self) -> dict[str, object]:
        """The fields of `TaskRead`, ready to be written as JSON."""
        return dict(zip(PUBLIC_FIELDS, self, strict=False))


class Page(NamedTuple):
    """Tasks, the cursor of the next page if there is one, and how many match in all if that was asked."""

    tasks: list[TaskRow]
    next_cursor: str | None
    total: int | None


class DeletedId(NamedTuple):
    """The id of a task that was deleted."""

    id: str


PUBLIC_FIELDS = tuple(TaskRead.model_fields)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
COLUMNS = f"""id, user_id, title, description, completed, {TIME.format("created_at")}, {TIME.format("updated_at")},
    version"""
# Two writes within one microsecond, or a clock that steps back, still move `updated_at` on.
WRITTEN = "version = version + 1, updated_at = greatest(now(), updated_at + interval '1 microsecond')"
NEWEST_FIRST = "ORDER BY created_at DESC, id DESC"
# The owner is part of every WHERE: a task of somebody else is a task that does not exist.
OWNED = "user_id = %(user_id)s"
THIS = f"{OWNED} AND id = %(id)s"

# ON CONFLICT DO NOTHING would return no row to the loser of a race.
CREATE = Statement(
    "create task",
    TaskRow,
    f"""WITH owner AS (INSERT INTO users (id) VALUES (%(user_id)s) ON CONFLICT DO NOTHING)
    INSERT INTO tasks (id, user_id, title, description, completed)
    VALUES (%(id)s, %(user_id)s, %(title)s, %(description)s, %(completed)s)
    ON CONFLICT (id) DO UPDATE SET id = excluded.id WHERE tasks.user_id = excluded.user_id
    RETURNING {COLUMNS}, xmax <> 0""",
)
GET = Statement("get task", TaskRow, f"SELECT {COLUMNS} FROM tasks WHERE {THIS}")


async def create(session: Session, user_id: UUID, task: TaskCreate, key: str | None) -> TaskRow:
    """Make a task and, before their first, its user; under a `key` used before, the task made then."""
    # The id is known before the statement is sent: whoever repeats it finds the task instead of making another.
    task_id = uuid4() if key is None else uuid5(user_id, key)
    [row] = await session.fetch(CREATE, {**_this(user_id, task_id), **task.model_dump()}, effect="idempotent")
    return row


async def get(session: Session, user_id: UUID, task_id: UUID) -> TaskRow | None:
    """The task, or None where this user has no such task."""
    return _first(await session.fetch(GET, _this(user_id, task_id), effect="read"))


async def update(
    session: Session, user_id: UUID, task_id: UUID, change: TaskUpdate, if_match: list[str] | None
) -> TaskRow | None:
    """Change the fields that `change` names, and nothing at all where it names none.

    None where this user has no such task, or one whose version is not in `if_match`.
    """
    named = change.model_dump(exclude_unset=True)
    if not named:
        row = await get(session, user_id, task_id)
        return row if row is None or if_match is None or str(row.version) in if_match else None
    statement = _write("update task", ", ".join(f"{field} = %({field})s" for field in named), if_match)
    values = {**_this(user_id, task_id, if_match), **named}
    return _first(await session.fetch(statement, values, effect="once" if if_match else "idempotent"))


async def toggle(
    session: Session, user_id: UUID, task_id: UUID, completed: bool | None, if_match: list[str] | None
) -> TaskRow | None:
    """Set the completion, or flip it where `completed` is None; None as in `update`."""
    statement = _write("toggle task", "completed = coalesce(%(completed)s, NOT completed)", if_match)
    values = {**_this(user_id, task_id, if_match), "completed": completed}
    flips = completed is None
    return _first(await session.fetch(statement, values, effect="once" if flips or if_match else "idempotent"))


async def delete(session: Session, user_id: UUID, task_id: UUID, if_match: list[str] | None) -> bool:
    """Remove the task; False where `update` gives None."""
    statement = Statement("delete task", DeletedId, f"DELETE FROM tasks WHERE {_matching(if_match)} RETURNING id")
    return bool(await session.fetch(statement, _this(user_id, task_id, if_match), effect="once"))


async def page(session: Session, user_id: UUID, query: TaskQuery) -> Page:
    """One page of the user's tasks that match, newest first."""
    values: dict[str, Parameter] = {"user_id": str(user_id), "offset": query.offset, "limit": query.limit}
    conditions = [OWNED]
    if query.completed is not None:
        conditions.append("completed = %(completed)s")
        values["completed"] = query.completed
    if query.q is not None:
        conditions.append("title ILIKE ALL (%(patterns)s::text[])")
        values["patterns"] = [f"%{_literal(word)}%" for word in query.q.split()]
    matching = " AND ".join(conditions)
    count = f"SELECT count(*) AS total FROM tasks WHERE {matching}"
    if query.cursor is not None:
        matching += " AND (created_at, id) < (timestamptz 'epoch' + %(created)s * interval '1 microsecond', %(id)s)"
        created, values["id"] = query.cursor.split("-")
        values["created"] = int(created)
    wanted = f"SELECT * FROM tasks WHERE {matching} {NEWEST_FIRST} OFFSET %(offset)s LIMIT %(limit)s + 1"
    # COLUMNS stand outside: within, PostgreSQL would write the times of all tasks that an offset leaves out.
    sql = f"SELECT {COLUMNS} FROM ({wanted}) AS wanted {NEWEST_FIRST}"
    if query.total:
        # An empty page has a total too.
        both = f"({count}) AS counted LEFT JOIN ({wanted}) AS wanted ON true"
        sql = f"SELECT {COLUMNS}, false, total FROM {both} {NEWEST_FIRST}"
    rows = await session.fetch(Statement("list tasks", TaskRow, sql), values, effect="read")
    tasks = [row for row in rows if row.id is not None][: query.limit]
    return Page(tasks, _cursor(tasks[-1]) if len(rows) > query.limit else None, rows[0].total if rows else None)


def _this(user_id: UUID, task_id: UUID, if_match: list[str] | None = None) -> dict[str, Parameter]:
    return {"user_id": str(user_id), "id": str(task_id), "if_match": if_match}


def _matching(if_match: list[str] | None) -> str:
    return THIS if if_match is None else f"{THIS} AND version::text = ANY (%(if_match)s::text[])"


def _write(name: str, assignments: str, if_match: list[str] | None) -> Statement[TaskRow]:
    sql = f"UPDATE tasks SET {assignments}, {WRITTEN} WHERE {_matching(if_match)} RETURNING {COLUMNS}"
    return Statement(name, TaskRow, sql)


def _first(rows: list[TaskRow]) -> TaskRow | None:
    return rows[0] if rows else None


def _literal(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _cursor(last: TaskRow) -> str:
    """Where the task stands in the list: its creation in microseconds since 1970, and its id."""
    created = (datetime.fromisoformat(last.created_at) - EPOCH) // timedelta(microseconds=1)
    return f"{created:016}-{UUID(last.id).hex}"
