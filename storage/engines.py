"""Engines by role and URL scheme: one line each, imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailserverd.core.ports import Clock
    from storage.api import Cache, SearchIndex
    from storage.metadata.meta import Meta
    from storage.metadata.migrate import Migrated
    from storage.metadata.sqlite import SqliteDatabase

ENGINES = {
    # (role, scheme): "module:constructor", called as the role's function below does
    ("metadata", "sqlite"): "storage.metadata.sqlite:SqliteDatabase",
    ("migrate", "sqlite"): "storage.metadata.migrate:migrate",
    ("search", "whoosh"): "storage.search.whoosh.client:WhooshSearch",
    ("cache", "memory"): "storage.cache.memory:MemoryCache",
    ("inspect", "sqlite"): "storage.metadata.migrate:inspect",
}


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
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def path_of(url: str) -> str:
    """Return the file system path in ``scheme:///relative`` or ``scheme:////absolute``
    (databases), and in ``scheme:///absolute`` (everything else)."""
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        return rest.removeprefix("/")
    return rest


def open_database(url: str, kind: str, clock: Clock, *, name: str) -> SqliteDatabase:
    """Open a database (kind: shard, directory, queue) of this release's schema.

    UNAVAILABLE, saying what to run, when it is missing, older, newer, or in use.
    """
    build = constructor("metadata", url)
    database: SqliteDatabase = build(path_of(url), clock, name=name, kind=kind)
    return database


def migrate_database(url: str, kind: str, clock: Clock) -> Migrated:
    """Make an empty database or bring an older one to this schema (synchronous)."""
    done: Migrated = constructor("migrate", url)(path_of(url), kind, clock)
    return done


def inspect_database(url: str) -> Meta:
    """Read what a database says of itself, without taking it."""
    meta: Meta = constructor("inspect", url)(path_of(url))
    return meta


def open_search(url: str) -> SearchIndex:
    """Open a search index."""
    index: SearchIndex = constructor("search", url)(path_of(url))
    return index


def open_cache(url: str) -> Cache:
    """Open a cache."""
    cache: Cache = constructor("cache", url)()
    return cache
