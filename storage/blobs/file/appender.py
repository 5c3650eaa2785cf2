"""Writing segments: one batch, one sync.  Everything here blocks.

An ``Appender`` belongs to one thread.  What ``append`` returned is durable: the
batch was written, fdatasync returned, and for a new segment so did the directory's
fsync.

Space is not reserved ahead: a sync after an append took 0.23-0.26 ms, after
fallocate 0.19-0.23, over zeros written before 0.10-0.11 (medians on ext4), which is
not worth a second write of every octet nor a tail of zeros to tell from damage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from typing import TYPE_CHECKING

from mailserverd.core.log import get_logger
from storage.blobs.file.layout import OPEN, SEALED, Layout
from storage.model import BlobRef
from storage.report import SYNCS
from storage.segments import (
    FILE_HEADER,
    FOOTER_ENTRY,
    RECORD_HEADER,
    Chunk,
    Payload,
    encode_file_header,
    encode_footer,
    encode_header,
    footer_entry,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

log = get_logger("blobs")


@dataclasses.dataclass(slots=True)
class Segment:
    """A segment that is being written."""

    number: int
    fd: int
    end: int  # where the next record goes
    entries: bytearray  # the footer to come
    named: bool = False  # the directory's entry is durable

    @property
    def count(self) -> int:
        """How many records it holds."""
        return len(self.entries) // FOOTER_ENTRY


class Appender:
    """Appends batches to the active segment; starts and seals segments."""

    def __init__(
        self, layout: Layout, now: Callable[[], float], segment_size: int, records: int
    ) -> None:
        self._layout = layout
        self._files = layout.files
        self._now = now
        self._limit = segment_size
        self._records = records
        self._lock = threading.Lock()
        self.syncs = 0
        self.active: Segment | None = None

    def append(self, payloads: Sequence[Payload]) -> list[BlobRef]:
        """Store a batch with one sync; OSError when none of it is acknowledged."""
        segment = self._ready()
        buffers: list[Chunk] = []
        refs = self._lay_out(segment, payloads, buffers)
        self._write(segment, buffers)
        self._sync(segment)
        segment.end = refs[-1].offset + RECORD_HEADER + refs[-1].length
        segment.entries += b"".join(map(footer_entry, refs))
        return refs

    def _ready(self) -> Segment:
        active = self.active
        if active and (active.end >= self._limit or active.count >= self._records):
            self.seal_active()
        if not self.active:
            self.active = self._start()
        return self.active

    def _start(self) -> Segment:
        number, fd = self._layout.new_segment()
        segment = Segment(number, fd, FILE_HEADER, bytearray())
        created = int(self._now() * 1000)
        try:
            head = encode_file_header(self._layout.store, number, created)
            self._files.write(fd, [head], 0)
        except OSError:
            self._remove(number)
            self._files.close(fd)
            raise
        return segment

    def _lay_out(
        self, segment: Segment, payloads: Iterable[Payload], buffers: list[Chunk]
    ) -> list[BlobRef]:
        """Fill ``buffers`` with records; return where each will lie."""
        store, number, offset = self._layout.store, segment.number, segment.end
        stored = int(self._now())
        refs = []
        for p in payloads:
            buffers.append(encode_header(p, store, number, stored))
            buffers.extend(p.chunks)
            refs.append(
                BlobRef(p.hash, store, number, offset, p.length, p.size, p.codec, p.key)
            )
            offset += RECORD_HEADER + p.length
        return refs

    def _write(self, segment: Segment, buffers: Sequence[Chunk]) -> None:
        """Write at the segment's end; on failure leave it as it was."""
        try:
            self._files.write(segment.fd, buffers, segment.end)
        except OSError:
            try:
                self._files.truncate(segment.fd, segment.end)
            except OSError:
                self._abandon(segment)
            raise

    def _sync(self, segment: Segment) -> None:
        """Make durable.  After a failure the kernel may have dropped what it could
        not write and report success next time: the segment is never used again."""
        try:
            self._fdatasync(segment)
            if not segment.named:
                self._sync_directory()
                segment.named = True
        except OSError:
            self._abandon(segment)
            raise

    def _fdatasync(self, segment: Segment) -> None:
        self._count_sync()
        self._files.sync(segment.fd)

    def _sync_directory(self) -> None:
        self._count_sync()
        self._files.sync_directory(self._layout.directory)

    def _count_sync(self) -> None:
        SYNCS.inc()
        with self._lock:
            self.syncs += 1

    def _abandon(self, segment: Segment) -> None:
        """Stop writing to a segment; the next start of the store recovers it."""
        log.error("segment-abandoned", segment=segment.number, end=segment.end)
        if segment is self.active:
            self.active = None
        with contextlib.suppress(OSError):
            self._files.close(segment.fd)

    def _remove(self, number: int) -> None:
        """Remove a segment that holds nothing acknowledged.

        Call it before the descriptor is closed, which unlocks: else a process that
        starts just then takes the segment over, and loses what it writes there.
        """
        for suffix in (OPEN, SEALED):
            with contextlib.suppress(OSError):
                self._files.remove(self._layout.path(number, suffix))

    def seal_active(self) -> None:
        """Seal what is being appended to; the next batch starts a new segment.

        A failure costs nothing: an unsealed segment is sealed at the next start.
        """
        segment, self.active = self.active, None
        if not segment:
            return
        try:
            try:
                self._seal(segment)
            finally:
                self._files.close(segment.fd)
        except OSError as e:
            log.warning("segment-not-sealed", segment=segment.number, error=str(e))

    def _seal(self, segment: Segment) -> None:
        """Write the footer, sync, and rename to ``.seg``."""
        store, number = self._layout.store, segment.number
        footer = encode_footer(store, number, bytes(segment.entries), segment.end)
        path = self._layout.path
        try:
            self._files.write(segment.fd, [footer], segment.end)
            self._fdatasync(segment)
            self._files.rename(path(number, OPEN), path(number, SEALED))
        except OSError:
            with contextlib.suppress(OSError):
                self._files.truncate(segment.fd, segment.end)
            raise

    def write_sealed(
        self, payloads: Iterable[Payload], step: int = 8 << 20
    ) -> list[BlobRef]:
        """Store payloads in a segment of their own, sealed and durable on return.

        For large blobs and for compaction: neither delays the active segment's
        batches.  May run in another thread than ``append``.
        """
        segment = self._start()
        refs: list[BlobRef] = []
        try:
            for payload in payloads:
                self._write_one(segment, payload, refs, step)
            self._seal(segment)
            self._sync_directory()
        except BaseException:
            self._remove(segment.number)
            raise
        finally:
            self._files.close(segment.fd)
        return refs

    def _write_one(
        self, segment: Segment, payload: Payload, refs: list[BlobRef], step: int
    ) -> None:
        """Write one record chunk by chunk, syncing at each ``step`` octets so that
        the last sync is a short one."""
        header = (payload._replace(chunks=()),)
        head: list[Chunk] = []
        (ref,) = self._lay_out(segment, header, head)
        offset, synced = segment.end, segment.end
        for chunk in itertools.chain(head, payload.chunks):
            self._files.write(segment.fd, [chunk], offset)
            offset += len(chunk)
            if offset - synced >= step:
                self._fdatasync(segment)
                synced = offset
        segment.end = offset
        segment.entries += footer_entry(ref)
        refs.append(ref)

    def close(self) -> None:
        """Close the active segment, to be continued at the next start."""
        segment, self.active = self.active, None
        if segment:
            self._files.close(segment.fd)
