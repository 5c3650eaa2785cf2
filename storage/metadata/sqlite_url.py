"""``sqlite:///relative``, ``sqlite:////absolute``: what ``storage.engines`` calls."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from storage.metadata import migrate
from storage.metadata.sqlite import SqliteDatabase
from storage.metadata.sqlite_reader import SqliteReader

if TYPE_CHECKING:
    from mailserverd.core.ports import Clock
    from storage.metadata.meta import Meta


def path_of(url: str) -> str:
    """Return the path of the database file."""
    return url.partition("://")[2].removeprefix("/")


async def open_database(
    url: str, kind: str, clock: Clock, *, name: str
) -> SqliteDatabase:
    """Open a database of this release's schema, and be its owner."""
    return SqliteDatabase(path_of(url), clock, name=name, kind=kind)


async def open_reader(url: str, kind: str, clock: Clock, *, name: str) -> SqliteReader:
    """Open a database of this release's schema that another process owns."""
    return SqliteReader(path_of(url), clock, name=name, kind=kind)


async def migrate_database(url: str, kind: str, clock: Clock) -> migrate.Migrated:
    """Make an empty database, and its directory, or bring an older one up to date."""
    path = path_of(url)
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True, mode=0o700)
    except OSError as error:
        raise MailError(
            Kind.UNAVAILABLE, f"cannot make {path}: {error.strerror}"
        ) from error
    return migrate.migrate(path, kind, clock)


async def inspect_database(url: str) -> Meta:
    """Read a database's meta row without taking it."""
    return migrate.inspect(path_of(url))


async def size_of(url: str) -> int:
    """Return the octets of the file and its log."""
    path = path_of(url)
    return sum(map(_size, (path, f"{path}-wal")))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
