"""The database's schema: which revision the code needs, and how to get there."""

from functools import cache
from pathlib import Path

import psycopg2
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg2.extensions import connection, parse_dsn

from backend.core.connection import connection_string

MIGRATIONS = Path(__file__).parents[1] / "migrations"


def _config(url: str | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["url"] = url
    return config


@cache
def head() -> str:
    """The revision that the code is written for."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def connect(url: str) -> connection:
    """A blocking connection for migrations, to the server itself: not through Neon's pooler, which shares sessions."""
    dsn = parse_dsn(connection_string(url))
    if "host" in dsn:
        dsn["host"] = dsn["host"].replace("-pooler.", ".")
    opened: connection = psycopg2.connect(**dsn)
    return opened


def upgrade(url: str) -> None:
    """Bring the database at `url` to `head()`; quick where it is there already."""
    opened = connect(url)
    try:
        with opened.cursor() as cursor:
            cursor.execute("SELECT to_regclass('alembic_version') IS NOT NULL")
            (exists,) = cursor.fetchone() or (False,)
            if exists:
                cursor.execute("SELECT version_num FROM alembic_version")
                if cursor.fetchall() == [(head(),)]:
                    return
    finally:
        opened.close()
    command.upgrade(_config(url), "head")
