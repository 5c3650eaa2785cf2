"""Tables that every kind of database has beside its own, for whoever shares it.

``applied`` keeps what a unit of work returned that another process sent, until that
process has the answer: a unit whose answer was lost is looked up by its key, never
run twice.  ``lease`` says which process does a piece of background work, and
``progress`` where it goes on after a restart.  ``writer`` tells a process whose
connection broke during COMMIT if its batch is there.  ``retired`` names segments of
the blob store that no row may point to any more (``storage.metadata.retired``).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    LargeBinary,
    MetaData,
    Table,
)

from storage.metadata.column_types import Text

COMMON = MetaData()

APPLIED = Table(
    "applied",
    COMMON,
    Column("key", LargeBinary, primary_key=True),
    Column("at", BigInteger, nullable=False),  # seconds since the epoch
    Column("outcome", LargeBinary, nullable=False),
    Index("applied_at", "at"),
    sqlite_with_rowid=False,
)

LEASE = Table(
    "lease",
    COMMON,
    Column("name", Text, primary_key=True),
    Column("owner", LargeBinary, nullable=False),
    Column("term", BigInteger, nullable=False),  # grows with each change of owner
    Column("until", Double, nullable=False),  # seconds since the epoch
    sqlite_with_rowid=False,
)

WRITER = Table(
    "writer",
    COMMON,
    Column("owner", LargeBinary, primary_key=True),
    Column("batch", LargeBinary, nullable=False),
    Column("at", BigInteger, nullable=False),  # seconds since the epoch
    sqlite_with_rowid=False,
)

PROGRESS = Table(
    "progress",
    COMMON,
    Column("name", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

RETIRED = Table(
    "retired",
    COMMON,
    Column("segment", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),  # seconds since the epoch
    sqlite_with_rowid=False,
)
