"""Making objects: one segment each.  Everything here blocks, in any thread.

What a method returned is durable: the service has answered the PUT, or holds exactly
our object though its answer was lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import zlib
from typing import IO, TYPE_CHECKING

from mailserverd.core.log import get_logger
from storage.blobs.s3.errors import EXISTS, BucketError
from storage.blobs.s3.layout import key_of
from storage.model import BlobRef
from storage.segments import (
    FILE_HEADER,
    RECORD_HEADER,
    Chunk,
    Payload,
    encode_file_header,
    encode_footer,
    encode_header,
    footer_entry,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from storage.blobs.s3.bucket import Bucket
    from storage.blobs.s3.layout import Numbers

log = get_logger("blobs")
NUMBERS_TRIED = 3
_COPY = 1 << 20
DIFFERS = "ContentDiffers"


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """A whole segment, ready to be sent, or sent."""

    segment: int
    body: bytes | IO[bytes]
    refs: list[BlobRef]
    crc: int  # of the body

    def chunks(self) -> Iterator[bytes]:
        """Yield the body in pieces."""
        if isinstance(self.body, bytes):
            yield self.body
            return
        self.body.seek(0)
        while chunk := self.body.read(_COPY):
            yield chunk

    def part(self, start: int, end: int) -> bytes:
        """Return octets [start, end) of the body."""
        if isinstance(self.body, bytes):
            return self.body[start:end]
        self.body.seek(start)
        return self.body.read(end - start)


class Writer:
    """Builds segments and puts them into the bucket."""

    def __init__(
        self, bucket: Bucket, store: bytes, numbers: Numbers, now: Callable[[], float]
    ) -> None:
        self._bucket = bucket
        self._store = store
        self._numbers = numbers
        self._now = now

    def write(self, payloads: Sequence[Payload]) -> Image:
        """Store a batch as one object, built in memory; BucketError otherwise."""
        return self._send(lambda number: self._packed(number, payloads))

    @contextlib.contextmanager
    def written(self, payloads: Iterable[Payload]) -> Iterator[Image]:
        """Store payloads as one object, built in a file that lasts for the block.

        ``payloads`` is iterated over again should another number be needed.
        """
        with tempfile.TemporaryFile() as file:
            yield self._send(lambda number: self._spooled(number, payloads, file))

    def _send(self, build: Callable[[int], Image]) -> Image:
        for left in reversed(range(NUMBERS_TRIED)):
            image = build(self._numbers.next())
            if not image.refs:  # a segment of nothing is none
                return image
            try:
                self._put(image)
            except BucketError as e:
                if e.code not in {EXISTS, DIFFERS} or not left:
                    raise
                log.warning("segment-number-lost", segment=image.segment, code=e.code)
            else:
                return image
        raise AssertionError("unreachable")

    def _put(self, image: Image) -> None:
        """Store an image; that it is there already means an answer was lost."""
        key = key_of(image.segment)
        try:
            self._bucket.put_new(key, image.body, image.crc)
        except BucketError as e:
            if e.code != EXISTS or not self._is_there(key, image):
                raise
            log.info("put-had-arrived", segment=image.segment)
            return
        if self._bucket.options.verify and not self._is_there(key, image):
            log.error("put-not-as-written", segment=image.segment)
            raise BucketError(DIFFERS)

    def _is_there(self, key: str, image: Image) -> bool:
        """Compare what the bucket holds, octet by octet."""
        return self._bucket.equals(key, image.chunks)

    # --- building ---

    def _packed(self, number: int, payloads: Sequence[Payload]) -> Image:
        parts: list[Chunk] = [self._head(number)]
        refs = self._lay_out(number, payloads, parts)
        parts.append(self._foot(number, refs))
        body = b"".join(parts)
        return Image(number, body, refs, zlib.crc32(body))

    def _lay_out(
        self, number: int, payloads: Iterable[Payload], parts: list[Chunk]
    ) -> list[BlobRef]:
        """Append records to ``parts``; return where each will lie."""
        refs, offset, stored = [], FILE_HEADER, int(self._now())
        for p in payloads:
            parts.append(encode_header(p, self._store, number, stored))
            parts.extend(p.chunks)
            refs.append(self._ref(p, number, offset))
            offset += RECORD_HEADER + p.length
        return refs

    def _spooled(
        self, number: int, payloads: Iterable[Payload], file: IO[bytes]
    ) -> Image:
        """Build in a file, chunk by chunk."""
        file.seek(0)
        file.truncate()
        crc, offset, stored = 0, FILE_HEADER, int(self._now())
        refs: list[BlobRef] = []

        def add(chunk: Chunk) -> None:
            nonlocal crc
            crc = zlib.crc32(chunk, crc)
            file.write(chunk)

        add(self._head(number))
        for p in payloads:
            add(encode_header(p, self._store, number, stored))
            for chunk in p.chunks:
                add(chunk)
            refs.append(self._ref(p, number, offset))
            offset += RECORD_HEADER + p.length
        add(self._foot(number, refs))
        file.flush()
        return Image(number, file, refs, crc)

    def _ref(self, p: Payload, number: int, offset: int) -> BlobRef:
        return BlobRef(
            p.hash, self._store, number, offset, p.length, p.size, p.codec, p.key
        )

    def _head(self, number: int) -> bytes:
        return encode_file_header(self._store, number, int(self._now() * 1000))

    def _foot(self, number: int, refs: Sequence[BlobRef]) -> bytes:
        entries = b"".join(map(footer_entry, refs))
        end = refs[-1].offset + RECORD_HEADER + refs[-1].length if refs else FILE_HEADER
        return encode_footer(self._store, number, entries, end)
