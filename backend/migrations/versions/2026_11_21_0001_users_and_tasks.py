"""Users and tasks.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

NOW = sa.text("now()")


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("title", sa.String(255), nullable=False),
        sa.Column("description", sa.String(2000), nullable=True),
        sa.Column("completed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column(
            "version",
            sa.BigInteger(),
            server_default=sa.text("(extract(epoch from now()) * 1000000)::bigint"),
            nullable=False,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.CheckConstraint("title <> ''", name=op.f("ck_tasks_title_not_empty")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_tasks_user_id_users"),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
    )
    newest_first = (sa.text("created_at DESC"), sa.text("id DESC"))
    op.create_index("ix_tasks_user_id_created_at_id", "tasks", ["user_id", *newest_first])
    op.create_index("ix_tasks_user_id_completed_created_at_id", "tasks", ["user_id", "completed", *newest_first])


def downgrade() -> None:
    """Drop both tables and all tasks."""
    op.drop_table("tasks")
    op.drop_table("users")
