"""Reading records: by pieces, each asked for once however many want it.

A piece is at most ``Options.piece`` octets of a record as stored, its header counted;
that of an ordinary message is its only one.  It is looked for in memory, on disk,
then in the bucket; pieces of one segment that are wanted at the same time and lie
near one another come by one GET.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from storage.blobs.s3.cache import READS
from storage.blobs.s3.errors import BEYOND, ENDS, MISSING, BucketError
from storage.blobs.s3.layout import key_of
from storage.report import damaged
from storage.segments import (
    RECORD_HEADER,
    SegmentError,
    check_header,
    decode_header,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from mailserverd.core.ports import Offload
    from storage.blobs.s3.bucket import Bucket
    from storage.blobs.s3.cache import DiskCache, MemoryCache
    from storage.blobs.s3.writer import Image
    from storage.model import BlobRef

T = TypeVar("T")
log = get_logger("blobs")
NEAR = 32 * 1024  # octets between two pieces that are not worth a GET of their own
MOST = 4 << 20  # octets of one GET
PER_SEGMENT = 2  # GETs at once; what comes meanwhile is joined
AHEAD = 2  # pieces of one blob on their way at once
INLINE = 64 * 1024  # octets unpacked on the loop


Key = tuple["BlobRef", int]  # of a piece: whose, the how-manieth


class Span(NamedTuple):
    """A piece: octets [start, end) of a segment, the ``part``-th of a record."""

    start: int
    end: int
    ref: BlobRef
    part: int

    @property
    def key(self) -> Key:
        """Name the piece."""
        return (self.ref, self.part)

    @property
    def size(self) -> int:
        """How many octets it has."""
        return self.end - self.start

    @property
    def whole(self) -> bool:
        """True for a record's only piece."""
        return self.size == RECORD_HEADER + self.ref.length


Waiting = tuple[Span, "asyncio.Future[bytes]"]


