"""Databases that several processes share: here one loop plays them all."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

from mailserverd.core.ports import SystemClock
from storage.engines import migrate_database
from storage.metadata.owner.shared import Share, SharedDatabase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from mailserverd.core.ports import Clock


@contextlib.contextmanager
def run_dir() -> Iterator[pathlib.Path]:
    """Yield a directory for sockets; its path is short, as theirs must be."""
    made = pathlib.Path(tempfile.mkdtemp(prefix="mailserverd-run-"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


async def join(
    url: str,
    place: pathlib.Path,
    *,
    clock: Clock | None = None,
    kind: str = "shard",
    **share: Any,
) -> SharedDatabase:
    """Open a database as one of the processes that share it."""
    return await SharedDatabase.open(
        url, kind, clock or SystemClock(), name="shared", share=Share(place, **share)
    )


@contextlib.asynccontextmanager
async def pair(
    url: str, *, clock: Clock | None = None, kind: str = "shard", **share: Any
) -> AsyncIterator[tuple[SharedDatabase, SharedDatabase]]:
    """Yield an owner, and one that is no candidate and sends it all it writes."""
    await migrate_database(url, kind, clock or SystemClock())
    with run_dir() as place:
        options = {"clock": clock, "kind": kind, **share}
        async with contextlib.AsyncExitStack() as stack:
            owner = await join(url, place, prefer=True, **options)
            stack.push_async_callback(owner.close)
            remote = await join(url, place, candidate=False, **options)
            stack.push_async_callback(remote.close)
            yield owner, remote
