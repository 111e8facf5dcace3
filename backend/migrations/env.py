"""Alembic's environment. The database is that of the settings, or the one that `backend.core.schema` passes."""

from contextlib import nullcontext

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.schema import SchemaItem

from backend.core import embedded
from backend.core.config import fail_startup, load_settings
from backend.core.schema import connect
from backend.models import Task, User

# Better Auth's tables may be in the same database; autogenerate would drop them.
OURS = {User.__tablename__, Task.__tablename__}
# An arbitrary number, the same in every process that migrates.
MIGRATION_LOCK = 7_236_451


def is_ours(item: SchemaItem, name: str | None, kind: str, reflected: bool, compare_to: SchemaItem | None) -> bool:
    """Whether autogenerate compares a table."""
    return kind != "table" or name in OURS


def migrate(url: str) -> None:
    """Run the migrations of the command on `url`, all in one transaction."""
    engine = create_engine("postgresql+psycopg2://", creator=lambda: connect(url))
    with engine.connect() as connection, connection.begin():
        # Serialize migrations; fail fast rather than queue behind a lock.
        connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        context.configure(connection=connection, target_metadata=User.metadata, include_object=is_ours)
        context.run_migrations()
    engine.dispose()


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=User.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    configured = context.config.attributes.get("url")
    if configured is None and (secret := load_settings().database_url) is not None:
        configured = secret.get_secret_value()
    with nullcontext(configured) if configured else embedded.postgres() as database_url:
        try:
            migrate(database_url)
        except OperationalError as error:
            fail_startup(f"the database cannot be migrated: {' '.join(str(error.orig).split())}")