class Gets:
    """Ranged GETs, joined where they lie near one another; runs on the loop."""

    def __init__(self, get: Callable[[int, int, int], Awaitable[bytes]]) -> None:
        self._get = get  # (segment, start, end) -> octets
        self._waiting: dict[int, list[Waiting]] = {}
        self._under_way: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def fetch(self, span: Span) -> bytes:
        """Return the octets of a span."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bytes] = loop.create_future()
        segment = span.ref.segment
        if segment not in self._waiting:
            self._waiting[segment] = []
            loop.call_soon(self._start, segment)
        self._waiting[segment].append((span, done))
        return await done

    def _start(self, segment: int) -> None:
        """Send what waits, as far as there may be more GETs of this segment."""
        waiting = self._waiting.pop(segment, [])
        runs = join(waiting, lambda one: one[0])
        free = PER_SEGMENT - self._under_way.get(segment, 0)
        for run in runs[:free]:
            self._under_way[segment] = self._under_way.get(segment, 0) + 1
            task = asyncio.ensure_future(self._send(segment, run))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if rest := [one for run in runs[free:] for one in run]:
            self._waiting[segment] = rest

    async def _send(self, segment: int, run: list[Waiting]) -> None:
        start = run[0][0].start
        try:
            data = await self._get(segment, start, max(span.end for span, _ in run))
        except Exception as e:  # told to whoever waits
            for _, done in run:
                if not done.done():
                    done.set_exception(e)
        else:
            for span, done in run:
                if not done.done():
                    done.set_result(data[span.start - start : span.end - start])
        self._under_way[segment] -= 1
        if not self._under_way[segment]:
            del self._under_way[segment]
        if segment in self._waiting:
            self._start(segment)


def join(waiting: Iterable[T], span_of: Callable[[T], Span]) -> list[list[T]]:
    """Return runs of what waits for spans of a segment, one GET for each run."""
    runs: list[list[T]] = []
    first = end = 0
    for one in sorted(waiting, key=lambda one: span_of(one)[:2]):
        span = span_of(one)
        if runs and span.start <= end + NEAR and span.end - first <= MOST:
            runs[-1].append(one)
            end = max(end, span.end)
        else:
            runs.append([one])
            first, end = span.start, span.end
    return runs


class Reader:
    """Pieces, ranges and whole contents.

    ``fetching`` is the thread pool of GETs; ``run`` that of everything else, which
    does not wait for a slow service.
    """

    def __init__(
        self,
        bucket: Bucket,
        memory: MemoryCache[Key],
        disk: DiskCache | None,
        run: Offload,
        fetching: Offload,
    ) -> None:
        self._bucket = bucket
        self._fetching = fetching
        self._memory = memory
        self._disk = disk
        self._run = run
        self._step = bucket.options.piece
        self._gets = Gets(self._ranged)
        self._flights: dict[Key, asyncio.Task[bytes]] = {}

    async def _ranged(self, segment: int, start: int, end: int) -> bytes:
        return await self._fetching(self._bucket.get, key_of(segment), start, end)

    async def close(self) -> None:
        """Return when no piece is on its way."""
        while self._flights:
            await asyncio.wait(self._flights.values())

    # --- pieces ---

    def spans(self, ref: BlobRef, start: int = 0, end: int | None = None) -> list[Span]:
        """Return the pieces that hold [start, end) of a record, its header counted."""
        first, total = ref.offset, RECORD_HEADER + ref.length
        end = total if end is None else end
        return [
            Span(first + at, first + min(at + self._step, total), ref, at // self._step)
            for at in range(start - start % self._step, end, self._step)
        ]

    async def piece(self, span: Span) -> bytes:
        """Return a piece; UNAVAILABLE when it is missing or damaged."""
        held = self._memory.get(span.key)
        if held is not None:
            READS.labels("memory").inc()
            return held
        flight = self._flights.get(span.key)
        if flight is None:
            flight = asyncio.ensure_future(self._bring(span))
            self._flights[span.key] = flight
            flight.add_done_callback(lambda done: self._landed(span.key, done))
        return await asyncio.shield(flight)

    def _landed(self, key: Key, flight: asyncio.Task[bytes]) -> None:
        self._flights.pop(key, None)
        if not flight.cancelled():
            flight.exception()  # its caller may have gone: then nobody else asks

    async def _bring(self, span: Span) -> bytes:
        """Return a piece from the disk or the bucket, and hold it."""
        data = await self._run(self._from_disk, span) if self._disk else None
        if data is not None:
            READS.labels("disk").inc()
            self._memory.put(span.key, data)
            return data
        for again in (True, False):
            try:
                data = await self._gets.fetch(span)
                READS.labels("bucket").inc()
                return await self._run(self._taken, span, data)
            except BucketError as e:
                raise failed(span.ref, e) from e
            except SegmentError as e:
                if not again:
                    raise damaged(span.ref, e) from e
                log.warning("blob-read-again", segment=span.ref.segment, why=str(e))
        raise AssertionError("unreachable")

    def _from_disk(self, span: Span) -> bytes | None:
        """Return a piece that the disk holds undamaged."""
        assert self._disk is not None
        ref, part = span.ref, span.part
        held = self._disk.piece(ref.segment, ref.offset, part)
        if held is None and span.whole:
            held = self._disk.from_image(ref.segment, span.start, span.size)
        if held is None:
            return None
        try:
            check(span, held, content=False)
        except SegmentError as e:
            log.warning("blob-cache-damaged", segment=ref.segment, why=str(e))
            self._disk.drop_piece(ref.segment, ref.offset, part)
            self._disk.drop_image(ref.segment)
            return None
        return held

    def _taken(self, span: Span, data: bytes) -> bytes:
        """Check a piece that the bucket sent, and hold it."""
        check(span, data, content=True)
        self._memory.put(span.key, data)
        if self._disk:
            self._disk.keep_piece(span.ref.segment, span.ref.offset, span.part, data)
        return data

    # --- contents ---

    async def content(self, ref: BlobRef) -> bytes:
        """Return all of a blob, checked."""
        spans = self.spans(ref)
        if len(spans) == 1:
            data = await self.piece(spans[0])
            try:
                if len(data) <= INLINE:
                    return unpack(data[RECORD_HEADER:], ref.codec, ref.size)
                payload = data[RECORD_HEADER:]
                return await self._run(unpack, payload, ref.codec, ref.size)
            except SegmentError as e:
                raise damaged(ref, e) from e
        for again in (True, False):
            parts = [data async for data in self._in_turn(spans)]
            try:
                return await self._run(_joined, ref, parts)
            except SegmentError as e:
                await self._run(self._drop, spans)
                if not again:
                    raise damaged(ref, e) from e
        raise AssertionError("unreachable")

    async def octets(self, ref: BlobRef, start: int, end: int) -> bytes:
        """Return [start, end) of a payload as stored."""
        first, last = RECORD_HEADER + start, RECORD_HEADER + end
        spans = self.spans(ref, first, last)
        if spans and spans[0].part:
            await self.piece(self.spans(ref, 0, 1)[0])  # checks that it is the ref's
        parts = [data async for data in self._in_turn(spans)]
        data = b"".join(parts)
        skip = spans[0].start - ref.offset if spans else 0
        return data[first - skip : last - skip]

    async def stream(self, ref: BlobRef) -> AsyncIterator[bytes]:
        """Yield all of a payload as stored, piece by piece; the last comes only if
        the checksum holds."""
        spans = self.spans(ref)
        crc, want = 0, -1
        async for data in self._in_turn(spans):
            chunk = data
            if want < 0:
                want, chunk = decode_header(data).crc, data[RECORD_HEADER:]
            crc = zlib.crc32(chunk, crc)
            spans = spans[1:]
            if not spans and crc != want:
                await self._run(self._drop, self.spans(ref))
                raise damaged(ref, SegmentError("payload has a wrong checksum"))
            yield chunk

    async def _in_turn(self, spans: Sequence[Span]) -> AsyncIterator[bytes]:
        """Yield pieces in their order; the next is asked for ahead."""
        ahead: deque[asyncio.Task[bytes]] = deque()
        try:
            for index in range(len(spans)):
                for span in spans[index + len(ahead) : index + AHEAD]:
                    ahead.append(asyncio.ensure_future(self.piece(span)))
                yield await ahead.popleft()
        finally:
            for task in ahead:
                task.add_done_callback(_heard)
                task.cancel()

    def _drop(self, spans: Sequence[Span]) -> None:
        """Let go of pieces that together are not what they should be."""
        for span in spans:
            self._memory.drop(span.key)
            if self._disk:
                self._disk.drop_piece(span.ref.segment, span.ref.offset, span.part)

    # --- what was just written ---

    def remember(self, image: Image) -> None:
        """Hold what was written, in memory: it is likely to be read soon."""
        if not isinstance(image.body, bytes):
            return
        for ref in image.refs:
            span = self.spans(ref, 0, 1)[0]
            if span.whole:
                self._memory.put(span.key, image.body[span.start : span.end])

    def keep(self, image: Image) -> None:
        """Hold what was written, on disk."""
        if not self._disk:
            return
        if isinstance(image.body, bytes):
            self._disk.keep_image(image.segment, image.body)
        for ref in image.refs:
            spans = self.spans(ref)
            if len(spans) > 1 and self._disk.holds(ref.length):
                for span in spans:
                    data = image.part(span.start, span.end)
                    self._disk.keep_piece(ref.segment, ref.offset, span.part, data)

    def forget(self, segment: int) -> None:
        """Let go of a segment that was removed."""
        self._memory.drop_if(lambda key: key[0].segment == segment)
        if self._disk:
            self._disk.drop_segment(segment)


def check(span: Span, data: bytes, *, content: bool) -> None:
    """Compare a piece with its checksums as far as it bears them, with ``content``
    its hash too; SegmentError when it is not what the ref names."""
    if len(data) != span.size:
        raise SegmentError("piece of another size")
    if span.part:
        return
    record = check_header(data[:RECORD_HEADER], span.ref)
    if not span.whole:
        return
    payload = memoryview(data)[RECORD_HEADER:]
    if zlib.crc32(payload) != record.crc:
        raise SegmentError("payload has a wrong checksum")
    if content:
        _check_hash(span.ref, bytes(payload))


def _heard(task: asyncio.Task[bytes]) -> None:
    """Take note of how a task ended that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def _joined(ref: BlobRef, pieces: list[bytes]) -> bytes:
    """Return the content of a record that comes in several pieces, checked."""
    record = check_header(pieces[0][:RECORD_HEADER], ref)
    payload = b"".join((memoryview(pieces[0])[RECORD_HEADER:], *pieces[1:]))
    if zlib.crc32(payload) != record.crc:
        raise SegmentError("payload has a wrong checksum")
    return unpack(payload, ref.codec, ref.size)


def _check_hash(ref: BlobRef, payload: bytes) -> None:
    content = unpack(payload, ref.codec, ref.size)
    if hashlib.sha256(content).digest() != ref.hash:
        raise SegmentError("content has another hash")


def failed(ref: BlobRef, error: BucketError) -> MailError:
    """Log that a record could not be read; return what the caller is told."""
    if error.code == MISSING:
        log.error("blob-missing", segment=ref.segment, hash=ref.hash.hex())
        text = "message is missing from the store"
        return MailError(Kind.UNAVAILABLE, text, damaged=True)
    if error.code in {ENDS, BEYOND}:
        return damaged(ref, error)
    return error.told("message store failed")
