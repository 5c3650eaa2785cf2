"""What was read or written lately, in memory and on disk.

Nothing here is needed: a piece that is lost, damaged or let go is fetched again.
The directory may be shared by several processes, and survives any crash without a
sync: a file bears a checksum, or its records bear theirs, and is looked at on every
read.  Files lie in 16 parts by the segment's number; whoever has written enough to a
part removes what nobody has used for longest, until it keeps its share::

    3/0cf1a2b3c4d5e6f3.seg          a segment as it was written
    3/0cf1a2b3c4d5e6f3-1a40-0.rec   a piece of the record at offset 0x1a40
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import zlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")
log = get_logger("blobs")
READS = counter("blob_reads", "Pieces of blobs read, by where they were", ("where",))
PARTS = 16
_TAIL = 8  # octets: CRC-32 of the piece, magic
_MAGIC = b"PIEC"
_BLOCK = 4096


class MemoryCache(Generic[K]):
    """Pieces in memory, bounded by their octets; the latest used stay."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._octets = 0
        self._held: OrderedDict[K, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> bytes | None:
        """Return a piece that is held."""
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
            return found

    def put(self, key: K, data: bytes) -> None:
        """Hold a piece, letting go of the oldest."""
        if len(data) > self._limit // 4:
            return
        with self._lock:
            self._octets += len(data) - len(self._held.pop(key, b""))
            self._held[key] = data
            while self._octets > self._limit:
                self._octets -= len(self._held.popitem(last=False)[1])

    def drop(self, key: K) -> None:
        """Let go of a piece."""
        with self._lock:
            self._octets -= len(self._held.pop(key, b""))

    def drop_if(self, gone: Callable[[K], bool]) -> None:
        """Let go of all whose key is such."""
        with self._lock:
            for key in [key for key in self._held if gone(key)]:
                self._octets -= len(self._held.pop(key))


class DiskCache:
    """Pieces in a directory; every method blocks, and no failure reaches a caller."""

    def __init__(self, directory: str, limit: int) -> None:
        self._directory = directory
        self._share = limit // PARTS
        self._lock = threading.Lock()
        self._written = [self._share] * PARTS  # since a part was last looked through
        self._failed = False

    def open(self) -> None:
        """Make the directory; UNAVAILABLE when that cannot be."""
        try:
            for part in range(PARTS):
                os.makedirs(self._part(part), mode=0o700, exist_ok=True)
            os.chmod(self._directory, 0o700)
        except OSError as e:
            raise MailError(
                Kind.UNAVAILABLE,
                f"blobs: cache directory {self._directory}: {e.strerror}",
            ) from e

    def _part(self, number: int) -> str:
        return os.path.join(self._directory, f"{number % PARTS:x}")

    def _image(self, segment: int) -> str:
        return os.path.join(self._part(segment), f"{segment:016x}.seg")

    def _piece(self, segment: int, offset: int, piece: int) -> str:
        name = f"{segment:016x}-{offset:x}-{piece:x}.rec"
        return os.path.join(self._part(segment), name)

    # --- reading ---

    def from_image(self, segment: int, offset: int, length: int) -> bytes | None:
        """Return octets of a segment that is held as a whole; not checked."""
        return _read(self._image(segment), offset, length)

    def piece(self, segment: int, offset: int, piece: int) -> bytes | None:
        """Return a piece that is held and undamaged."""
        data = _read(self._piece(segment, offset, piece), 0, -1)
        if data is None or data[-_TAIL:] != _tail(data[:-_TAIL]):
            return None
        return data[:-_TAIL]

    # --- writing ---

    def keep_image(self, segment: int, data: bytes) -> None:
        """Hold a whole segment."""
        self._keep(segment, self._image(segment), (data,))

    def keep_piece(self, segment: int, offset: int, piece: int, data: bytes) -> None:
        """Hold a piece of a record."""
        path = self._piece(segment, offset, piece)
        self._keep(segment, path, (data, _tail(data)))

    def holds(self, octets: int) -> bool:
        """True when so much of one segment may be kept at all."""
        return octets <= self._share // 2

    def _keep(self, segment: int, path: str, parts: tuple[bytes, ...]) -> None:
        size = sum(map(len, parts))
        if not self.holds(size):
            return
        try:
            self._write(path, parts)
            self._make_room(segment % PARTS, _on_disk(size))
        except OSError as e:
            if not self._failed:  # once: a full disk would fill the log as well
                log.warning("blob-cache-failed", error=str(e))
            self._failed = True
        else:
            self._failed = False

    def _write(self, path: str, parts: tuple[bytes, ...]) -> None:
        fd, temporary = tempfile.mkstemp(prefix="new-", dir=os.path.dirname(path))
        try:
            with os.fdopen(fd, "wb") as file:
                file.writelines(parts)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _make_room(self, part: int, octets: int) -> None:
        """Count what was written to a part; look through it when that is much."""
        with self._lock:
            self._written[part] += octets
            if self._written[part] < self._share // 8:
                return
            self._written[part] = 0
        files = []
        with os.scandir(self._part(part)) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    stat = entry.stat()
                    files.append((stat.st_mtime, _on_disk(stat.st_size), entry.path))
        surplus = sum(size for _, size, _ in files) - self._share * 7 // 8
        for _, size, path in sorted(files):
            if surplus <= 0:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            surplus -= size

    def drop_image(self, segment: int) -> None:
        """Let go of a segment in which a record was damaged."""
        with contextlib.suppress(OSError):
            os.unlink(self._image(segment))

    def drop_piece(self, segment: int, offset: int, piece: int) -> None:
        """Let go of one piece."""
        with contextlib.suppress(OSError):
            os.unlink(self._piece(segment, offset, piece))

    def drop_segment(self, segment: int) -> None:
        """Let go of everything of a segment that was removed."""
        name = f"{segment:016x}"
        with contextlib.suppress(OSError), os.scandir(self._part(segment)) as entries:
            for entry in entries:
                if entry.name.startswith(name):
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)


def _read(path: str, offset: int, length: int) -> bytes | None:
    """Return octets of a file (``length`` -1: all), noting that it was used; None
    when there is none or it is too short."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        wanted = os.fstat(fd).st_size if length < 0 else length
        data = os.pread(fd, wanted, offset)
        os.utime(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    return data if len(data) == wanted else None


def _tail(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little") + _MAGIC


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
