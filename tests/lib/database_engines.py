"""Ways to have a database: alone, as the owner of several processes, or as another.

``async with ENGINES[name](place, kind, clock)``; on the engine that the place chose.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tests.lib import databases, sharing
from tests.lib.clock import ManualClock

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator

    from mailserverd.core.ports import Clock
    from storage.api import Database


@contextlib.asynccontextmanager
async def alone(
    place: pathlib.Path, kind: str = "shard", clock: Clock | None = None
) -> AsyncIterator[Database]:
    """One process has the database."""
    database = await databases.make(place, kind, clock or ManualClock())
    try:
        yield database
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def owner(
    place: pathlib.Path, kind: str = "shard", clock: Clock | None = None
) -> AsyncIterator[Database]:
    """Of several processes, the one that owns it."""
    url = await databases.engine_of(place).prepare(place, kind, kind)
    pair = sharing.pair(url, clock=clock or ManualClock(), kind=kind)
    async with pair as (database, _):
        yield database


@contextlib.asynccontextmanager
async def other(
    place: pathlib.Path, kind: str = "shard", clock: Clock | None = None
) -> AsyncIterator[Database]:
    """Of several processes, one that sends its units to the owner."""
    url = await databases.engine_of(place).prepare(place, kind, kind)
    pair = sharing.pair(url, clock=clock or ManualClock(), kind=kind)
    async with pair as (_, database):
        yield database


ENGINES = {"alone": alone, "owner": owner, "other": other}
