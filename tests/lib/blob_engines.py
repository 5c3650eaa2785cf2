"""Every blob engine, opened the same way: ``async with ENGINES[name](place)``."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil

from storage.blobs import s3
from storage.blobs.file import FileBlobStore, Options
from storage.blobs.s3.layout import key_of
from storage.segments import RECORD_HEADER
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


def damage_file(place, ref):
    """Change an octet of a record in a segment's file."""
    (path,) = place.glob(f"{ref.segment:010}.*")
    data = bytearray(path.read_bytes())
    data[ref.offset + RECORD_HEADER] ^= 1
    path.write_bytes(data)


def damage_object(place, ref):
    """Change an octet of a record in a segment's object."""
    where = {
        "Bucket": seaweedfs.common_bucket(),
        "Key": f"{str(place).strip('/')}/{key_of(ref.segment)}",
    }
    client = seaweedfs.site().client()
    data = bytearray(client.get_object(**where)["Body"].read())
    data[ref.offset + RECORD_HEADER] ^= 1
    client.put_object(**where, Body=bytes(data))
    shutil.rmtree(place, ignore_errors=True)  # what the cache knows of it


DAMAGE = {
    "file": damage_file,
    "file-zstd-shared": damage_file,
    "s3": damage_object,
    "s3-uncached": damage_object,
}
