"""What every database says of itself: kind, UUID and schema version.

``schema`` is the version that the tables have; ``needs`` the oldest version that a
program must know to work on them (expand first, contract a release later: the
previous release still runs on an expanded schema).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, Table

from mailserverd.core.errors import Kind, MailError
from storage.metadata.column_types import Text

if TYPE_CHECKING:
    import sqlite3

SHARD, DIRECTORY, QUEUE = "shard", "directory", "queue"
KINDS = (SHARD, DIRECTORY, QUEUE)
SCHEMAS = {SHARD: 2, DIRECTORY: 2, QUEUE: 2}
"""The schema version that this release reads and writes, by kind."""
NEEDS = {SHARD: 1, DIRECTORY: 1, QUEUE: 1}
"""The oldest schema version that a program must know to work on it."""

META = MetaData()
META_TABLE = Table(
    "meta",
    META,
    Column("id", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("uuid", LargeBinary, nullable=False),
    Column("schema_version", Integer, nullable=False),
    Column("needs_version", Integer, nullable=False),
    Column("created", BigInteger, nullable=False),
)
ALEMBIC_TABLE = Table(
    "alembic_version",
    META,
    Column("version_num", Text, primary_key=True, nullable=False),
)
SELECT_META = "SELECT kind, uuid, schema_version, needs_version FROM meta WHERE id = 1"


class UnfitDatabase(MailError):
    """The database can be read, and must not be worked on as it is.

    Unlike one that cannot be reached, waiting does not help.
    """


class EmptyDatabase(UnfitDatabase):
    """There is no database, or one without tables."""


@dataclasses.dataclass(frozen=True, slots=True)
class Meta:
    """The row of ``meta``; ``schema`` is 0 for a database without tables."""

    kind: str
    uuid: bytes  # 16 bytes
    schema: int
    needs: int


EMPTY = Meta("", b"", 0, 0)


def revision(schema: int) -> str:
    """Return Alembic's name of a schema version: ``"0001"``."""
    return f"{schema:04d}"


def read_meta(connection: sqlite3.Connection) -> Meta:
    """Read what the database says of itself; ``EMPTY`` when it has no tables."""
    tables = {
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        )
    }
    if not tables:
        return EMPTY
    row = connection.execute(SELECT_META).fetchone() if "meta" in tables else None
    if row is None:
        raise UnfitDatabase(Kind.UNAVAILABLE, "not a database of mailserverd")
    return Meta(*row)


def check_meta(meta: Meta, kind: str, where: str) -> None:
    """Raise UNAVAILABLE, saying what to run, unless this release fits the tables."""
    if meta.schema == 0:
        raise EmptyDatabase(
            Kind.UNAVAILABLE,
            f"{where}: empty database; run: mailserverd storage migrate",
        )
    if meta.kind != kind:
        raise UnfitDatabase(
            Kind.UNAVAILABLE, f"{where}: holds a {meta.kind}, not a {kind}"
        )
    if meta.schema < SCHEMAS[kind]:
        raise UnfitDatabase(
            Kind.UNAVAILABLE,
            f"{where}: schema {meta.schema} is older than this release's "
            f"{SCHEMAS[kind]}; run: mailserverd storage migrate",
        )
    if meta.needs > SCHEMAS[kind]:
        raise UnfitDatabase(
            Kind.UNAVAILABLE,
            f"{where}: schema {meta.schema} needs a newer mailserverd than this "
            f"(it knows {SCHEMAS[kind]}); upgrade, or restore a backup",
        )
