"""Every search engine, opened the same way: ``async with ENGINES[name](place)``."""

from __future__ import annotations

import contextlib

from storage.search.whoosh.client import WhooshSearch


@contextlib.asynccontextmanager
async def whoosh_engine(place):
    """The embedded default, with its worker processes."""
    index = WhooshSearch(str(place), idle=30.0)
    try:
        yield index
    finally:
        await index.close()


ENGINES = {"whoosh": whoosh_engine}
