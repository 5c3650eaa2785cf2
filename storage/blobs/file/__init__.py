"""``file:///path``: append-only, checksummed segments in a directory."""

from storage.blobs.file.store import FileBlobStore, Options, Stats

__all__ = ["FileBlobStore", "Options", "Stats"]
