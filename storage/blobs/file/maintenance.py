"""What the collector, ``blobs verify`` and ``blobs stats`` need.  All of it blocks."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from storage.blobs.file.layout import GONE, OPEN, SEALED, Layout
from storage.report import SegmentInfo, damaged
from storage.segments import (
    RECORD_HEADER,
    Found,
    Payload,
    ReadAt,
    SegmentError,
    check_header,
    check_payload,
)
from storage.verification import examine, records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from storage.blobs.file.appender import Appender
    from storage.blobs.file.reader import Reader
    from storage.model import BlobRef
    from storage.report import SegmentReport

log = get_logger("blobs")
_CHUNK = 1 << 20
_STEP = 0.02  # seconds: shorter pauses are not worth their call


class Maintenance:
    """Lists, verifies, rewrites and removes segments; safe in any thread."""

    def __init__(self, layout: Layout, reader: Reader, appender: Appender) -> None:
        self._layout = layout
        self._files = layout.files
        self._reader = reader
        self._appender = appender
        self._closing = threading.Event()

    def close(self) -> None:
        """Let a copy that goes slowly end at once, with UNAVAILABLE."""
        self._closing.set()

    def segments(self) -> list[SegmentInfo]:
        """Return all segments in the order of their numbers."""
        listed = self._layout.numbers().items()
        found = (self._info(number, suffix) for number, suffix in listed)
        return [info for info in found if info]

    def _info(self, number: int, suffix: str) -> SegmentInfo | None:
        """Return what a segment is now; None for one that is removed."""
        for now in () if suffix == GONE else (suffix, SEALED):  # or sealed since
            with contextlib.suppress(FileNotFoundError):
                stat = os.stat(self._layout.path(number, now))
                sealed = now == SEALED
                return SegmentInfo(number, sealed, stat.st_size, stat.st_mtime)
        return None

    def blobs(self, segment: int) -> list[BlobRef]:
        """Return the refs of all records that a segment holds, damaged ones too."""
        with self._reader.using(segment) as fd:
            size = self._files.size(fd)
            return records(self._read_at(fd), size, self._layout.store)

    def _read_at(self, fd: int) -> ReadAt:
        return lambda offset, length: self._files.read(fd, length, offset)

    # --- verify ---

    def verify(self, segment: int) -> SegmentReport:
        """Read a whole segment and compare every checksum and hash."""
        with self._reader.using(segment) as fd:
            # In this order: one that is sealed just now has its footer by then.
            sealed = not os.path.exists(self._layout.path(segment, OPEN))
            size = self._files.size(fd)
            read_at, store = self._read_at(fd), self._layout.store
            return examine(read_at, size, store, segment, sealed=sealed)

    # --- rewrite and remove ---

    def rewrite(self, refs: Iterable[BlobRef], rate: int = 0) -> dict[BlobRef, BlobRef]:
        """Copy records into one new sealed segment; return old -> new, durable.

        What is damaged is left out (and logged): its segment must stay.  ``rate`` is
        how many octets per second may be copied at most, 0: any.
        """
        sound: list[BlobRef] = []
        payloads = self._slowly(self._payloads(sorted(refs, key=_place), sound), rate)
        for first in payloads:  # a segment of nothing is none
            copies = self._appender.write_sealed(itertools.chain((first,), payloads))
            return dict(zip(sound, copies, strict=True))
        return {}

    def _slowly(self, payloads: Iterable[Payload], rate: int) -> Iterator[Payload]:
        """Hand on payloads, so that at most ``rate`` octets per second are written."""
        began, octets = time.monotonic(), 0
        for payload in payloads:
            octets += RECORD_HEADER + payload.length
            yield payload
            ahead = octets / rate - (time.monotonic() - began) if rate else 0.0
            if ahead > _STEP and self._closing.wait(ahead):
                raise MailError(Kind.UNAVAILABLE, "blob store is closed")

    def _is_sound(self, ref: BlobRef) -> bool:
        try:
            with self._reader.using(ref.segment) as fd:
                read_at = self._read_at(fd)
                record = check_header(read_at(ref.offset, RECORD_HEADER), ref)
                found = Found(ref.offset, record)
                check_payload(read_at, found, found.end, content=True)
        except (SegmentError, OSError) as e:
            damaged(ref, e)
            return False
        return True

    def _payloads(
        self, refs: Iterable[BlobRef], sound: list[BlobRef]
    ) -> Iterator[Payload]:
        """Yield what lies at ``refs`` and is whole; note which in ``sound``."""
        for ref in refs:
            if not self._is_sound(ref):
                continue
            sound.append(ref)
            with self._reader.using(ref.segment) as fd:
                header = self._files.read(fd, RECORD_HEADER, ref.offset)
                record = check_header(header, ref)
                yield Payload(
                    _Chunks(self._read_at(fd), ref.offset + RECORD_HEADER, ref.length),
                    *(ref.length, ref.size, ref.hash, ref.codec),
                    *(record.crc, ref.key),
                )

    def retire(self, segment: int) -> None:
        """Take a sealed segment out of the store; ``give_back`` frees its blocks.

        INVALID for one that is not sealed, or the newest (its number must not be
        used again).
        """
        numbers = self._layout.numbers()
        if numbers.get(segment) != SEALED or segment == max(numbers):
            raise MailError(Kind.INVALID, f"segment {segment} cannot be removed")
        path = self._layout.path
        self._layout.keep_number()
        self._files.rename(path(segment, SEALED), path(segment, GONE))
        # Before its blocks go: a cut must not leave its old name with half of it.
        self._files.sync_directory(self._layout.directory)
        self._reader.forget(segment)
        log.info("segment-removed", segment=segment)


class _Chunks:
    """A stored payload, read again each time it is iterated over."""

    def __init__(self, read_at: ReadAt, start: int, length: int) -> None:
        self._read_at = read_at
        self._start = start
        self._end = start + length

    def __iter__(self) -> Iterator[bytes]:
        for offset in range(self._start, self._end, _CHUNK):
            yield self._read_at(offset, min(_CHUNK, self._end - offset))


def _place(ref: BlobRef) -> tuple[int, int]:
    return ref.segment, ref.offset
