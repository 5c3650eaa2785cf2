"""The store's directory: names, locks, numbers.

::

    store             "mailserverd-blobs 1 UUID"
    lock              held (flock) while a process has the store open
    allocate          the next segment's number; held while one is made or recovered
    0000000001.seg    sealed: never written again
    0000000002.open   being written by the process that holds its flock
    0000000003.gone   removed; its blocks are given back step by step

Numbers are never used twice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import uuid
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from storage.segments import FILE_HEADER, SegmentError, decode_file_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.blobs.file.files import Files

log = get_logger("blobs")
SEALED, OPEN, GONE = ".seg", ".open", ".gone"
_SUFFIXES = (SEALED, OPEN, GONE)
_FULL = {errno.ENOSPC, errno.EDQUOT}


def failure(error: OSError, text: str) -> MailError:
    """Log a failed system call; return what callers are told."""
    log.error("blob-store-failed", what=text, error=str(error))
    if error.errno == errno.ENOENT:  # a segment is gone
        return MailError(Kind.UNAVAILABLE, text, damaged=True)
    kind = Kind.STORAGE_FULL if error.errno in _FULL else Kind.UNAVAILABLE
    return MailError(kind, text)


class Layout:
    """Paths and locks of one store; ``open`` before use."""

    def __init__(self, directory: str, files: Files) -> None:
        self.directory = os.path.abspath(directory)
        self.files = files
        self.store = b""
        self._lock = -1
        self._allocate = -1
        self._threads = threading.Lock()

    def open(self, *, exclusive: bool) -> None:
        """Lock the store, making it when it does not exist; sets ``store``.

        UNAVAILABLE when another process holds it in a way that excludes us.
        """
        self._make_directory()
        self._lock = self._open_lock("lock")
        mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(self._lock, mode | fcntl.LOCK_NB)
        except OSError as e:
            self.close()
            raise MailError(Kind.UNAVAILABLE, "blob store is in use") from e
        self._allocate = self._open_lock("allocate")
        with self.allocation():
            self.store = self._read_id() or self._make_id()

    def close(self) -> None:
        """Give the locks back."""
        for fd in (self._lock, self._allocate):
            if fd >= 0:
                os.close(fd)
        self._lock = self._allocate = -1

    def _make_directory(self) -> None:
        if not os.path.isdir(self.directory):
            os.makedirs(self.directory, mode=0o700)
            self.files.sync_directory(os.path.dirname(self.directory))

    def _open_lock(self, name: str) -> int:
        path = os.path.join(self.directory, name)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    # --- identity ---

    def _read_id(self) -> bytes:
        """Return the store's UUID; b"" when the directory is new."""
        try:
            with open(os.path.join(self.directory, "store"), encoding="ascii") as file:
                return _parse_id(file.read())
        except FileNotFoundError:
            return self._id_of_segments()

    def _id_of_segments(self) -> bytes:
        """Return the id that the segments bear, should the ``store`` file be lost."""
        numbers = {n: s for n, s in self.numbers().items() if s != GONE}
        for number in numbers:
            fd = self.open_segment(number)
            try:
                return decode_file_header(self.files.read(fd, FILE_HEADER, 0)).store
            except SegmentError:
                continue
            finally:
                self.files.close(fd)
        if any(suffix == SEALED for suffix in numbers.values()):
            raise MailError(Kind.UNAVAILABLE, "blob store has lost its identity")
        return b""

    def _make_id(self) -> bytes:
        store = uuid.uuid4()
        path, new = (os.path.join(self.directory, n) for n in ("store", "store.new"))
        with contextlib.suppress(FileNotFoundError):
            self.files.remove(new)
        fd = self.files.create(new)
        try:
            self.files.write(fd, [f"mailserverd-blobs 1 {store}\n".encode()], 0)
            self.files.sync(fd)
        finally:
            self.files.close(fd)
        self.files.rename(new, path)
        self.files.sync_directory(self.directory)
        return store.bytes

    # --- segments ---

    def path(self, segment: int, suffix: str) -> str:
        """Return the path of a segment in one of its states."""
        return os.path.join(self.directory, f"{segment:010d}{suffix}")

    def numbers(self) -> dict[int, str]:
        """Return the suffix of each segment, in the order of their numbers."""
        found = {}
        with os.scandir(self.directory) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)
                if suffix in _SUFFIXES and stem.isdecimal():
                    found[int(stem)] = suffix
        return dict(sorted(found.items()))

    @contextlib.contextmanager
    def allocation(self) -> Iterator[None]:
        """Hold the right to make or recover segments, among threads and processes."""
        with self._threads:
            fcntl.flock(self._allocate, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._allocate, fcntl.LOCK_UN)

    def new_segment(self) -> tuple[int, int]:
        """Make an empty ``.open`` file that is ours; return its number and fd."""
        with self.allocation():
            number = self.next_number()
            # First: a file that is left by a failure must not be tried for again.
            os.pwrite(self._allocate, b"%010d\n" % (number + 1), 0)
            fd = self.files.create(self.path(number, OPEN))
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return number, fd

    def next_number(self, floor: int = 1) -> int:
        """Return the number of the next segment; call within ``allocation``."""
        written = os.pread(self._allocate, 32, 0).strip()
        return max(floor, int(written) if written.isdigit() else 1)

    def raise_floor(self) -> None:
        """Let the next number exceed all that exist; call within ``allocation``."""
        number = self.next_number(max(self.numbers(), default=0) + 1)
        os.pwrite(self._allocate, b"%010d\n" % number, 0)

    def keep_number(self) -> None:
        """Make the next number durable, before a file that would tell it goes.

        Databases refuse rows that point into a removed segment: a new one of the
        same number could take no mail.
        """
        fd = self.files.open(os.path.join(self.directory, "allocate"), write=True)
        try:
            self.files.sync(fd)
        finally:
            self.files.close(fd)

    def claim(self, segment: int) -> int:
        """Open an ``.open`` file that no living process writes; -1 otherwise.

        Its writer may have sealed or dropped it since it was listed, even between
        our opening and locking it.
        """
        path = self.path(segment, OPEN)
        try:
            fd = self.files.open(path, write=True)
        except FileNotFoundError:
            return -1
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                return fd
        except OSError:  # it is locked, or no longer there
            pass
        self.files.close(fd)
        return -1

    def open_segment(self, segment: int) -> int:
        """Open a segment for reading; FileNotFoundError when there is none."""
        for suffix in (SEALED, OPEN):
            with contextlib.suppress(FileNotFoundError):
                return self.files.open(self.path(segment, suffix))
        return self.files.open(self.path(segment, SEALED))  # sealed in between


def _parse_id(text: str) -> bytes:
    words = text.split()
    try:
        if words[:2] == ["mailserverd-blobs", "1"]:
            return uuid.UUID(words[2]).bytes
    except (IndexError, ValueError):
        pass
    raise MailError(Kind.UNAVAILABLE, "blob store has an unknown format")
