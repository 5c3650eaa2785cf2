"""``file:///path``: append-only, checksummed segments in a directory."""

from storage.blobs.file.store import FileBlobStore, Options

__all__ = ["FileBlobStore", "Options"]
