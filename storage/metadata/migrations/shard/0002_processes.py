"""Several processes on one database: leases, lost answers, retired segments.

And all mail of an account by date, from an index.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from storage.metadata.column_types import Text

revision = "0002"
down_revision = "0001"
needs = 1


def upgrade() -> None:
    """Make the tables that every kind of database has."""
    op.create_table(
        "applied",
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
        sqlite_with_rowid=False,
    )
    op.create_index("applied_at", "applied", ["at"])
    op.create_table(
        "lease",
        sa.Column("name", Text, nullable=False),
        sa.Column("owner", sa.LargeBinary(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "writer",
        sa.Column("owner", sa.LargeBinary(), nullable=False),
        sa.Column("batch", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "progress",
        sa.Column("name", Text, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "retired",
        sa.Column("segment", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("segment"),
        sqlite_with_rowid=False,
    )
    _all_mail()


def _all_mail() -> None:
    """Make the indexes that find all mail by date, and count what is hidden."""
    shown, hidden = sa.text("shown > 0"), sa.text("shown = 0")
    op.create_index(
        "email_state_date",
        "email_state",
        ["account_id", "received_at", "email_id", "thread_id", "shown"],
        sqlite_where=shown,
        postgresql_where=shown,
    )
    op.create_index(
        "email_state_hidden",
        "email_state",
        ["account_id", "shown"],
        sqlite_where=hidden,
        postgresql_where=hidden,
    )
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        return
    connection.exec_driver_sql(
        "INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (?, ?, ?)",
        [
            ("email_state", "email_state_date", "10000000 100000 2 1 1 1"),
            ("email_state", "email_state_hidden", "10000 100 100"),
        ],
    )
    connection.exec_driver_sql("ANALYZE sqlite_schema")
