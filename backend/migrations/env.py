"""Alembic's environment. The database is that of the settings, or the one that `backend.core.schema` passes."""

import time
from contextlib import nullcontext

from alembic import context
from psycopg2.extensions import connection
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.schema import SchemaItem

from backend.core import embedded
from backend.core.config import fail_startup, load_settings
from backend.core.schema import connect
from backend.models import Task, User

# Better Auth's tables may be in the same database; autogenerate would drop them.
OWN_TABLES = {User.__tablename__, Task.__tablename__}
# An arbitrary number, the same in every process that migrates.
MIGRATION_LOCK = 7_236_451
# Five minutes in total; the pause is in seconds.
LOCK_ATTEMPTS, LOCK_PAUSE = 1500, 0.2


def is_own_table(item: SchemaItem, name: str | None, kind: str, reflected: bool, compare_to: SchemaItem | None) -> bool:
    """Exclude tables other than the service's own from autogenerate."""
    return kind != "table" or name in OWN_TABLES


def connect_and_lock(url: str) -> connection:
    """A connection that holds the migration lock until it is closed.

    Ends the process if another process does not release the lock.
    """
    opened = connect(url)
    opened.autocommit = True
    with opened.cursor() as cursor:
        for _ in range(LOCK_ATTEMPTS):
            # Not pg_advisory_lock: it keeps a snapshot while it waits, and CREATE INDEX CONCURRENTLY, in the process
            # that holds the lock, would wait for that snapshot.
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (MIGRATION_LOCK,))
            if cursor.fetchone() == (True,):
                break
            time.sleep(LOCK_PAUSE)
        else:
            fail_startup("the database cannot be migrated: another process is still migrating it")
        # Fail fast rather than queue behind a long query, with all requests queued behind the migration.
        cursor.execute("SET lock_timeout = '2s'")
        # A statement_timeout set for the role or the database is meant for requests, not for building an index.
        cursor.execute("SET statement_timeout = 0")
    opened.autocommit = False
    return opened


def migrate(url: str) -> None:
    """Run the migrations of the command on `url`, each in a transaction of its own."""
    engine = create_engine("postgresql+psycopg2://", creator=lambda: connect_and_lock(url), poolclass=NullPool)
    with engine.connect() as opened:
        context.configure(
            connection=opened,
            target_metadata=User.metadata,
            include_object=is_own_table,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    context.configure(
        dialect_name="postgresql", target_metadata=User.metadata, literal_binds=True, transaction_per_migration=True
    )
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
