"""Every search engine, opened the same way: ``async with ENGINES[name](place)``."""

from __future__ import annotations

import contextlib

from mailserverd.app.hub import Hub
from mailserverd.app.worker import RemoteIndex
from mailserverd.core.ipc import Link
from storage.search.whoosh.client import WhooshSearch
from tests.lib.memory_index import MemoryIndex
from tests.lib.sharing import run_dir


@contextlib.asynccontextmanager
async def whoosh_engine(place):
    """The embedded default, with its worker processes."""
    index = WhooshSearch(str(place), idle=30.0)
    try:
        yield index
    finally:
        await index.close()


class Workers:
    """The index as workers have it: searched across a socket, fed by its owner."""

    def __init__(self, index, link):
        self._index = index
        self.search = RemoteIndex(link).search
        self.update = index.update
        self.watermark = index.watermark
        self.drop = index.drop


@contextlib.asynccontextmanager
async def remote_engine(place):
    """The same, asked by another process."""
    with run_dir() as directory:
        async with whoosh_engine(place) as index:
            hub = Hub(index, ["0"])
            await hub.listen(directory / "background.sock")
            link = Link(directory / "background.sock")
            try:
                yield Workers(index, link)
            finally:
                await link.close()
                hub.close()


@contextlib.asynccontextmanager
async def memory_engine(place):
    """What tests of services use; it forgets nothing while the tests run."""
    yield KEPT.setdefault(place, MemoryIndex())


KEPT = {}
ENGINES = {
    "whoosh": whoosh_engine,
    "whoosh-remote": remote_engine,
    "memory": memory_engine,
}
