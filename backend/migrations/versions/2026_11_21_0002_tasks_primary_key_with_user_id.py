"""Put the user into the primary key of tasks: a distributed table's unique keys must contain the distribution column.

The new index is built without blocking requests; only the exchange of the keys locks the table, for milliseconds.
If a step fails, nothing has to be repaired: run the migration again.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Change the primary key from (id) to (user_id, id)."""
    change_primary_key("user_id, id")


def downgrade() -> None:
    """Change it back to (id). Fails with a unique violation if two users have a task with the same id."""
    change_primary_key("id")


def change_primary_key(columns: str) -> None:
    """Build the index of the new key, then exchange the keys."""
    with op.get_context().autocommit_block():
        # Building concurrently waits for every older transaction in the database, but no request waits for it.
        op.execute("SET lock_timeout = '10min'")
        # A failed attempt may have left this index, possibly invalid.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS pk_tasks_new")
        op.execute(f"CREATE UNIQUE INDEX CONCURRENTLY pk_tasks_new ON tasks ({columns})")
        # Requests queue behind the exchange while it waits for its lock.
        op.execute("SET lock_timeout = '2s'")
    op.execute(
        "ALTER TABLE tasks DROP CONSTRAINT pk_tasks, ADD CONSTRAINT pk_tasks PRIMARY KEY USING INDEX pk_tasks_new"
    )
