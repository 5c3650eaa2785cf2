"""Several processes on one database: leases, lost answers, retired segments.

And the shards that the directory expects: at first those where accounts live.
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
    op.create_table(
        "shard",
        sa.Column("uuid", sa.LargeBinary(), nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("added", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("uuid"),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO shard (uuid, name, added) "
        "SELECT shard, '', min(created) FROM account GROUP BY shard"
    )
