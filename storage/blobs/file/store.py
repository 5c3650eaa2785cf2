"""The embedded blob store: append-only segments in a directory."""

from __future__ import annotations

import asyncio
import dataclasses
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, Self, TypeVar

import zstandard

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ports import Clock, Offload, SystemClock
from storage.blobs.file.appender import Appender
from storage.blobs.file.files import Files
from storage.blobs.file.group import GroupCommit
from storage.blobs.file.layout import Layout, failure
from storage.blobs.file.maintenance import Maintenance
from storage.blobs.file.reader import Reader
from storage.blobs.file.recovery import give_back, recover
from storage.report import PUTS, BlobStats, damaged
from storage.segments import (
    RAW,
    RECORD_HEADER,
    Payload,
    Record,
    SegmentError,
    check_header,
    prepare,
)
from storage.spooled import prepare_file, read_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from storage.model import BlobRef
    from storage.report import SegmentInfo, SegmentReport

T = TypeVar("T")
INLINE = 256 * 1024  # octets hashed or read on the loop: well under a millisecond
CHUNK = 256 * 1024  # of a stream
_GIVE_BACK = 16 << 20  # octets of a removed segment freed at once
_PAUSE = 0.05  # seconds between such steps
_IN_MEMORY = 4  # files below ``large`` held in memory at the same time


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How the store works; the defaults suit production.

    ``compression`` is a zstd level, 0 for none.  Measured on 5 KB messages, level 1
    leaves 38 % of the octets, but adds 17 us to a put of 30 and 4 us to a read of
    11, and most of a store's octets are attachments that it leaves alone.

    ``gather`` is the longest time in seconds that a batch waits for expected puts.
    Blobs of at least ``large`` octets get a segment of their own, written beside
    the others.  With ``exclusive`` false, several processes may write (each its own
    segments) and read the same directory.
    """

    segment_size: int = 64 << 20
    segment_records: int = 1 << 17
    gather: float = 0.0025
    compression: int = 0
    large: int = 4 << 20
    max_open: int = 128
    cache_octets: int = 8 << 20
    exclusive: bool = True


class FileBlobStore:
    """``BlobStore`` on a local directory; make one with ``open``."""

    def __init__(
        self,
        directory: str,
        options: Options | None = None,
        offload: Offload | None = None,
        clock: Clock | None = None,
        files: Files | None = None,
    ) -> None:
        self.options = options or Options()
        self._clock = clock or SystemClock()
        self._pool: ThreadPoolExecutor | None = None
        self._run: Offload = offload or self._own_pool
        self._layout = Layout(directory, files or Files())
        self._appender = Appender(
            self._layout,
            self._clock.now,
            self.options.segment_size,
            self.options.segment_records,
        )
        self._reader = Reader(
            self._layout, self.options.max_open, self.options.cache_octets
        )
        self._maintenance = Maintenance(self._layout, self._reader, self._appender)
        self._group = GroupCommit(self._append, self.options.gather)
        level = self.options.compression
        self._compressor = (
            zstandard.ZstdCompressor(level=level, write_checksum=False)
            if level
            else None
        )
        self._closed = False
        self._large = 0
        self._writing: set[asyncio.Future[list[BlobRef]]] = set()
        self._memory = asyncio.Semaphore(_IN_MEMORY)

    @classmethod
    async def open(
        cls,
        directory: str,
        options: Options | None = None,
        offload: Offload | None = None,
        clock: Clock | None = None,
        files: Files | None = None,
    ) -> Self:
        """Lock the directory (made when missing) and recover from a crash.

        UNAVAILABLE when another process holds it, or it cannot be read.
        """
        store = cls(directory, options, offload, clock, files)
        await store._run(store._open)
        return store

    def _open(self) -> None:
        try:
            self._layout.open(exclusive=self.options.exclusive)
            recover(self._layout, self._appender, self.options.segment_size)
        except OSError as e:
            self._layout.close()
            raise failure(e, "blob store cannot be opened") from e
        except BaseException:
            self._layout.close()
            raise

    async def _own_pool(self, work: Callable[..., T], *args: object) -> T:
        """``Offload`` for whoever brings none; UNAVAILABLE after ``close``."""
        if self._closed:
            raise MailError(Kind.UNAVAILABLE, "blob store is closed")
        if not self._pool:
            self._pool = ThreadPoolExecutor(4, thread_name_prefix="blobs-io")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, work, *args)

    async def close(self) -> None:
        """Finish what is pending, then close."""
        self._closed = True
        self._maintenance.close()
        await self._group.close()
        if self._writing:
            await asyncio.wait(self._writing)
        if self._pool:
            self._pool.shutdown()
        self._appender.close()
        self._reader.close()
        self._layout.close()

    # --- writing ---

    async def put(self, data: bytes | Sequence[bytes | memoryview]) -> BlobRef:
        """Store bytes (a sequence is one blob in chunks); durable on return."""
        chunks = (data,) if isinstance(data, bytes) else data
        size = sum(map(len, chunks))
        if size >= self.options.large:
            return await self._put_large(await self._run(prepare, chunks))
        if size > INLINE:
            return await self._group.put(await self._run(prepare, chunks))
        return await self._group.put(prepare(chunks, self._compressor))

    async def put_file(self, file: BinaryIO, size: int) -> BlobRef:
        """Store ``size`` octets from a file's start without holding them in memory."""
        if size < self.options.large:
            async with self._memory:
                return await self.put(await self._run(read_all, file, size))
        return await self._put_large(await self._run(prepare_file, file, size))

    async def _put_large(self, payload: Payload) -> BlobRef:
        if self._closed:
            raise MailError(Kind.UNAVAILABLE, "blob store is closed")
        writing = asyncio.ensure_future(self._run(self._write_sealed, (payload,)))
        self._writing.add(writing)
        writing.add_done_callback(self._written)
        refs = await asyncio.shield(writing)
        PUTS.inc()
        self._large += 1
        return refs[0]

    def _written(self, writing: asyncio.Future[list[BlobRef]]) -> None:
        self._writing.discard(writing)
        if not writing.cancelled():
            writing.exception()  # its caller may have gone: then nobody else asks

    def expect(self, change: int) -> None:
        """Say that ``change`` more (or, negative, fewer) puts are about to come.

        Take the promise back before the put itself.
        """
        self._group.expect(change)

    def _append(self, payloads: Sequence[Payload]) -> list[BlobRef]:
        refs = _told(self._appender.append, payloads)
        PUTS.inc(len(refs))
        return refs

    def _write_sealed(self, payloads: Iterable[Payload]) -> list[BlobRef]:
        return _told(self._appender.write_sealed, payloads)

    # --- reading ---

    async def read(self, ref: BlobRef, start: int = 0, end: int | None = None) -> bytes:
        """Return content[start:end]; UNAVAILABLE when missing or damaged."""
        start, end = self._range(ref, start, end)
        if ref.codec != RAW or (start == 0 and end == ref.size):
            content = await self._content(ref)
            return content[start:end] if end - start < ref.size else content
        return await self._octets(ref, start, end)

    def _range(self, ref: BlobRef, start: int, end: int | None) -> tuple[int, int]:
        if ref.store != self._layout.store or ref.key:
            raise MailError(Kind.UNAVAILABLE, "message is in another store")
        end = ref.size if end is None else max(0, min(end, ref.size))
        return max(0, min(start, end)), end

    async def _content(self, ref: BlobRef) -> bytes:
        content = None
        if ref.length <= INLINE:
            content = self._reader.content(ref, wait=False)
        if content is None:
            content = await self._run(self._content_slowly, ref)
        return content

    def _content_slowly(self, ref: BlobRef) -> bytes:
        return self._reader.content(ref, wait=True) or b""

    async def _octets(self, ref: BlobRef, start: int, end: int) -> bytes:
        """Return [start, end) of a payload as stored."""
        first = ref.offset + RECORD_HEADER
        span = (ref, first + start, first + end)
        data = None
        if end - start <= INLINE:
            data = self._reader.octets(*span, wait=False)
        if data is None:
            data = await self._run(self._octets_slowly, *span)
        return data

    def _octets_slowly(self, ref: BlobRef, start: int, end: int) -> bytes:
        return self._reader.octets(ref, start, end, wait=True) or b""

    async def stream(
        self, ref: BlobRef, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield content[start:end] in chunks of at most 256 KiB.

        When all of a blob is read, the last chunk comes only if the checksum holds.
        """
        start, end = self._range(ref, start, end)
        if ref.codec != RAW or end - start <= CHUNK:
            content = await self.read(ref, start, end)
            for at in range(0, len(content), CHUNK):
                yield content[at : at + CHUNK]
            return
        whole = (await self._header(ref)).crc if end - start == ref.size else None
        crc = 0
        for at in range(start, end, CHUNK):
            stop = min(at + CHUNK, end)
            chunk = await self._octets(ref, at, stop)
            if whole is not None:
                crc = zlib.crc32(chunk, crc)
                if stop == end and crc != whole:
                    raise damaged(ref, SegmentError("payload has a wrong checksum"))
            yield chunk

    async def _header(self, ref: BlobRef) -> Record:
        header = await self._octets(ref, -RECORD_HEADER, 0)
        try:
            return check_header(header, ref)
        except SegmentError as e:
            raise damaged(ref, e) from e

    # --- maintenance ---

    async def segments(self) -> list[SegmentInfo]:
        """Return all segments in the order of their numbers."""
        return await self._run(_told, self._maintenance.segments)

    async def list_blobs(self, segment: int) -> list[BlobRef]:
        """Return the refs of all records in a segment."""
        return await self._run(_told, self._maintenance.blobs, segment)

    async def rewrite(
        self, refs: Iterable[BlobRef], rate: int = 0
    ) -> dict[BlobRef, BlobRef]:
        """Copy live records into one new segment; return old -> new, durable.

        Damaged records are missing from the result: their segment must stay.  With a
        ``rate`` at most so many octets are copied per second.
        """
        return await self._run(_told, self._maintenance.rewrite, refs, rate)

    async def remove_segment(self, segment: int) -> None:
        """Remove a sealed segment, giving its blocks back step by step.

        INVALID for the newest, or one that is not sealed.
        """
        await self._run(_told, self._maintenance.retire, segment)
        done = False
        while not done:
            step = (self._layout, segment, _GIVE_BACK)
            done = await self._run(_told, give_back, *step)
            await asyncio.sleep(0 if done else _PAUSE)

    async def verify_segment(self, segment: int) -> SegmentReport:
        """Read a whole segment and compare every checksum and hash."""
        return await self._run(_told, self._maintenance.verify, segment)

    def stats(self) -> BlobStats:
        """Return what was counted since the store was opened."""
        group = self._group
        puts, batches = group.puts + self._large, group.batches + self._large
        return BlobStats(puts, batches, self._appender.syncs)


def _told(work: Callable[..., T], *args: object) -> T:
    """Run blocking work; an OSError becomes what callers are told."""
    try:
        return work(*args)
    except OSError as e:
        raise failure(e, "message store failed") from e
