"""Databases of each kind under a temporary directory, opened as the daemon does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.ports import SystemClock
from storage.engines import migrate_database, open_database

if TYPE_CHECKING:
    import pathlib

    from mailserverd.core.ports import Clock
    from storage.api import Database


async def make(
    directory: pathlib.Path, kind: str, clock: Clock | None = None, name: str = ""
) -> Database:
    """Create (when missing) and open ``NAME.db`` of a kind."""
    url = f"sqlite:///{directory / (name or kind)}.db"
    clock = clock or SystemClock()
    await migrate_database(url, kind, clock)
    return await open_database(url, kind, clock, name=name or kind)
