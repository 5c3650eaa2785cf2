"""The first schema of the shard database."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from storage.metadata.column_types import Text

revision = "0001"
down_revision = None
needs = 1

STATISTICS = (
    ("account", "account", "100 1"),
    ("mailbox", "mailbox", "2000 20 1"),
    ("mailbox", "mailbox_name", "2000 20 10 1"),
    ("subscription", "subscription", "200 2 1"),
    ("email", "sqlite_autoindex_email_1", "10000000 100000 1"),
    ("email", "email_hash", "10000000 2 1"),
    ("email_state", "email_state", "10000000 100000 1"),
    ("email_state", "email_state_modseq", "10000000 100000 5"),
    ("email_state", "email_state_thread", "10000000 100000 3"),
    ("mailbox_email", "mailbox_email", "10000000 100000 10000 1"),
    ("mailbox_email", "mailbox_email_email", "10000000 100000 1 1"),
    ("mailbox_email", "mailbox_email_page", "10000000 100000 10000 2 1 1 1"),
    ("mailbox_email", "mailbox_email_unseen", "1000000 10000 1000 2 1 1 1 1"),
    ("mailbox_thread", "mailbox_thread", "5000000 50000 5000 1"),
    ("thread_key", "thread_key", "20000000 200000 1"),
    ("expunged", "expunged", "1000000 10000 1000 50 1"),
    ("destroyed", "destroyed", "1000000 10000 5000 50 1"),
    ("blob", "blob", "10000000 1"),
    ("blob_owner", "blob_owner", "10000000 2 1 1 1"),
    ("blob_owner", "blob_owner_upload", "1000 20 1"),
    ("delivered", "delivered", "1000000 10000 1"),
    ("delivered", "delivered_at", "1000000 10"),
    ("identity", "sqlite_autoindex_identity_1", "200 2 1"),
    ("submission", "sqlite_autoindex_submission_1", "100000 1000 1"),
    ("submission", "submission_modseq", "100000 1000 1"),
)


def upgrade() -> None:
    """Make every table."""
    _account()
    _blob()
    _blob_owner()
    _delivered()
    _destroyed()
    _email()
    _email_state()
    _expunged()
    _identity()
    _mailbox()
    _mailbox_email()
    _mailbox_thread()
    _submission()
    _subscription()
    _thread_key()
    _statistics()


def _account() -> None:
    op.create_table(
        "account",
        _key("account_id"),
        _int("epoch"),
        _int("modseq"),
        _int("mailbox_modseq"),
        _int("email_modseq"),
        _int("thread_modseq"),
        _int("identity_modseq"),
        _int("submission_modseq"),
        _int("last_mailbox"),
        _int("last_email"),
        _int("last_thread"),
        _int("last_identity"),
        _int("last_submission"),
        _int("last_uidvalidity"),
        _int("inbox_id"),
        _int("quota_limit"),
        _int("quota_used"),
        _int("message_count"),
        _int("tombstone_floor"),
        sa.PrimaryKeyConstraint("account_id"),
        sqlite_with_rowid=False,
    )


def _blob() -> None:
    op.create_table(
        "blob",
        _bytes("hash"),
        _bytes("store"),
        _int("segment"),
        _int("offset"),
        _int("length"),
        _int("size"),
        _int("codec"),
        _int("key"),
        sa.PrimaryKeyConstraint("hash"),
        sqlite_with_rowid=False,
    )


def _blob_owner() -> None:
    op.create_table(
        "blob_owner",
        _bytes("hash"),
        _key("account_id"),
        _key("kind"),
        _key("owner_id"),
        _int("expires"),
        sa.PrimaryKeyConstraint("hash", "account_id", "kind", "owner_id"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "blob_owner_upload",
        "blob_owner",
        ["account_id", "expires"],
        sqlite_where=sa.text("expires > 0"),
        postgresql_where=sa.text("expires > 0"),
    )


def _delivered() -> None:
    op.create_table(
        "delivered",
        _key("account_id"),
        _bytes("acceptance"),
        _int("email_id"),
        _int("thread_id"),
        _int("modseq"),
        _int("at"),
        sa.PrimaryKeyConstraint("account_id", "acceptance"),
        sqlite_with_rowid=False,
    )
    op.create_index("delivered_at", "delivered", ["at"])


def _destroyed() -> None:
    op.create_table(
        "destroyed",
        _key("account_id"),
        _key("type"),
        _key("modseq"),
        _key("object_id"),
        _int("created"),
        _int("thread_id"),
        _int("at"),
        sa.PrimaryKeyConstraint("account_id", "type", "modseq", "object_id"),
        sqlite_with_rowid=False,
    )


def _email() -> None:
    op.create_table(
        "email",
        _key("account_id"),
        _key("email_id"),
        _bytes("hash"),
        _int("header_size"),
        _bytes("message_id"),
        _bytes("base_subject"),
        _bytes("sort_from"),
        _bytes("sort_to"),
        _text("recipient"),
        _bytes("list_json"),
        _bytes("envelope"),
        _bytes("bodystructure"),
        _bytes("part_table"),
        _bytes("search_text"),
        sa.PrimaryKeyConstraint("account_id", "email_id"),
    )
    op.create_index("email_hash", "email", ["hash", "account_id"])


def _email_state() -> None:
    op.create_table(
        "email_state",
        _key("account_id"),
        _key("email_id"),
        _int("modseq"),
        _int("flags_modseq"),
        _int("created_modseq"),
        _int("shown"),
        _int("system"),
        _text("keywords"),
        _int("thread_id"),
        _int("received_at"),
        sa.Column("sent_at", sa.BigInteger(), nullable=True),
        _int("size"),
        _flag("has_attachment"),
        sa.PrimaryKeyConstraint("account_id", "email_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("email_state_modseq", "email_state", ["account_id", "modseq"])
    op.create_index("email_state_thread", "email_state", ["account_id", "thread_id"])


def _expunged() -> None:
    op.create_table(
        "expunged",
        _key("account_id"),
        _key("mailbox_id"),
        _key("modseq"),
        _key("uid"),
        _int("at"),
        sa.PrimaryKeyConstraint("account_id", "mailbox_id", "modseq", "uid"),
        sqlite_with_rowid=False,
    )


def _identity() -> None:
    op.create_table(
        "identity",
        _key("account_id"),
        _key("identity_id"),
        _text("name"),
        _text("email"),
        _bytes("reply_to"),
        _bytes("bcc"),
        _text("text_signature"),
        _text("html_signature"),
        _flag("may_delete"),
        _int("created_modseq"),
        _int("modseq"),
        sa.PrimaryKeyConstraint("account_id", "identity_id"),
    )


def _mailbox() -> None:
    op.create_table(
        "mailbox",
        _key("account_id"),
        _key("mailbox_id"),
        _int("parent_id"),
        _text("name"),
        _text("role"),
        _flag("subscribed"),
        _int("sort_order"),
        _int("uidvalidity"),
        _int("uidnext"),
        _int("highestmodseq"),
        _int("modseq"),
        _int("created_modseq"),
        _int("properties_modseq"),
        _int("messages"),
        _int("unseen"),
        _int("deleted"),
        _int("size"),
        _int("total_emails"),
        _int("unread_emails"),
        _int("total_threads"),
        _int("unread_threads"),
        sa.PrimaryKeyConstraint("account_id", "mailbox_id"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "mailbox_name", "mailbox", ["account_id", "parent_id", "name"], unique=True
    )


def _mailbox_email() -> None:
    op.create_table(
        "mailbox_email",
        _key("account_id"),
        _key("mailbox_id"),
        _key("uid"),
        _int("email_id"),
        _int("modseq"),
        _flag("deleted"),
        _flag("unseen"),
        _int("received_at"),
        _int("thread_id"),
        _int("save_date"),
        sa.PrimaryKeyConstraint("account_id", "mailbox_id", "uid"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "mailbox_email_email", "mailbox_email", ["account_id", "email_id", "deleted"]
    )
    op.create_index(
        "mailbox_email_page",
        "mailbox_email",
        ["account_id", "mailbox_id", "received_at", "email_id", "thread_id", "deleted"],
        sqlite_where=sa.text("deleted = 0"),
        postgresql_where=sa.text("deleted = 0"),
    )
    op.create_index(
        "mailbox_email_unseen",
        "mailbox_email",
        [
            "account_id",
            "mailbox_id",
            "received_at",
            "email_id",
            "thread_id",
            "deleted",
            "unseen",
        ],
        sqlite_where=sa.text("unseen = 1 AND deleted = 0"),
        postgresql_where=sa.text("unseen = 1 AND deleted = 0"),
    )


def _mailbox_thread() -> None:
    op.create_table(
        "mailbox_thread",
        _key("account_id"),
        _key("mailbox_id"),
        _key("thread_id"),
        _int("emails"),
        _int("unread"),
        sa.PrimaryKeyConstraint("account_id", "mailbox_id", "thread_id"),
        sqlite_with_rowid=False,
    )


def _submission() -> None:
    op.create_table(
        "submission",
        _key("account_id"),
        _key("submission_id"),
        _int("identity_id"),
        _int("email_id"),
        _int("thread_id"),
        _bytes("envelope"),
        _int("send_at"),
        _text("undo_status"),
        _text("queue_id"),
        _bytes("delivery_status"),
        _int("created_modseq"),
        _int("modseq"),
        sa.PrimaryKeyConstraint("account_id", "submission_id"),
    )
    op.create_index("submission_modseq", "submission", ["account_id", "modseq"])


def _subscription() -> None:
    op.create_table(
        "subscription",
        _key("account_id"),
        sa.Column("path", Text, nullable=False),
        sa.PrimaryKeyConstraint("account_id", "path"),
        sqlite_with_rowid=False,
    )


def _thread_key() -> None:
    op.create_table(
        "thread_key",
        _key("account_id"),
        _key("key"),
        _int("thread_id"),
        sa.PrimaryKeyConstraint("account_id", "key"),
        sqlite_with_rowid=False,
    )


def _key(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), autoincrement=False, nullable=False)


def _int(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)


def _flag(name: str) -> sa.Column[int]:
    return sa.Column(
        name, sa.SmallInteger(), server_default=sa.text("0"), nullable=False
    )


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, Text, server_default=sa.text("''"), nullable=False)


def _bytes(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary(), nullable=False)


def _statistics() -> None:
    """Give SQLite's planner figures of a large shard, the same for all."""
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        return
    connection.exec_driver_sql("ANALYZE")
    connection.exec_driver_sql("DELETE FROM sqlite_stat1 WHERE tbl <> 'meta'")
    connection.exec_driver_sql(
        "INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (?, ?, ?)", list(STATISTICS)
    )
    connection.exec_driver_sql("ANALYZE sqlite_schema")
