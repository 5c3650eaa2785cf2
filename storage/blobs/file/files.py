"""The system calls that durability depends on, in one place.

Tests put a recorder or a fault in their place: what was written but not synced can
then be dropped, and every call can be made to fail.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.segments import Chunk

_IOV = 1000  # buffers per pwritev; Linux allows 1024
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Files:
    """Thin, stateless; every method raises OSError."""

    def create(self, path: str) -> int:
        """Make a file that must not exist yet; return its descriptor."""
        return os.open(path, _NEW, 0o600)

    def open(self, path: str, *, write: bool = False) -> int:
        """Open an existing file."""
        return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def write(self, fd: int, buffers: Sequence[Chunk], offset: int) -> None:
        """Write all buffers one after another from ``offset``."""
        for first in range(0, len(buffers), _IOV):
            offset = self._write_some(fd, list(buffers[first : first + _IOV]), offset)

    def _write_some(self, fd: int, buffers: list[Chunk], offset: int) -> int:
        left = sum(map(len, buffers))
        while left:
            written = os.pwritev(fd, buffers, offset)
            offset, left = offset + written, left - written
            if left:
                buffers = _rest(buffers, written)
        return offset

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Return [offset, offset + length), shorter only at the end of the file."""
        data = os.pread(fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        have = len(data)
        while have < length and (data := os.pread(fd, length - have, offset + have)):
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def size(self, fd: int) -> int:
        """Return a file's length."""
        return os.fstat(fd).st_size

    def truncate(self, fd: int, size: int) -> None:
        """Cut a file."""
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """Return when what was written is on the medium (fdatasync)."""
        os.fdatasync(fd)

    def sync_directory(self, path: str) -> None:
        """Return when names made, changed and removed in ``path`` are durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        """Rename a file within its directory."""
        os.rename(old, new)

    def remove(self, path: str) -> None:
        """Remove a file's name."""
        os.unlink(path)


def _rest(buffers: list[Chunk], written: int) -> list[Chunk]:
    """Return what is left of the buffers after ``written`` octets."""
    for index, buffer in enumerate(buffers):
        if written < len(buffer):
            return [memoryview(buffer)[written:], *buffers[index + 1 :]]
        written -= len(buffer)
    return []
