"""Where a message waits while it arrives: memory, then an unlinked file."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, BinaryIO

from mailserverd.core.errors import Kind, MailError

if TYPE_CHECKING:
    from mailserverd.core.ports import Offload

MEMORY = 256 * 1024  # octets of one message held before they go to the file
BUDGET = 64 << 20  # octets held by all messages together; above, all but crumbs go
CRUMBS = 16 * 1024
_COPY = 1 << 20


class Spool:
    """Octets of one message, in order; at most ``MEMORY`` of them in memory.

    Many slow senders together are held within ``BUDGET``.  ``directory`` is where the
    file lies ("" is the system's).  MailError STORAGE_FULL or UNAVAILABLE when the
    file cannot be written.
    """

    total = 0  # octets held by all spools

    def __init__(self, offload: Offload, directory: str = "") -> None:
        self._offload = offload
        self._directory = directory or None
        self._chunks: list[bytes] = []
        self._held = 0
        self._file: BinaryIO | None = None
        self.size = 0

    async def write(self, chunk: bytes) -> None:
        """Add octets."""
        self._chunks.append(chunk)
        self._hold(len(chunk))
        self.size += len(chunk)
        if self._held > (MEMORY if Spool.total <= BUDGET else CRUMBS):
            await self._flush()

    def _hold(self, change: int) -> None:
        self._held += change
        Spool.total += change

    async def _flush(self) -> None:
        chunks, self._chunks = self._chunks, []
        self._hold(-self._held)
        await self._offload(self._write_chunks, chunks)

    def _write_chunks(self, chunks: list[bytes]) -> None:
        try:
            if self._file is None:
                self._file = _temporary(self._directory)
            self._file.writelines(chunks)
            self._file.flush()
        except OSError as error:
            raise _failure(error) from error

    @property
    def in_memory(self) -> bool:
        """True while no file was needed."""
        return self._file is None

    async def content(self) -> bytes | mmap.mmap:
        """Return everything written: octets, or the file mapped into memory."""
        if self._file is None:
            return b"".join(self._chunks) if len(self._chunks) != 1 else self._chunks[0]
        if self._chunks:
            await self._flush()
        try:
            return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise _failure(error) from error

    async def rewritten(self, head: bytes, skip: int) -> tuple[BinaryIO, mmap.mmap]:
        """Return a new file: ``head``, then what stands from octet ``skip`` on.

        Only for a spool with a file, after ``content``.
        """
        return await self._offload(self._rewrite, head, skip)

    async def joined(
        self, head: bytes, source: mmap.mmap, skip: int
    ) -> tuple[BinaryIO, mmap.mmap]:
        """Do as ``rewritten`` with a file that is mapped."""
        return await self._offload(self._join, head, source, skip)

    def _join(
        self, head: bytes, source: mmap.mmap, skip: int
    ) -> tuple[BinaryIO, mmap.mmap]:
        try:
            target = _temporary(self._directory)
            target.write(head)
            for at in range(skip, len(source), _COPY):
                target.write(source[at : at + _COPY])
            target.flush()
            drop_pages(source)
            return target, mmap.mmap(target.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise _failure(error) from error

    def _rewrite(self, head: bytes, skip: int) -> tuple[BinaryIO, mmap.mmap]:
        assert self._file is not None
        try:
            target = _temporary(self._directory)
            target.write(head)
            self._file.seek(skip)
            shutil.copyfileobj(self._file, target, _COPY)
            target.flush()
            return target, mmap.mmap(target.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise _failure(error) from error

    def close(self) -> None:
        """Let go of everything; harmless when repeated."""
        self._chunks = []
        self._hold(-self._held)
        if self._file is not None:
            self._file.close()
            self._file = None


def drop_pages(raw: bytes | mmap.mmap) -> None:
    """Let go of the memory that looking at a mapped file took; it can be read again."""
    if not isinstance(raw, bytes) and hasattr(mmap, "MADV_DONTNEED"):
        raw.madvise(mmap.MADV_DONTNEED)


def _temporary(directory: str | None) -> BinaryIO:
    if directory is not None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    file: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed by its owner
    return file


def _failure(error: OSError) -> MailError:
    full = error.errno in {28, 122}  # ENOSPC, EDQUOT
    kind = Kind.STORAGE_FULL if full else Kind.UNAVAILABLE
    return MailError(kind, "no room for the message")
