"""The database's schema: the revision that the code needs, and the migration to it."""

import logging
import re
from pathlib import Path

import psycopg2
from psycopg2.extensions import connection, parse_dsn

from backend.core.config import fail_startup
from backend.core.connect import connection_string, require_utf8

logger = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parents[1] / "migrations"
# The last migration's revision. Asking Alembic costs each process 0.1 s and 10 MB; a test compares the two.
HEAD = "0002"


def connect(url: str) -> connection:
    """A blocking connection for migrations, not through Neon's pooler: the migration lock belongs to a session."""
    dsn = parse_dsn(connection_string(url))
    if "host" in dsn:
        dsn["host"] = re.sub(r"-pooler(?=\.[^,]*\bneon\b)", "", dsn["host"])
    opened: connection = psycopg2.connect(**dsn)
    require_utf8(opened)
    return opened


def upgrade(url: str) -> None:
    """Migrate the database at `url` to `HEAD`; does not import Alembic if the database is at `HEAD` already.

    Raises psycopg2.OperationalError if it is unreachable, refuses the login or is not in UTF8, and the exceptions of
    Alembic and SQLAlchemy if a migration fails or the database's revision is unknown. Ends the process if the database
    or a lock becomes unavailable.
    """
    opened = connect(url)
    try:
        with opened.cursor() as cursor:
            cursor.execute("SELECT to_regclass('alembic_version') IS NOT NULL")
            if cursor.fetchone() == (True,):
                cursor.execute("SELECT version_num FROM alembic_version")
                if cursor.fetchone() == (HEAD,):
                    return
    finally:
        opened.close()
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["url"] = url
    command.upgrade(config, "head")


def upgrade_at_start(url: str) -> None:
    """Like `upgrade`, but logs that a database cannot be used; any other failure ends the process with one line."""
    try:
        upgrade(url)
    except psycopg2.OperationalError as error:
        logger.warning("the database cannot be used, so it was not migrated: %s", " ".join(str(error).split()))
    except Exception as error:  # noqa: BLE001  # whatever it is, the service is useless without its schema
        fail_startup(f"the migration failed: {' '.join(str(next(iter(error.args), error)).split())}")
