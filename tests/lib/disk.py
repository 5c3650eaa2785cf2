"""Disks that misbehave: recorded, cut off, full or broken."""

from __future__ import annotations

import errno
import os
import random
import threading

from storage.blobs.file.files import Files


class RecordingFiles(Files):
    """Does what is asked, and keeps the order in which it was done.

    ``log`` holds tuples: (op, path, ...).  ``note`` puts in a mark of the test's own.
    """

    def __init__(self):
        self.log = []
        self._paths = {}
        self._lock = threading.Lock()

    def note(self, *mark):
        with self._lock:
            self.log.append(mark)

    def create(self, path):
        fd = super().create(path)
        self._paths[fd] = path
        self.note("create", path)
        return fd

    def open(self, path, *, write=False):
        fd = super().open(path, write=write)
        self._paths[fd] = path
        return fd

    def write(self, fd, buffers, offset):
        self.note("write", self._paths[fd], offset, b"".join(buffers))
        super().write(fd, buffers, offset)

    def truncate(self, fd, size):
        self.note("truncate", self._paths[fd], size)
        super().truncate(fd, size)

    def sync(self, fd):
        super().sync(fd)
        self.note("sync", self._paths[fd])

    def sync_directory(self, path):
        super().sync_directory(path)
        self.note("sync-directory", path)

    def rename(self, old, new):
        super().rename(old, new)
        self.note("rename", old, new)
        for fd, path in list(self._paths.items()):
            if path == old:
                self._paths[fd] = new

    def remove(self, path):
        super().remove(path)
        self.note("remove", path)


class PowerCut:
    """A model of what a medium holds: replays a log up to a cut.

    Content is durable once its file is synced, a name once its directory is.
    """

    def __init__(self):
        self.now = {}  # path -> inode
        self.names = {}  # durable: path -> inode
        self.content = {}  # inode -> bytearray as the page cache has it
        self.durable = {}  # inode -> bytes as synced
        self.pending = {}  # inode -> writes since the last sync

    def replay(self, op):
        kind, *args = op
        getattr(self, "_" + kind.replace("-", "_"), lambda *_: None)(*args)

    def _create(self, path):
        inode = len(self.content)
        self.now[path] = inode
        self.content[inode], self.durable[inode] = bytearray(), b""
        self.pending[inode] = []

    def _write(self, path, offset, data):
        inode = self.now[path]
        _put(self.content[inode], offset, data)
        self.pending[inode].append((offset, data))

    def _truncate(self, path, size):
        del self.content[self.now[path]][size:]

    def _sync(self, path):
        inode = self.now[path]
        self.durable[inode] = bytes(self.content[inode])
        self.pending[inode] = []

    def _sync_directory(self, _path):
        self.names = dict(self.now)

    def _rename(self, old, new):
        self.now[new] = self.now.pop(old)

    def _remove(self, path):
        self.now.pop(path, None)

    def restore(self, source, target, rng=None):
        """Write what survived under ``target``.

        With ``rng``, parts of what was not synced have reached the medium too, in
        any order: pieces of writes, and names.
        """
        names = dict(self.names)
        if rng:
            names |= {p: i for p, i in self.now.items() if rng.random() < 0.5}
        for path, inode in names.items():
            data = bytearray(self.durable[inode])
            for offset, chunk in self.pending[inode] if rng else ():
                for at in range(0, len(chunk), 64):
                    if rng.random() < 0.6:
                        _put(data, offset + at, chunk[at : at + 64])
            place = os.path.join(target, os.path.relpath(path, source))
            with open(place, "wb") as file:
                file.write(data)


def _put(data, offset, chunk):
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(chunk)] = chunk


class FaultyFiles(Files):
    """Fails calls by name: ``fail["sync"] = errno.EIO``; ``partial`` octets of a
    failing write are written before."""

    def __init__(self):
        self.fail = {}
        self.partial = 0
        self.calls = []

    def _may_fail(self, name):
        self.calls.append(name)
        code = self.fail.get(name)
        if code:
            raise OSError(code, os.strerror(code))

    def create(self, path):
        self._may_fail("create")
        return super().create(path)

    def open(self, path, *, write=False):
        self._may_fail("open")
        return super().open(path, write=write)

    def write(self, fd, buffers, offset):
        if "write" in self.fail and self.partial:
            super().write(fd, [b"".join(buffers)[: self.partial]], offset)
        self._may_fail("write")
        super().write(fd, buffers, offset)

    def read(self, fd, length, offset):
        self._may_fail("read")
        return super().read(fd, length, offset)

    def truncate(self, fd, size):
        self._may_fail("truncate")
        super().truncate(fd, size)

    def sync(self, fd):
        self._may_fail("sync")
        super().sync(fd)

    def sync_directory(self, path):
        self._may_fail("sync_directory")
        super().sync_directory(path)

    def rename(self, old, new):
        self._may_fail("rename")
        super().rename(old, new)

    def remove(self, path):
        self._may_fail("remove")
        super().remove(path)


class FlakyFiles(FaultyFiles):
    """Fails some of the writing calls, by chance."""

    NAMES = ("create", "write", "sync", "sync_directory", "rename", "truncate")

    def __init__(self, seed, rate):
        super().__init__()
        self._rng = random.Random(seed)
        self._rate = rate
        self.armed = False

    def _may_fail(self, name):
        super()._may_fail(name)
        if self.armed and name in self.NAMES and self._rng.random() < self._rate:
            code = self._rng.choice((errno.ENOSPC, errno.EIO))
            raise OSError(code, os.strerror(code))
