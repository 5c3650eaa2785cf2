"""Tables of the queue database: outbound messages, acceptances, blobs they need.

``due`` is when a recipient may be claimed: the next attempt while queued, the end of
the lease while leased, NULL otherwise.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    text,
)

from storage.metadata.column_types import RowId, Text

QUEUE = MetaData()


def _key(name: str) -> Column[int]:
    return Column(name, BigInteger, primary_key=True, autoincrement=False)


def _int(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


QUEUE_STATE = Table(
    "queue_state",
    QUEUE,
    Column("id", Integer, primary_key=True),
    _int("token"),  # the last fencing token
)

BLOB = Table(
    "blob",
    QUEUE,
    Column("hash", LargeBinary, primary_key=True),
    Column("store", LargeBinary, nullable=False),
    _int("segment"),
    _int("offset"),
    _int("length"),
    _int("size"),
    _int("codec"),
    _int("key"),
    sqlite_with_rowid=False,
)

MESSAGE = Table(
    "queue_message",
    QUEUE,
    Column("message", RowId, primary_key=True, autoincrement=False),
    Column("key", LargeBinary, nullable=True),  # of the submission; NULL: none
    Column("hash", LargeBinary, nullable=False),
    _text("reverse_path"),
    _int("created"),
    _int("expires"),
    _int("account"),
    Column("smtputf8", SmallInteger, nullable=False),
    _text("body"),
    _text("ret"),
    _text("envid"),
    _text("message_id"),
    _text("origin"),
    _int("open"),  # recipients not final, or with a notice to send
    _int("finished"),  # when ``open`` became 0; 0 before
    Index("queue_message_key", "key", unique=True),
    Index("queue_message_hash", "hash"),
    Index("queue_message_finished", "finished", "message"),
)

RECIPIENT = Table(
    "queue_recipient",
    QUEUE,
    _key("message"),
    _key("position"),
    _text("address"),
    _text("domain"),  # A-labels, for routing
    _text("notify"),  # comma-separated
    _text("orcpt"),
    Column("state", SmallInteger, nullable=False),
    Column("due", BigInteger, nullable=True),
    _int("attempts"),
    _int("token"),
    Column("wish", SmallInteger, nullable=False),  # state after the attempt in flight
    _int("updated"),
    _text("reply"),
    _text("status"),
    _text("mta"),
    Column("notice", SmallInteger, nullable=True),  # NULL: none
    Column("delay_sent", SmallInteger, nullable=False),
    Index("queue_recipient_due", "due", "domain"),
    Index(
        "queue_recipient_notice",
        "notice",
        sqlite_where=text("notice > 0"),
        postgresql_where=text("notice > 0"),
    ),
    Index("queue_recipient_domain", "domain", "state"),
    Index("queue_recipient_state", "state"),
    sqlite_with_rowid=False,
)

ACCEPTANCE = Table(
    "acceptance",
    QUEUE,
    Column("acceptance", LargeBinary, primary_key=True),
    Column("hash", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    _int("created"),
    _int("open"),  # targets not yet applied
    Index("acceptance_hash", "hash"),
    Index("acceptance_open", "open", "created"),
    sqlite_with_rowid=False,
)

ACCEPTANCE_TARGET = Table(
    "acceptance_target",
    QUEUE,
    Column("acceptance", LargeBinary, primary_key=True),
    Column("target", Text, primary_key=True),
    Column("payload", LargeBinary, nullable=False),
    _int("applied"),  # when; 0 not yet
    Index(
        "acceptance_target_left",
        "applied",
        sqlite_where=text("applied = 0"),
        postgresql_where=text("applied = 0"),
    ),
    sqlite_with_rowid=False,
)
