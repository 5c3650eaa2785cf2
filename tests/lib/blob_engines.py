"""Every blob engine, opened the same way: ``async with ENGINES[name](place)``."""

from __future__ import annotations

import contextlib
import dataclasses

from storage.blobs import s3
from storage.blobs.file import FileBlobStore, Options
from tests.lib import seaweedfs


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
async def s3_engine(place):
    """SeaweedFS, with limits that small tests reach; ``place`` names the prefix."""
    options = dataclasses.replace(
        seaweedfs.options(str(place).strip("/")),
        cache=str(place),
        segment_size=50_000,
        large=400_000,
        piece=150_000,
    )
    async with closing(await s3.S3BlobStore.open(options)) as store:
        yield store


@contextlib.asynccontextmanager
async def uncached_s3_engine(place):
    """The same without any cache: every read is a GET."""
    options = dataclasses.replace(
        seaweedfs.options(str(place).strip("/")),
        compression=0,
        memory=0,
        segment_size=50_000,
        large=400_000,
        piece=150_000,
    )
    async with closing(await s3.S3BlobStore.open(options)) as store:
        yield store


@contextlib.asynccontextmanager
async def closing(store):
    """Close the store at the end."""
    try:
        yield store
    finally:
        await store.close()


ENGINES = {
    "file": file_engine,
    "file-zstd-shared": compressing_file_engine,
    "s3": s3_engine,
    "s3-uncached": uncached_s3_engine,
}
