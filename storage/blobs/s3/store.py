"""The blob store on S3: one object per packed segment, one PUT for all in it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, Self, TypeVar

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.ports import Clock, SystemClock
from storage.blobs.s3.bucket import Bucket
from storage.blobs.s3.cache import DiskCache, MemoryCache
from storage.blobs.s3.errors import BucketError
from storage.blobs.s3.layout import Numbers, identity, key_of
from storage.blobs.s3.maintenance import Maintenance
from storage.blobs.s3.packer import Packer
from storage.blobs.s3.reader import Key, Reader
from storage.blobs.s3.writer import Image, Writer
from storage.report import PUTS, BlobStats
from storage.segments import RAW, Payload, prepare, prepare_packed
from storage.spooled import prepare_file, read_all

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Callable,
        Iterable,
        Iterator,
        Sequence,
    )

    from storage.blobs.s3.options import Options
    from storage.model import BlobRef
    from storage.report import SegmentInfo, SegmentReport

T = TypeVar("T")
log = get_logger("blobs")
INLINE = 256 * 1024  # octets hashed on the loop: well under a millisecond
COMPRESS_INLINE = 64 * 1024  # and compressed there: 0.1 ms, of 256 KiB 0.5 ms
CHUNK = 256 * 1024  # of a stream
_IN_MEMORY = 4  # files below ``large`` held in memory at the same time
_LARGE = 2  # large blobs being written at once
_UPKEEP = 4  # segments looked at, at the same time
_READS = 8  # threads


class S3BlobStore:
    """``SegmentStore`` in a bucket; make one with ``open``.

    Any number of processes and nodes may write to the same bucket and prefix: they
    need not know of one another.
    """

    def __init__(self, options: Options, clock: Clock | None = None) -> None:
        self.options = options
        self._clock = clock or SystemClock()
        self.bucket = Bucket(options, options.parallel + _LARGE + _READS + 1)
        self._puts = ThreadPoolExecutor(options.parallel, "blobs-put")
        self._large_puts = ThreadPoolExecutor(_LARGE, "blobs-large")
        self._reads = ThreadPoolExecutor(_READS, "blobs-read")
        self._work = ThreadPoolExecutor(2, "blobs-work")
        self._slow = ThreadPoolExecutor(_UPKEEP, "blobs-upkeep")
        self._disk = (
            DiskCache(options.cache, options.cache_size) if options.cache else None
        )
        self._reader = Reader(
            self.bucket,
            MemoryCache[Key](options.memory),
            self._disk,
            self._run,
            functools.partial(self._in, self._reads),
        )
        self._packer = Packer(
            self._write,
            window=options.window,
            octets=options.segment_size,
            parallel=options.parallel,
        )
        self._store = b""
        self._closed = self._shut = False
        self._puts_before = self._large_done = 0
        self._large: set[asyncio.Future[BlobRef]] = set()
        self._keeping: set[asyncio.Future[None]] = set()
        self._memory = asyncio.Semaphore(_IN_MEMORY)

    @classmethod
    async def open(cls, options: Options, clock: Clock | None = None) -> Self:
        """Look at the bucket, and make the store's identity when there is none.

        UNAVAILABLE, saying what would be right, when the bucket cannot be used.
        """
        loop = asyncio.get_running_loop()
        store = await loop.run_in_executor(None, cls, options, clock)
        try:
            await store._in(store._reads, store._open)
        except BaseException:
            await store.close()
            raise
        return store

    def _open(self) -> None:
        if self._disk:
            self._disk.open()
        self._store = identity(self.bucket)
        numbers = Numbers(self._clock.now)
        self._writer = Writer(self.bucket, self._store, numbers, self._clock.now)
        self._maintenance = Maintenance(self.bucket, self._store, self._writer)
        self._puts_before = self.bucket.puts

    async def close(self) -> None:
        """Finish what is pending, then close; requests that fail now are not tried
        again."""
        self._closed = True
        self.bucket.close()
        await self._packer.close()
        for pending in (self._large, self._keeping):
            if pending:
                await asyncio.wait(pending)
        await self._reader.close()
        self._shut = True
        await asyncio.get_running_loop().run_in_executor(None, self._release)

    def _release(self) -> None:
        for pool in (
            self._puts,
            self._large_puts,
            self._reads,
            self._work,
            self._slow,
        ):
            pool.shutdown()
        self.bucket.release()

    async def _in(
        self, pool: ThreadPoolExecutor, work: Callable[..., T], *args: object
    ) -> T:
        if self._shut:
            raise MailError(Kind.UNAVAILABLE, "blob store is closed")
        return await asyncio.get_running_loop().run_in_executor(pool, work, *args)

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        """``Offload`` for computing and local files."""
        return await self._in(self._work, work, *args)

    # --- writing ---

    async def put(self, data: bytes | Sequence[bytes | memoryview]) -> BlobRef:
        """Store bytes (a sequence is one blob in chunks); durable on return."""
        chunks = (data,) if isinstance(data, bytes) else data
        size = sum(map(len, chunks))
        if self._closed:
            raise MailError(Kind.UNAVAILABLE, "blob store is closed")
        if size >= self.options.large:
            return await self._put_large(await self._run(prepare, chunks))
        level = self.options.compression
        if size <= (COMPRESS_INLINE if level else INLINE):
            return await self._packer.put(prepare_packed(chunks, level))
        self._packer.expect(1)  # those that are ready may go into the same object
        try:
            payload = await self._run(prepare_packed, chunks, level)
        finally:
            self._packer.expect(-1)
        return await self._packer.put(payload)

    async def put_file(self, file: BinaryIO, size: int) -> BlobRef:
        """Store ``size`` octets from a file's start without holding them in memory."""
        if self._closed:
            raise MailError(Kind.UNAVAILABLE, "blob store is closed")
        if size < self.options.large:
            async with self._memory:
                return await self.put(await self._run(read_all, file, size))
        return await self._put_large(await self._run(prepare_file, file, size))

    async def _put_large(self, payload: Payload) -> BlobRef:
        if self._closed:
            raise MailError(Kind.UNAVAILABLE, "blob store is closed")
        writing = asyncio.ensure_future(
            self._in(self._large_puts, self._write_large, payload)
        )
        self._large.add(writing)
        writing.add_done_callback(self._large.discard)
        writing.add_done_callback(_heard)
        ref = await asyncio.shield(writing)
        PUTS.inc()
        self._large_done += 1
        return ref

    def _write_large(self, payload: Payload) -> BlobRef:
        with _told(), self._writer.written((payload,)) as image:
            self._reader.keep(image)
            return image.refs[0]

    def expect(self, change: int) -> None:
        """Say that ``change`` more (or, negative, fewer) puts are about to come.

        Take the promise back before the put itself.
        """
        self._packer.expect(change)

    async def _write(self, payloads: Sequence[Payload]) -> list[BlobRef]:
        image = await self._in(self._puts, self._write_packed, payloads)
        PUTS.inc(len(image.refs))
        if self._disk:  # nobody waits for that
            keeping = asyncio.ensure_future(self._run(self._reader.keep, image))
            self._keeping.add(keeping)
            keeping.add_done_callback(self._keeping.discard)
        return image.refs

    def _write_packed(self, payloads: Sequence[Payload]) -> Image:
        with _told():
            image = self._writer.write(payloads)
        self._reader.remember(image)
        return image

    # --- reading ---

    async def read(self, ref: BlobRef, start: int = 0, end: int | None = None) -> bytes:
        """Return content[start:end]; UNAVAILABLE when missing or damaged."""
        start, end = self._range(ref, start, end)
        if ref.codec != RAW or (start == 0 and end == ref.size):
            content = await self._reader.content(ref)
            return content[start:end] if end - start < ref.size else content
        return await self._reader.octets(ref, start, end)

    def _range(self, ref: BlobRef, start: int, end: int | None) -> tuple[int, int]:
        if ref.store != self._store or ref.key:
            raise MailError(Kind.UNAVAILABLE, "message is in another store")
        end = ref.size if end is None else max(0, min(end, ref.size))
        return max(0, min(start, end)), end

    async def stream(
        self, ref: BlobRef, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield content[start:end] in chunks of at most 256 KiB.

        When all of a blob is read, the last chunk comes only if the checksum holds.
        """
        start, end = self._range(ref, start, end)
        if ref.codec != RAW or end - start <= CHUNK:
            parts = _one(await self.read(ref, start, end))
        elif end - start == ref.size:
            parts = self._reader.stream(ref)
        else:
            parts = self._part(ref, start, end)
        async for part in parts:
            for at in range(0, len(part), CHUNK):
                yield part[at : at + CHUNK]

    async def _part(self, ref: BlobRef, start: int, end: int) -> AsyncIterator[bytes]:
        step = self.options.piece
        for at in range(start, end, step):
            yield await self._reader.octets(ref, at, min(at + step, end))

    # --- maintenance ---

    async def segments(self) -> list[SegmentInfo]:
        """Return all segments in the order of their numbers."""
        return await self._upkeep(self._maintenance.segments)

    async def list_blobs(self, segment: int) -> list[BlobRef]:
        """Return the refs of all records in a segment."""
        return await self._upkeep(self._maintenance.blobs, segment)

    async def rewrite(
        self, refs: Iterable[BlobRef], rate: int = 0
    ) -> dict[BlobRef, BlobRef]:
        """Copy live records into one new segment; return old -> new, durable.

        Damaged records are missing from the result: their segment must stay.  With a
        ``rate`` at most so many octets are copied per second.
        """
        return await self._upkeep(self._maintenance.rewrite, refs, rate)

    async def remove_segment(self, segment: int) -> None:
        """Remove a segment; nothing happens when it has gone already."""
        await self._upkeep(self.bucket.delete, key_of(segment))
        await self._upkeep(self._reader.forget, segment)
        log.info("segment-removed", segment=segment)

    async def verify_segment(self, segment: int) -> SegmentReport:
        """Read a whole segment and compare checksums and hashes."""
        return await self._upkeep(self._maintenance.verify, segment)

    async def _upkeep(self, work: Callable[..., T], *args: object) -> T:
        return await self._in(self._slow, _doing, work, *args)

    def stats(self) -> BlobStats:
        """Return what was counted since the store was opened; a sync is a PUT."""
        packed = self._packer
        return BlobStats(
            packed.puts + self._large_done,
            packed.batches + self._large_done,
            self.bucket.puts - self._puts_before,
        )


def _doing(work: Callable[..., T], *args: object) -> T:
    with _told():
        return work(*args)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What goes wrong becomes what callers are told."""
    try:
        yield
    except BucketError as e:
        raise e.told("message store failed") from e
    except OSError as e:  # of a temporary file
        log.warning("blob-store-failed", what="temporary file", error=str(e))
        raise MailError(Kind.UNAVAILABLE, "message store failed") from e


async def _one(part: bytes) -> AsyncIterator[bytes]:
    yield part


def _heard(done: asyncio.Future[BlobRef]) -> None:
    """A caller that has gone asks for no error; then nobody else does."""
    if not done.cancelled():
        done.exception()
