"""Reading segments: descriptors kept open, contents decompressed once.

A read that the page cache can answer is made where it is asked for, with
``RWF_NOWAIT``; anything that would wait for the disk goes to a thread.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from mailserverd.core.log import get_logger
from storage.blobs.file.layout import Layout, failure
from storage.report import damaged
from storage.segments import (
    RAW,
    RECORD_HEADER,
    SegmentError,
    check_header,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.model import BlobRef

log = get_logger("blobs")
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)


class _Open:
    """A descriptor that is closed when nobody reads from it any more."""

    __slots__ = ("dropped", "fd", "readers")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.readers = 0
        self.dropped = False


class Reader:
    """Reads records and ranges; safe in any thread."""

    def __init__(self, layout: Layout, max_open: int, cache_octets: int) -> None:
        self._layout = layout
        self._files = layout.files
        self._max_open = max_open
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._lock = threading.Lock()
        self._cache = ContentCache(cache_octets)

    # --- descriptors ---

    @contextlib.contextmanager
    def using(self, segment: int) -> Iterator[int]:
        """Hold a segment's descriptor; FileNotFoundError when there is none."""
        entry = self._hold(segment)
        try:
            yield entry.fd
        finally:
            self._release(entry)

    def _hold(self, segment: int) -> _Open:
        with self._lock:
            entry = self._open.get(segment)
            if entry is None:
                entry = _Open(self._layout.open_segment(segment))
                self._open[segment] = entry
                self._shrink(self._max_open)
            else:
                self._open.move_to_end(segment)
            entry.readers += 1
            return entry

    def _release(self, entry: _Open) -> None:
        with self._lock:
            entry.readers -= 1
            if entry.dropped and not entry.readers:
                self._files.close(entry.fd)

    def _shrink(self, most: int) -> None:
        while len(self._open) > most:
            self._drop(self._open.popitem(last=False)[1])

    def _drop(self, entry: _Open) -> None:
        entry.dropped = True
        if not entry.readers:
            self._files.close(entry.fd)

    def forget(self, segment: int) -> None:
        """Close a removed segment's descriptor."""
        with self._lock:
            entry = self._open.pop(segment, None)
            if entry:
                self._drop(entry)

    def close(self) -> None:
        """Close every descriptor."""
        with self._lock:
            self._shrink(0)

    # --- reading ---

    def content(self, ref: BlobRef, *, wait: bool) -> bytes | None:
        """Return all of a blob, checked; None when it would have to ``wait``."""
        if ref.codec != RAW:
            cached = self._cache.get(ref)
            if cached is not None:
                return cached
        data = self.octets(
            ref, ref.offset, ref.offset + RECORD_HEADER + ref.length, wait=wait
        )
        if data is None:
            return None
        try:
            content = _checked_content(data, ref)
        except SegmentError as e:
            raise damaged(ref, e) from e
        if ref.codec != RAW:
            self._cache.put(ref, content)
        return content

    def octets(self, ref: BlobRef, start: int, end: int, *, wait: bool) -> bytes | None:
        """Return [start, end) of the ref's segment; None when it would have to
        ``wait``; UNAVAILABLE when the segment does not hold it."""
        try:
            entry = self._hold(ref.segment)
            try:
                data = (
                    self._files.read(entry.fd, end - start, start)
                    if wait
                    else _read_now(entry.fd, end - start, start)
                )
            finally:
                self._release(entry)
        except OSError as e:
            raise failure(e, "message store failed") from e
        if data is not None and len(data) < end - start:
            if wait:
                raise damaged(ref, SegmentError("record is cut short"))
            return None
        return data


def _read_now(fd: int, length: int, offset: int) -> bytes | None:
    """Read what the page cache holds; None when that is not all."""
    if not _NOWAIT:
        return None
    buffer = bytearray(length)
    try:
        count = os.preadv(fd, [buffer], offset, _NOWAIT)
    except OSError:  # EAGAIN: not cached; EOPNOTSUPP: not on this file system
        return None
    return bytes(buffer) if count == length else None


def _checked_content(data: bytes, ref: BlobRef) -> bytes:
    record = check_header(data[:RECORD_HEADER], ref)
    payload = data[RECORD_HEADER:]
    if zlib.crc32(payload) != record.crc:
        raise SegmentError("payload has a wrong checksum")
    return unpack(payload, ref.codec, ref.size)


class ContentCache:
    """Decompressed contents, bounded by their octets; the latest used stay."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._octets = 0
        self._contents: OrderedDict[tuple[int, int], tuple[bytes, bytes]]
        self._contents = OrderedDict()
        self._lock = threading.Lock()

    def get(self, ref: BlobRef) -> bytes | None:
        """Return a content that is held."""
        key = (ref.segment, ref.offset)
        with self._lock:
            found = self._contents.get(key)
            if found is None or found[0] != ref.hash:
                return None
            self._contents.move_to_end(key)
            return found[1]

    def put(self, ref: BlobRef, content: bytes) -> None:
        """Hold a content, letting go of the oldest."""
        key = (ref.segment, ref.offset)
        with self._lock:
            if key in self._contents or len(content) > self._limit:
                return
            self._contents[key] = (ref.hash, content)
            self._octets += len(content)
            while self._octets > self._limit:
                _, (_, old) = self._contents.popitem(last=False)
                self._octets -= len(old)
