"""The database's schema: which revision the code needs, and how to get there."""

from functools import cache
from pathlib import Path

import psycopg2
from psycopg2.extensions import connection, parse_dsn

from backend.core.connect import connection_string

MIGRATIONS = Path(__file__).parents[1] / "migrations"


@cache
def head() -> str:
    """The revision that the code is written for: that of the last migration, whose file is named date_revision_subject.

    Alembic would say the same, for a tenth of a second and 10 MB in every process.
    """
    _, _, _, revision, *_ = max(MIGRATIONS.glob("versions/*.py")).stem.split("_")
    return revision


def connect(url: str) -> connection:
    """A blocking connection for migrations, to the server itself: not through Neon's pooler, which shares sessions."""
    dsn = parse_dsn(connection_string(url))
    if "host" in dsn:
        dsn["host"] = dsn["host"].replace("-pooler.", ".")
    opened: connection = psycopg2.connect(**dsn)
    return opened


def upgrade(url: str) -> None:
    """Bring the database at `url` to `head()`; quick where it is there already.

    Raises psycopg2.OperationalError where it cannot be reached, and what Alembic or SQLAlchemy make of a migration that
    fails or of a revision that this version does not know.
    """
    opened = connect(url)
    try:
        with opened.cursor() as cursor:
            cursor.execute("SELECT to_regclass('alembic_version') IS NOT NULL")
            if cursor.fetchone() == (True,):
                cursor.execute("SELECT version_num FROM alembic_version")
                if cursor.fetchone() == (head(),):
                    return
    finally:
        opened.close()
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["url"] = url
    command.upgrade(config, "head")
