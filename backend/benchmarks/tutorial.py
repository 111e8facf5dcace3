"""A service like those in the FastAPI and SQLModel tutorials: sync endpoints, a session per request, ORM entities."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, HTTPException, Query
from sqlalchemy import DateTime, make_url
from sqlmodel import Field, Session, SQLModel, col, create_engine, select

engine = create_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg2"), pool_pre_ping=True)


def now() -> datetime:
    return datetime.now(UTC)


class User(SQLModel, table=True):
    __tablename__ = "users"

    id: UUID = Field(primary_key=True)


class TaskBase(SQLModel):
    title: str = Field(min_length=1, max_length=255)
    description: str | None = Field(default=None, max_length=2000)
    completed: bool = False


class Task(TaskBase, table=True):
    __tablename__ = "tasks"

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    user_id: UUID = Field(foreign_key="users.id", primary_key=True)
    created_at: datetime = Field(default_factory=now, sa_type=DateTime(timezone=True))
    updated_at: datetime = Field(default_factory=now, sa_type=DateTime(timezone=True))


class TaskCreate(TaskBase):
    pass


class TaskUpdate(SQLModel):
    title: str | None = Field(default=None, min_length=1, max_length=255)
    description: str | None = Field(default=None, max_length=2000)
    completed: bool | None = None


class TaskPublic(TaskBase):
    id: UUID
    user_id: UUID
    created_at: datetime
    updated_at: datetime


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session)]
app = FastAPI()


@app.post("/api/{user_id}/tasks", response_model=TaskPublic, status_code=201)
def create_task(user_id: UUID, task: TaskCreate, session: SessionDep) -> Task:
    if session.get(User, user_id) is None:
        session.add(User(id=user_id))
        session.flush()
    return _saved(session, Task.model_validate(task, update={"user_id": user_id}))


@app.get("/api/{user_id}/tasks", response_model=list[TaskPublic])
def list_tasks(
    user_id: UUID, session: SessionDep, offset: int = 0, limit: Annotated[int, Query(le=100)] = 50
) -> list[Task]:
    newest_first = (
        select(Task).where(Task.user_id == user_id).order_by(col(Task.created_at).desc(), col(Task.id).desc())
    )
    return list(session.exec(newest_first.offset(offset).limit(limit)).all())


@app.get("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
def get_task(user_id: UUID, task_id: UUID, session: SessionDep) -> Task:
    return _owned(session, user_id, task_id)


@app.put("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
def update_task(user_id: UUID, task_id: UUID, change: TaskUpdate, session: SessionDep) -> Task:
    task = _owned(session, user_id, task_id)
    task.sqlmodel_update(change.model_dump(exclude_unset=True), update={"updated_at": now()})
    return _saved(session, task)


@app.patch("/api/{user_id}/tasks/{task_id}/complete", response_model=TaskPublic)
def toggle_task(user_id: UUID, task_id: UUID, session: SessionDep) -> Task:
    task = _owned(session, user_id, task_id)
    task.sqlmodel_update({"completed": not task.completed, "updated_at": now()})
    return _saved(session, task)


def _owned(session: Session, user_id: UUID, task_id: UUID) -> Task:
    task = session.get(Task, (task_id, user_id))
    if task is None:
        raise HTTPException(status_code=404, detail="Task not found")
    return task


def _saved(session: Session, task: Task) -> Task:
    session.add(task)
    session.commit()
    session.refresh(task)
    return task
