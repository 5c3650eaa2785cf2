"""What the collector and the ``storage blobs`` commands need.  All of it blocks."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mailserverd.core.log import get_logger
from storage.blobs.s3.errors import BEYOND, ENDS, MISSING, BucketError
from storage.blobs.s3.layout import key_of, listed
from storage.blobs.s3.reader import Span, check, join
from storage.report import damaged
from storage.segments import (
    RECORD_HEADER,
    Payload,
    ReadAt,
    SegmentError,
    decode_header,
    read_footer,
)
from storage.verification import examine, records

if TYPE_CHECKING:
    from storage.blobs.s3.bucket import Bucket
    from storage.blobs.s3.writer import Writer
    from storage.model import BlobRef
    from storage.report import SegmentInfo, SegmentReport

log = get_logger("blobs")
_TAIL = 64 * 1024  # octets: the footer of a thousand records
_LOST = {MISSING, ENDS, BEYOND}


class Maintenance:
    """Lists, verifies and rewrites segments; safe in any thread."""

    def __init__(self, bucket: Bucket, store: bytes, writer: Writer) -> None:
        self._bucket = bucket
        self._store = store
        self._writer = writer

    def segments(self) -> list[SegmentInfo]:
        """Return all segments in the order of their numbers."""
        return list(listed(self._bucket))

    def blobs(self, segment: int) -> list[BlobRef]:
        """Return the refs of all records in a segment, by its footer; only when that
        is damaged is the whole segment read."""
        try:
            return self._footer(key_of(segment))
        except SegmentError as e:
            log.warning("segment-footer-damaged", segment=segment, why=str(e))
        with self._copy_of(segment) as (read_at, size):
            return records(read_at, size, self._store)

    def _footer(self, key: str) -> list[BlobRef]:
        try:
            tail, size = self._bucket.get_tail(key, _TAIL)
        except BucketError as e:
            if e.code != BEYOND:
                raise
            raise SegmentError("empty") from e
        start = size - len(tail)

        def read_at(offset: int, length: int) -> bytes:
            if offset >= start:
                return tail[offset - start : offset - start + length]
            return self._bucket.get(key, offset, min(offset + length, size))

        return read_footer(read_at, size)[1]

    def verify(self, segment: int) -> SegmentReport:
        """Read a whole segment and compare every checksum and hash."""
        with self._copy_of(segment) as (read_at, size):
            return examine(read_at, size, self._store, segment, sealed=True)

    @contextlib.contextmanager
    def _copy_of(self, segment: int) -> Iterator[tuple[ReadAt, int]]:
        """Fetch a whole segment into a file that lasts for the block."""
        with tempfile.TemporaryFile() as file:
            size = self._bucket.copy_into(key_of(segment), file)

            def read_at(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            yield read_at, size

    # --- rewrite ---

    def rewrite(self, refs: Iterable[BlobRef], rate: int = 0) -> dict[BlobRef, BlobRef]:
        """Copy records into one new segment; return old -> new, durable.

        What is damaged is left out (and logged): its segment must stay.  ``rate`` is
        how many octets per second may be copied at most, 0: any.
        """
        source = _Source(self._bucket, refs, rate)
        with self._writer.written(source) as image:
            return dict(zip(source.sound, image.refs, strict=True))


class _Source(Iterable[Payload]):
    """Records that are whole, fetched anew each time they are iterated over;
    ``sound`` says which those were."""

    def __init__(self, bucket: Bucket, refs: Iterable[BlobRef], rate: int) -> None:
        self._bucket = bucket
        self._refs = sorted(refs, key=_place)
        self._rate = rate
        self.sound: list[BlobRef] = []

    def __iter__(self) -> Iterator[Payload]:
        self.sound = []
        began, octets = time.monotonic(), 0
        for segment, group in itertools.groupby(self._refs, lambda ref: ref.segment):
            for run in join([_span(ref) for ref in group], lambda span: span):
                for span, data in self._fetched(segment, run):
                    self.sound.append(span.ref)
                    octets += span.size
                    yield _payload(span.ref, data)
                if self._rate:
                    pause = octets / self._rate - (time.monotonic() - began)
                    self._bucket.pause(pause)

    def _fetched(self, segment: int, run: list[Span]) -> Iterator[tuple[Span, bytes]]:
        """Yield the records of a run that are whole."""
        start, end = run[0].start, max(span.end for span in run)
        try:
            data = self._bucket.get(key_of(segment), start, end)
        except BucketError as e:
            if e.code not in _LOST:
                raise
            if len(run) == 1:
                damaged(run[0].ref, e)
            else:  # one of them may lie beyond the end
                for span in run:
                    yield from self._fetched(segment, [span])
            return
        for span in run:
            record = data[span.start - start : span.end - start]
            try:
                check(span, record, content=True)
            except SegmentError as e:
                damaged(span.ref, e)
            else:
                yield span, record


def _span(ref: BlobRef) -> Span:
    return Span(ref.offset, ref.offset + RECORD_HEADER + ref.length, ref, 0)


def _payload(ref: BlobRef, record: bytes) -> Payload:
    payload = memoryview(record)[RECORD_HEADER:]
    crc = decode_header(record).crc
    return Payload(
        (payload,), *(ref.length, ref.size, ref.hash, ref.codec), *(crc, ref.key)
    )


def _place(ref: BlobRef) -> tuple[int, int]:
    return ref.segment, ref.offset
