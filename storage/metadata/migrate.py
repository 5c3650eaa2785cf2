"""Making and migrating databases: schema versions, identity, faults.

An empty database gets its tables at once; an older one goes through Alembic, which
is imported only then.  Synchronous: commands and the start of the daemon use it.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sqlite3
import urllib.parse
import uuid
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, MetaData, create_engine, insert
from sqlalchemy.pool import StaticPool

from mailserverd.core.errors import Kind, MailError
from storage.metadata.common_tables import COMMON
from storage.metadata.lease import Lease
from storage.metadata.meta import (
    ALEMBIC_TABLE,
    EMPTY,
    META,
    META_TABLE,
    NEEDS,
    SCHEMAS,
    Meta,
    read_meta,
    revision,
)
from storage.metadata.sqlite_file import connect, translate

if TYPE_CHECKING:
    from mailserverd.core.ports import Clock

TABLES = {
    "shard": ("storage.metadata.tables", "SHARD"),
    "directory": ("storage.metadata.directory_tables", "DIRECTORY"),
    "queue": ("storage.metadata.queue_tables", "QUEUE"),
}
MIGRATIONS = "storage.metadata.migrations"


@dataclasses.dataclass(frozen=True, slots=True)
class Migrated:
    """What ``migrate`` did: ``before`` is 0 for a database that was made."""

    meta: Meta
    before: int


def tables_of(kind: str) -> MetaData:
    """Return the tables of a kind as this release writes them."""
    module, name = TABLES[kind]
    found: MetaData = getattr(importlib.import_module(module), name)
    return found


def inspect(path: str) -> Meta:
    """Read a database's meta row without taking it; ``EMPTY`` when there is none."""
    if not os.path.exists(path) or not os.path.getsize(path):
        return EMPTY
    try:
        name = urllib.parse.quote(os.path.abspath(path))
        connection = sqlite3.connect(f"file:{name}?mode=ro", uri=True)
        try:
            return read_meta(connection)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise translate(error, path) from error


def migrate(path: str, kind: str, clock: Clock) -> Migrated:
    """Make an empty database, or bring an older one to this release's schema.

    UNAVAILABLE when it is in use, is of another kind, or needs a newer release.
    """
    lease = Lease(path)
    try:
        _make_file(path)
        return _migrate(path, kind, clock)
    except sqlite3.Error as error:
        raise translate(error, path) from error
    finally:
        lease.release()


def _make_file(path: str) -> None:
    """Make the file, for us alone, and its name durable."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise MailError(
            Kind.UNAVAILABLE, f"cannot make {path}: {error.strerror}"
        ) from error


def _migrate(path: str, kind: str, clock: Clock) -> Migrated:
    raw = connect(path)
    engine = create_engine(
        "sqlite://", creator=lambda: raw, poolclass=StaticPool, isolation_level=None
    )
    try:
        before = read_meta(raw)
        refuse_others(before, kind, path)
        if before.schema < SCHEMAS[kind]:
            with engine.connect() as connection, connection.begin():
                raw.execute("BEGIN IMMEDIATE")
                bring_up(connection, kind, before, int(clock.now()))
        return Migrated(read_meta(raw), before.schema)
    finally:
        engine.dispose()
        raw.close()


def bring_up(connection: Connection, kind: str, before: Meta, now: int) -> None:
    """Make the tables, or run the revisions that are lacking; on either engine, in
    the transaction that is open."""
    if before.schema:
        _upgrade(connection, kind)
    else:
        _create(connection, kind, now)


def refuse_others(meta: Meta, kind: str, path: str) -> None:
    """Raise UNAVAILABLE for a database that is another's, or newer."""
    if meta.schema and meta.kind != kind:
        raise MailError(Kind.UNAVAILABLE, f"{path}: holds a {meta.kind}, not a {kind}")
    if meta.needs > SCHEMAS[kind]:
        raise MailError(Kind.UNAVAILABLE, f"{path}: was made by a newer mailserverd")


def _create(connection: Connection, kind: str, now: int) -> None:
    """Make all tables at once: what Alembic's revisions add up to."""
    schema = SCHEMAS[kind]
    begin_meta(connection, kind, now, schema, NEEDS[kind])
    COMMON.create_all(connection)
    tables_of(kind).create_all(connection)
    connection.execute(insert(ALEMBIC_TABLE).values(version_num=revision(schema)))


def begin_meta(
    connection: Connection, kind: str, now: int, schema: int = 0, needs: int = 0
) -> None:
    """Make what every database has, and give it its identity."""
    META.create_all(connection)
    connection.execute(
        insert(META_TABLE).values(
            id=1,
            kind=kind,
            uuid=uuid.uuid4().bytes,
            schema_version=schema,
            needs_version=needs,
            created=now,
        )
    )


def _upgrade(connection: Connection, kind: str) -> None:
    """Run Alembic's revisions of one kind inside the open transaction."""
    migrations: Any = importlib.import_module(MIGRATIONS)
    migrations.upgrade(connection, kind)
