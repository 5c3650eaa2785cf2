"""Opening the embedded blob store in tests, filling and reading it."""

from __future__ import annotations

import asyncio
import contextlib

from storage.blobs.file import FileBlobStore, Options

SMALL = Options(segment_size=5000, large=50_000)


@contextlib.asynccontextmanager
async def opened(place, options=SMALL, **more):
    """Open a store; close it at the end."""
    store = await FileBlobStore.open(str(place), options, **more)
    try:
        yield store
    finally:
        await store.close()


async def verified(store):
    """Return the report on each segment, in the order of their numbers."""
    return [await store.verify_segment(info.segment) for info in await store.segments()]


def segment_files(place):
    """Return the names of the segments."""
    return sorted(p.name for p in place.iterdir() if p.name[0].isdigit())


def put_some(place, count=3):
    """Store ``count`` small blobs; return their refs."""

    async def run():
        async with opened(place) as store:
            return [await store.put(b"%d" % n * 50) for n in range(count)]

    return asyncio.run(run())


def read_some(place, refs):
    """Read what ``put_some`` stored, store one more, and return the segments."""

    async def run():
        async with opened(place) as store:
            for number, ref in enumerate(refs):
                assert await store.read(ref) == b"%d" % number * 50
            await store.put(b"goes on")
            return await store.segments()

    return asyncio.run(run())


async def new_segment_is(place, number):
    """Fill a segment and check the number of the next."""
    async with opened(place) as store:
        await store.put(b"z" * 6000)
        ref = await store.put(b"z")
        assert ref.segment == number
