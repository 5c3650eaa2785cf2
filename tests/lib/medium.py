"""What a disk holds after a power cut, from the trace of who wrote and synced what.

The strict reading of POSIX: octets are durable once an fsync or fdatasync of their
file, begun after the write had ended, has ended; a name is once its directory was
synced so.  What else reached the disk is chance: nothing (``image()``), or any pages
in any order, one of them torn (``image(rng)``).
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from tests.lib.trace import Call

PAGE = 4096
# Not part of what must survive: locks, sockets, arriving mail, SQLite's index of its
# log (made anew by whoever opens a database), the search index (made from messages).
DERIVED = ("-shm", ".lock", "/lock", "/control.sock", "/spool", "/search")
UNKNOWN = {
    *("writev", "sendfile", "splice", "copy_file_range", "fallocate", "rmdir"),
    *("link", "linkat", "symlink", "symlinkat"),
    *("sync", "syncfs", "sync_file_range", "msync"),
}
NAMESPACE = {"mkdir", "rename", "unlink"}


@dataclasses.dataclass(slots=True)
class Change:
    """A write at ``offset``, or (``data`` is None) a cut to ``offset`` octets."""

    exit: int
    offset: int
    data: bytes | None


@dataclasses.dataclass(slots=True)
class Inode:
    """A file: what is on the medium, and what is only in the page cache."""

    durable: bytearray = dataclasses.field(default_factory=bytearray)
    pending: list[Change] = dataclasses.field(default_factory=list)
    directory: bool = False
    position: int = 0  # of who opened it last and writes one thing after another

    def sync(self, before: int) -> None:
        """Make durable what had been written before a moment."""
        for change in self.pending:
            if change.exit < before:
                _apply(self.durable, change.offset, change.data)
        self.pending = [c for c in self.pending if c.exit >= before]

    def content(self, rng: random.Random | None) -> bytes:
        """Return what a power cut leaves."""
        if rng is None or not self.pending:
            return bytes(self.durable)
        found = bytearray(self.durable)
        batch: list[Change] = []
        for change in self.pending:
            if change.data is not None:
                batch.append(change)
                continue
            if rng.random() < 0.5:  # the new length did not reach the disk
                break
            _some_pages(found, batch, rng)
            batch = []
            _apply(found, change.offset, None)
        _some_pages(found, batch, rng)
        return bytes(found)


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def _some_pages(content: bytearray, batch: list[Change], rng: random.Random) -> None:
    """Apply writes page by page: of each page some older or newer state, one torn."""
    pages: dict[int, list[tuple[int, bytes]]] = {}
    for change in batch:
        assert change.data is not None
        start, end = change.offset, change.offset + len(change.data)
        while start < end:
            stop = min(end, (start // PAGE + 1) * PAGE)
            piece = change.data[start - change.offset : stop - change.offset]
            pages.setdefault(start // PAGE, []).append((start, piece))
            start = stop
    share = rng.choice((0.1, 0.5, 0.9, 1.0))
    torn = rng.choice(list(pages)) if pages else -1
    for number, pieces in pages.items():
        if rng.random() > share and number != torn:
            continue
        kept = pieces[: rng.randint(1, len(pieces))]
        for start, piece in kept[:-1]:
            _apply(content, start, piece)
        start, piece = kept[-1]
        if number == torn:
            piece = piece[: rng.randrange(len(piece) + 1)]
        _apply(content, start, piece)


@dataclasses.dataclass(slots=True)
class Naming:
    """A change of directories that is not yet durable: path -> inode or no more."""

    exit: int
    paths: dict[str, Inode | None]


class Medium:
    """The tree ``root``, from the state kept in ``start`` through calls of a trace.

    ``syncs(call)`` says which calls keep their promise (all): a test that lies about
    some shows that the proof would notice.
    """

    def __init__(
        self,
        root: pathlib.Path,
        start: pathlib.Path,
        syncs: Callable[[Call], bool] = lambda _: True,
    ) -> None:
        self.root = str(root)
        self.now: dict[str, Inode] = {}
        self.named: dict[str, Inode] = {}
        self.naming: list[Naming] = []
        self._syncs = syncs
        for directory, _, files in os.walk(start):
            place = os.path.normpath(root / os.path.relpath(directory, start))
            self.now[place] = Inode(directory=True)
            for name in files:
                path = os.path.join(place, name)
                if not self.ignores(path):
                    content = pathlib.Path(directory, name).read_bytes()
                    self.now[path] = Inode(bytearray(content))
        self.named = dict(self.now)

    def ignores(self, path: str) -> bool:
        """True for what is outside, or need not survive."""
        inside = path == self.root or path.startswith(self.root + "/")
        rest = path[len(self.root) :]
        return (
            not inside
            or rest.endswith(DERIVED)
            or any(f"{part}/" in rest for part in ("/spool", "/search"))
        )

    # --- history ----------------------------------------------------------------

    def play(self, calls: Iterable[Call]) -> None:
        """Take in calls, in the order of their exits."""
        for call in calls:
            if call.path and not self.ignores(call.path):
                self._take(call)

    def _take(self, call: Call) -> None:
        if call.name in UNKNOWN:
            raise AssertionError(f"{call.name} of {call.path}: not understood")
        if call.name.startswith(("open", "creat")):
            self._open(call)
        elif call.name.removesuffix("2").removesuffix("at") in NAMESPACE:
            self._name(call)
        elif call.name in {"fsync", "fdatasync"}:
            self._sync(call)
        elif call.name == "mmap":
            shared = "MAP_SHARED" in call.flags and "PROT_WRITE" in call.flags
            assert not shared, f"{call.path} is written through memory"
        elif call.name in {"truncate", "ftruncate"}:
            change = Change(call.exit, call.offset, None)
            self.now[call.path].pending.append(change)
        else:
            inode, offset = self.now[call.path], call.offset
            if offset < 0:
                offset = inode.position
                inode.position += len(call.data)
            inode.pending.append(Change(call.exit, offset, call.data))

    def _open(self, call: Call) -> None:
        assert "O_APPEND" not in call.flags, call.path
        if call.path not in self.now:
            assert "O_CREAT" in call.flags, f"{call.path} came from nowhere"
            self._record(call, {call.path: Inode()})
        elif "O_TRUNC" in call.flags:
            self.now[call.path].pending.append(Change(call.exit, 0, None))
        self.now[call.path].position = 0

    def _name(self, call: Call) -> None:
        if call.name.startswith("mkdir"):
            self._record(call, {call.path: Inode(directory=True)})
        elif call.name.startswith("unlink"):
            self._record(call, {call.path: None})
        else:
            assert not self.ignores(call.new), call
            self._record(call, {call.path: None, call.new: self.now[call.path]})

    def _record(self, call: Call, paths: dict[str, Inode | None]) -> None:
        self.naming.append(Naming(call.exit, paths))
        _rename(self.now, paths)

    def _sync(self, call: Call) -> None:
        if not self._syncs(call):
            return
        inode = self.now[call.path]
        if not inode.directory:
            inode.sync(call.entry)
            return
        left = []
        for naming in self.naming:
            parents = {os.path.dirname(path) for path in naming.paths}
            if naming.exit < call.entry and parents == {call.path}:
                _rename(self.named, naming.paths)
            else:
                left.append(naming)
        self.naming = left

    # --- the cut ------------------------------------------------------------------

    def image(self, rng: random.Random | None = None) -> dict[str, bytes]:
        """Return path in the tree -> octets of the files that a cut leaves."""
        named = dict(self.named)
        if rng is not None:  # a journal writes changes of names in their order
            for naming in self.naming[: rng.randint(0, len(self.naming))]:
                _rename(named, naming.paths)
        made = {path for path, inode in named.items() if inode.directory}
        return {
            os.path.relpath(path, self.root): inode.content(rng)
            for path, inode in sorted(named.items())
            if not inode.directory and os.path.dirname(path) in made
        }

    def holds(self, needle: bytes, *suffixes: str) -> bool:
        """True when durable files of such names hold these octets."""
        return any(
            needle in inode.durable
            for path, inode in self.named.items()
            if path.endswith(suffixes)
        )

    def unsynced(self) -> list[str]:
        """Return files with octets or a name that would be lost."""
        names = [path for naming in self.naming for path in naming.paths]
        files = [path for path, inode in self.now.items() if inode.pending]
        return sorted({os.path.relpath(path, self.root) for path in names + files})


def _rename(names: dict[str, Inode], paths: dict[str, Inode | None]) -> None:
    for path, inode in paths.items():
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode


def write(image: dict[str, bytes], root: pathlib.Path) -> None:
    """Make a directory of an image."""
    for path, content in image.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
