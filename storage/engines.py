"""Engines by role and URL scheme: one line each, imported when first used."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mailserverd.core.ports import Clock
    from storage.api import Bus, Cache, Database, Reader, SearchIndex, SegmentStore
    from storage.metadata.meta import Meta
    from storage.metadata.migrate import Migrated

EXTRAS = {"postgresql+asyncpg": "postgresql", "s3": "s3"}
"""What has to be installed for a scheme, beside what every installation has."""
POSTGRESQL = "postgresql+asyncpg"
ENGINES = {
    # (role, scheme): "module:function", called as the role's function below does
    ("metadata", "sqlite"): "storage.metadata.sqlite_url:open_database",
    ("reader", "sqlite"): "storage.metadata.sqlite_url:open_reader",
    ("migrate", "sqlite"): "storage.metadata.sqlite_url:migrate_database",
    ("inspect", "sqlite"): "storage.metadata.sqlite_url:inspect_database",
    ("size", "sqlite"): "storage.metadata.sqlite_url:size_of",
    ("metadata", POSTGRESQL): "storage.metadata.postgresql_url:open_database",
    ("reader", POSTGRESQL): "storage.metadata.postgresql_url:open_reader",
    ("migrate", POSTGRESQL): "storage.metadata.postgresql_url:migrate_database",
    ("inspect", POSTGRESQL): "storage.metadata.postgresql_url:inspect_database",
    ("size", POSTGRESQL): "storage.metadata.postgresql_url:size_of",
    ("blobs", "file"): "storage.blobs.file.url:open_blobs",
    ("blob size", "file"): "storage.blobs.file.url:size_of",
    ("blobs", "s3"): "storage.blobs.s3.url:open_blobs",
    ("blob size", "s3"): "storage.blobs.s3.url:size_of",
    ("preload", "s3"): "storage.blobs.s3.url:preload",
    ("search", "whoosh"): "storage.search.whoosh.client:open_search",
    ("check", "sqlite"): "storage.urls:check_sqlite",
    ("check", POSTGRESQL): "storage.urls:check_postgresql",
    ("check", "file"): "storage.urls:check_path",
    ("check", "whoosh"): "storage.urls:check_path",
    ("check", "s3"): "storage.blobs.s3.options:check",
    ("bus", "local"): "storage.bus.local:open_bus",
    ("cache", "memory"): "storage.cache.memory:open_cache",
}

FOR_NODES = {POSTGRESQL}  # schemes that several nodes may use at the same time


def for_nodes(url: str) -> bool:
    """Return whether several nodes may work on what ``url`` names: they have to agree
    then on who does background work."""
    return url.partition(":")[0] in FOR_NODES


def constructor(role: str, url: str) -> Callable[..., Any]:
    """Return what builds the engine that ``url`` names; INVALID when there is none."""
    scheme = url.partition(":")[0]
    try:
        module, _, name = ENGINES[role, scheme].partition(":")
    except KeyError:
        known = ", ".join(s for r, s in ENGINES if r == role)
        raise MailError(
            Kind.INVALID, f"{role}: no engine for {scheme}: (there are: {known})"
        ) from None
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if scheme not in EXTRAS:
            raise
        raise MailError(
            Kind.UNAVAILABLE,
            f"{scheme}: needs {error.name}; "
            f"run: pip install 'mailserverd[{EXTRAS[scheme]}]'",
        ) from error
    return found


def check_url(url: str) -> None:
    """ValueError, saying what would be right, for a URL that cannot be meant."""
    if ("check", url.partition(":")[0]) in ENGINES:
        constructor("check", url)(url)


def preload(urls: Iterable[str]) -> None:
    """Import the engines that URLs name, and what they import late: whoever is forked
    then shares their memory.  No engine starts a thread or opens anything for it; one
    whose library is missing is left out, and opening it says so."""
    schemes = {url.partition(":")[0] for url in urls}
    for role, scheme in ENGINES:
        if scheme in schemes:
            with contextlib.suppress(MailError):
                found = constructor(role, f"{scheme}:")
                if role == "preload":
                    found()


async def open_database(url: str, kind: str, clock: Clock, *, name: str) -> Database:
    """Open a database (kind: shard, directory, queue) of this release's schema.

    UNAVAILABLE, saying what to run, when it is missing, older, newer, or in use.
    """
    database: Database = await constructor("metadata", url)(url, kind, clock, name=name)
    return database


async def open_reader(url: str, kind: str, clock: Clock, *, name: str) -> Reader:
    """Open a database that another process owns, for reading alone."""
    reader: Reader = await constructor("reader", url)(url, kind, clock, name=name)
    return reader


async def migrate_database(url: str, kind: str, clock: Clock) -> Migrated:
    """Make an empty database or bring an older one to this schema."""
    done: Migrated = await constructor("migrate", url)(url, kind, clock)
    return done


async def inspect_database(url: str) -> Meta:
    """Read what a database says of itself, without taking it; schema 0 when it is
    missing or empty, UNAVAILABLE when it cannot be read."""
    meta: Meta = await constructor("inspect", url)(url)
    return meta


async def database_size(url: str) -> int:
    """Return how many octets a database takes on its disk."""
    size: int = await constructor("size", url)(url)
    return size


async def open_blobs(
    url: str, clock: Clock, *, exclusive: bool = True, scratch: str = ""
) -> SegmentStore:
    """Open a blob store, and recover what a crash left.

    Not ``exclusive``: other processes of this node may write there, too.  ``scratch``
    is a directory for what the engine may lose, such as a cache.
    """
    opening = constructor("blobs", url)
    blobs: SegmentStore = await opening(
        url, clock, exclusive=exclusive, scratch=scratch
    )
    return blobs


async def blobs_size(url: str) -> int:
    """Return how many octets a blob store takes."""
    size: int = await constructor("blob size", url)(url)
    return size


def open_search(url: str) -> SearchIndex:
    """Open a search index."""
    index: SearchIndex = constructor("search", url)(url)
    return index


def open_bus(url: str) -> Bus:
    """Open the way of hints."""
    bus: Bus = constructor("bus", url)(url)
    return bus


def open_cache(url: str) -> Cache:
    """Open a cache."""
    cache: Cache = constructor("cache", url)(url)
    return cache
