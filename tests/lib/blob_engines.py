"""Every blob engine, opened the same way: ``async with ENGINES[name](place)``."""

from __future__ import annotations

import contextlib

from storage.blobs.file import FileBlobStore, Options


@contextlib.asynccontextmanager
async def file_engine(place):
    """The embedded default, with limits that small tests reach."""
    options = Options(segment_size=50_000, large=400_000)
    async with closing(await FileBlobStore.open(str(place), options)) as store:
        yield store


@contextlib.asynccontextmanager
async def compressing_file_engine(place):
    """The same with compression, shared by several processes."""
    options = Options(
        segment_size=50_000, large=400_000, compression=1, exclusive=False
    )
    async with closing(await FileBlobStore.open(str(place), options)) as store:
        yield store


@contextlib.asynccontextmanager
async def closing(store):
    """Close the store at the end."""
    try:
        yield store
    finally:
        await store.close()


ENGINES = {"file": file_engine, "file-zstd-shared": compressing_file_engine}
