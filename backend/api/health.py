"""Health checks for platforms and people."""

from typing import Literal

import sqlalchemy as sa
from fastapi import APIRouter
from sqlmodel import SQLModel

from backend.api.responses import ALWAYS
from backend.core.db import SessionDep
from backend.core.errors import SCHEMA_MISMATCH, unavailable
from backend.core.schema import HEAD
from backend.core.statement import Statement

router = APIRouter(prefix="/health", tags=["health"])


class Health(SQLModel):
    """The service is healthy."""

    status: Literal["ok"] = "ok"


REVISION = Statement(
    "get revision",
    sa.select(sa.column("version_num")).select_from(sa.table("alembic_version")),
    "read_only",
    lambda columns, _: str(columns[0]),
)


@router.get("", summary="Check readiness", responses={503: ALWAYS[503]})
async def health(session: SessionDep) -> Health:
    """Ready: the database answers, and its schema is the one this version needs."""
    if await session.exec(REVISION, {}) != [HEAD]:
        raise unavailable(SCHEMA_MISMATCH)
    return Health()


@router.get("/live", summary="Check liveness")
async def live() -> Health:
    """Alive: the process runs. Does not query the database, so probes do not keep a serverless database awake."""
    return Health()
