"""``s3://bucket/prefix?...``: what ``storage.engines`` calls."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from storage.blobs.s3.bucket import Bucket, import_boto3
from storage.blobs.s3.errors import BucketError
from storage.blobs.s3.layout import advice, listed
from storage.blobs.s3.options import parse
from storage.blobs.s3.store import S3BlobStore

if TYPE_CHECKING:
    from mailserverd.core.ports import Clock


def preload() -> None:
    """Import boto3 and read its description of S3, 20 MB; without boto3 nothing
    happens, and ``open_blobs`` says what is missing."""
    with contextlib.suppress(ModuleNotFoundError):
        import_boto3()


async def open_blobs(
    url: str, clock: Clock, *, exclusive: bool = True, scratch: str = ""
) -> S3BlobStore:
    """Open the store; writers need not exclude one another."""
    del exclusive
    return await S3BlobStore.open(parse(url, scratch), clock)


async def size_of(url: str) -> int:
    """Return the octets of all segments."""
    return await asyncio.get_running_loop().run_in_executor(None, _size_of, url)


def _size_of(url: str) -> int:
    bucket = Bucket(parse(url), 1)
    try:
        return sum(info.octets for info in listed(bucket))
    except BucketError as e:
        raise advice(bucket, e) from e
    finally:
        bucket.release()
