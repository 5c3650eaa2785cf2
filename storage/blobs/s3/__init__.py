"""``s3://bucket/prefix``: packed, checksummed segments, one per object."""

from storage.blobs.s3.options import Options
from storage.blobs.s3.store import S3BlobStore

__all__ = ["Options", "S3BlobStore"]
