"""Whether the service works, for platforms and people."""

from typing import Literal, NamedTuple

from fastapi import APIRouter
from sqlmodel import SQLModel

from backend.core.db import SessionDep, Statement
from backend.core.errors import unavailable
from backend.core.schema import head

router = APIRouter(prefix="/health", tags=["health"])


class Health(SQLModel):
    """That all is well."""

    status: Literal["ok"] = "ok"


class Revision(NamedTuple):
    """The migration that the database stands at."""

    version: str


REVISION = Statement("get revision", Revision, "SELECT version_num FROM alembic_version")


@router.get("")
async def health(session: SessionDep) -> Health:
    """Ready: the database answers and its schema is the one this version needs."""
    if await session.fetch(REVISION, {}, effect="read") != [Revision(head())]:
        raise unavailable("The database's schema is missing or behind: run `alembic upgrade head`")
    return Health()


@router.get("/live")
async def live() -> Health:
    """Alive: the process runs. Asks the database nothing, so that a probe does not keep a sleeping one awake."""
    return Health()
