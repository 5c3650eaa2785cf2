"""The first schema of the queue database."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from storage.metadata.column_types import RowId, Text

revision = "0001"
down_revision = None
needs = 1


def upgrade() -> None:
    """Make every table."""
    _acceptance()
    _acceptance_target()
    _blob()
    _queue_message()
    _queue_recipient()
    _queue_state()


def _acceptance() -> None:
    op.create_table(
        "acceptance",
        sa.Column("acceptance", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("open", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("acceptance"),
        sqlite_with_rowid=False,
    )
    op.create_index("acceptance_hash", "acceptance", ["hash"])
    op.create_index("acceptance_open", "acceptance", ["open", "created"])


def _acceptance_target() -> None:
    op.create_table(
        "acceptance_target",
        sa.Column("acceptance", sa.LargeBinary(), nullable=False),
        sa.Column("target", Text, nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("applied", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("acceptance", "target"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "acceptance_target_left",
        "acceptance_target",
        ["applied"],
        sqlite_where=sa.text("applied = 0"),
        postgresql_where=sa.text("applied = 0"),
    )


def _blob() -> None:
    op.create_table(
        "blob",
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("store", sa.LargeBinary(), nullable=False),
        sa.Column("segment", sa.BigInteger(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("codec", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hash"),
        sqlite_with_rowid=False,
    )


def _queue_message() -> None:
    op.create_table(
        "queue_message",
        sa.Column("message", RowId, autoincrement=False, nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=True),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("reverse_path", Text, nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.BigInteger(), nullable=False),
        sa.Column("smtputf8", sa.SmallInteger(), nullable=False),
        sa.Column("body", Text, nullable=False),
        sa.Column("ret", Text, nullable=False),
        sa.Column("envid", Text, nullable=False),
        sa.Column("message_id", Text, nullable=False),
        sa.Column("origin", Text, nullable=False),
        sa.Column("open", sa.BigInteger(), nullable=False),
        sa.Column("finished", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("message"),
    )
    op.create_index("queue_message_finished", "queue_message", ["finished", "message"])
    op.create_index("queue_message_hash", "queue_message", ["hash"])
    op.create_index("queue_message_key", "queue_message", ["key"], unique=True)


def _queue_recipient() -> None:
    op.create_table(
        "queue_recipient",
        sa.Column("message", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("address", Text, nullable=False),
        sa.Column("domain", Text, nullable=False),
        sa.Column("notify", Text, nullable=False),
        sa.Column("orcpt", Text, nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("due", sa.BigInteger(), nullable=True),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("wish", sa.SmallInteger(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.Column("reply", Text, nullable=False),
        sa.Column("status", Text, nullable=False),
        sa.Column("mta", Text, nullable=False),
        sa.Column("notice", sa.SmallInteger(), nullable=True),
        sa.Column("delay_sent", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("message", "position"),
        sqlite_with_rowid=False,
    )
    op.create_index("queue_recipient_domain", "queue_recipient", ["domain", "state"])
    op.create_index("queue_recipient_due", "queue_recipient", ["due", "domain"])
    op.create_index(
        "queue_recipient_notice",
        "queue_recipient",
        ["notice"],
        sqlite_where=sa.text("notice > 0"),
        postgresql_where=sa.text("notice > 0"),
    )
    op.create_index("queue_recipient_state", "queue_recipient", ["state"])


def _queue_state() -> None:
    op.create_table(
        "queue_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
