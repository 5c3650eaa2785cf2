"""Tables of a metadata shard (DESIGN section 4): every key starts with the account.

What comes out of messages is stored as bytes: NUL and lone surrogates exist.
``email`` is wide and never changes; ``email_state`` holds what changes and what
queries compare, ``mailbox_email`` says where an email lies.  An email's modseq in
a mailbox (RFC 7162) is the greater of the membership's and ``flags_modseq``.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    event,
    text,
)

from storage.metadata.column_types import Text

SHARD = MetaData()


def _key(name: str) -> Column[int]:
    return Column(name, BigInteger, primary_key=True, autoincrement=False)


def _int(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


def _flag(name: str) -> Column[int]:
    return Column(name, SmallInteger, nullable=False, server_default=text("0"))


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default=text("''"))


def _bytes(name: str) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=False)


ACCOUNT = Table(
    "account",
    SHARD,
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
    _int("tombstone_floor"),  # changes since before this modseq are not known
    sqlite_with_rowid=False,
)

MAILBOX = Table(
    "mailbox",
    SHARD,
    _key("account_id"),
    _key("mailbox_id"),
    _int("parent_id"),  # 0: top level
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
    Index("mailbox_name", "account_id", "parent_id", "name", unique=True),
    sqlite_with_rowid=False,
)

SUBSCRIPTION = Table(  # of names without a mailbox (RFC 9051 section 6.3.7)
    "subscription",
    SHARD,
    _key("account_id"),
    Column("path", Text, primary_key=True),
    sqlite_with_rowid=False,
)

EMAIL = Table(
    "email",
    SHARD,
    _key("account_id"),
    _key("email_id"),
    _bytes("hash"),
    _int("header_size"),
    _bytes("message_id"),
    _bytes("base_subject"),
    _bytes("sort_from"),
    _bytes("sort_to"),
    _text("recipient"),  # of the envelope; "" for APPEND and import
    _bytes("list_json"),
    _bytes("envelope"),
    _bytes("bodystructure"),
    _bytes("part_table"),
    _bytes("search_text"),  # zstd of "headers\0body"
    Index("email_hash", "hash", "account_id"),  # an email owns its blob
)

EMAIL_STATE = Table(
    "email_state",
    SHARD,
    _key("account_id"),
    _key("email_id"),
    _int("modseq"),  # of the last change that JMAP or a mailbox shows
    _int("flags_modseq"),  # of the last change of keywords
    _int("created_modseq"),
    _int("shown"),  # modseq since which JMAP shows the email; 0: it does not
    _int("system"),  # bits: 1 \Seen, 2 \Answered, 4 \Flagged, 8 \Draft
    _text("keywords"),  # the others, sorted, joined by spaces
    _int("thread_id"),
    _int("received_at"),
    Column("sent_at", BigInteger, nullable=True),
    _int("size"),
    _flag("has_attachment"),
    Index("email_state_modseq", "account_id", "modseq"),
    Index("email_state_thread", "account_id", "thread_id"),
    sqlite_with_rowid=False,
)

# All mail by date, and how much of it is hidden: all but always nothing.
Index(
    "email_state_date",
    EMAIL_STATE.c.account_id,
    EMAIL_STATE.c.received_at,
    EMAIL_STATE.c.email_id,
    EMAIL_STATE.c.thread_id,
    EMAIL_STATE.c.shown,
    sqlite_where=EMAIL_STATE.c.shown > 0,
    postgresql_where=EMAIL_STATE.c.shown > 0,
)
Index(
    "email_state_hidden",
    EMAIL_STATE.c.account_id,
    EMAIL_STATE.c.shown,
    sqlite_where=EMAIL_STATE.c.shown == 0,
    postgresql_where=EMAIL_STATE.c.shown == 0,
)

MAILBOX_EMAIL = Table(
    "mailbox_email",
    SHARD,
    _key("account_id"),
    _key("mailbox_id"),
    _key("uid"),
    _int("email_id"),
    _int("modseq"),  # of the last change of the membership itself
    _flag("deleted"),
    _flag("unseen"),
    _int("received_at"),
    _int("thread_id"),
    _int("save_date"),
    Index("mailbox_email_email", "account_id", "email_id", "deleted"),
    sqlite_with_rowid=False,
)
# The constant columns at the end let SQLite answer from these indexes alone.
Index(
    "mailbox_email_page",
    MAILBOX_EMAIL.c.account_id,
    MAILBOX_EMAIL.c.mailbox_id,
    MAILBOX_EMAIL.c.received_at,
    MAILBOX_EMAIL.c.email_id,
    MAILBOX_EMAIL.c.thread_id,
    MAILBOX_EMAIL.c.deleted,
    sqlite_where=MAILBOX_EMAIL.c.deleted == 0,
    postgresql_where=MAILBOX_EMAIL.c.deleted == 0,
)
Index(
    "mailbox_email_unseen",
    MAILBOX_EMAIL.c.account_id,
    MAILBOX_EMAIL.c.mailbox_id,
    MAILBOX_EMAIL.c.received_at,
    MAILBOX_EMAIL.c.email_id,
    MAILBOX_EMAIL.c.thread_id,
    MAILBOX_EMAIL.c.deleted,
    MAILBOX_EMAIL.c.unseen,
    sqlite_where=(MAILBOX_EMAIL.c.unseen == 1) & (MAILBOX_EMAIL.c.deleted == 0),
    postgresql_where=(MAILBOX_EMAIL.c.unseen == 1) & (MAILBOX_EMAIL.c.deleted == 0),
)

MAILBOX_THREAD = Table(  # of what JMAP shows
    "mailbox_thread",
    SHARD,
    _key("account_id"),
    _key("mailbox_id"),
    _key("thread_id"),
    _int("emails"),
    _int("unread"),
    sqlite_with_rowid=False,
)

THREAD_KEY = Table(  # 64 bits of a hash of (message id, base subject)
    "thread_key",
    SHARD,
    _key("account_id"),
    _key("key"),
    _int("thread_id"),
    sqlite_with_rowid=False,
)

EXPUNGED = Table(
    "expunged",
    SHARD,
    _key("account_id"),
    _key("mailbox_id"),
    _key("modseq"),
    _key("uid"),
    _int("at"),
    sqlite_with_rowid=False,
)

DESTROYED = Table(
    "destroyed",
    SHARD,
    _key("account_id"),
    _key("type"),
    _key("modseq"),
    _key("object_id"),
    _int("created"),  # modseq since which the object had been shown
    _int("thread_id"),  # of an email
    _int("at"),
    sqlite_with_rowid=False,
)
TYPE_MAILBOX, TYPE_EMAIL, TYPE_IDENTITY, TYPE_SUBMISSION, TYPE_ROW = 1, 2, 3, 4, 5
"""Types of tombstones; TYPE_EMAIL: JMAP shows it no longer, TYPE_ROW: it is gone."""

BLOB = Table(
    "blob",
    SHARD,
    Column("hash", LargeBinary, primary_key=True),
    _bytes("store"),
    _int("segment"),
    _int("offset"),
    _int("length"),
    _int("size"),
    _int("codec"),
    _int("key"),
    sqlite_with_rowid=False,
)

BLOB_OWNER = Table(  # owners other than emails, which own the blob they name
    "blob_owner",
    SHARD,
    Column("hash", LargeBinary, primary_key=True),
    _key("account_id"),
    _key("kind"),
    _key("owner_id"),
    _int("expires"),  # 0: never
    Index(
        "blob_owner_upload",
        "account_id",
        "expires",
        sqlite_where=text("expires > 0"),
        postgresql_where=text("expires > 0"),
    ),
    sqlite_with_rowid=False,
)
OWNER_UPLOAD = 2

DELIVERED = Table(  # what makes add_email idempotent, kept 7 days
    "delivered",
    SHARD,
    _key("account_id"),
    Column("acceptance", LargeBinary, primary_key=True),
    _int("email_id"),
    _int("thread_id"),
    _int("modseq"),
    _int("at"),
    Index("delivered_at", "at"),
    sqlite_with_rowid=False,
)

IDENTITY = Table(
    "identity",
    SHARD,
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
)

SUBMISSION = Table(
    "submission",
    SHARD,
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
    Index("submission_modseq", "account_id", "modseq"),
)


# What SQLite's planner should believe: a few accounts, each with much mail.  Without
# it, "account_id = ?" alone looks as selective as any index, and a look-up by thread
# or by owner becomes a scan of the account.  Fixed figures keep plans the same for
# every size of database; the forms are those that ANALYZE writes.
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
    ("email_state", "email_state_date", "10000000 100000 2 1 1 1"),
    ("email_state", "email_state_hidden", "10000 100 100"),
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


@event.listens_for(SHARD, "after_create")
def write_statistics(_: object, connection: Connection, **__: object) -> None:
    """Give SQLite's planner ``STATISTICS``; it reads them with the next connection."""
    if connection.dialect.name != "sqlite":
        return
    connection.exec_driver_sql("ANALYZE")
    connection.exec_driver_sql("DELETE FROM sqlite_stat1 WHERE tbl <> 'meta'")
    connection.exec_driver_sql(
        "INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (?, ?, ?)", list(STATISTICS)
    )
    connection.exec_driver_sql("ANALYZE sqlite_schema")


def create_all(connection: Connection) -> None:
    """Create every table of a shard, as the first migration does."""
    SHARD.create_all(connection)
