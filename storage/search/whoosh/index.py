"""The indexes of all accounts below one directory.  Everything here blocks.

::

    ROOT/7/            the index of account 7
    ROOT/7.bad/        the last one of it that could not be read

A reserved document in each commit holds the watermark: which change of the account
the index has reached, and the versions of analyzer and schema it was made with.  What
cannot be read, or was made otherwise, is put aside; the watermark is then 0 and the
account is indexed anew.  Tables of contents are pickles: a directory that somebody
else owns or may write to is never opened.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import traceback
from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from storage.search.whoosh.leaf import Leaf
from storage.search.whoosh.merging import keep_all, merge_tier, mergeable
from storage.search.whoosh.schema import (
    LAYOUT,
    SCHEMA,
    EmailWriter,
    EmptyIndexError,
    FileIndex,
    SyncedStorage,
    try_for,
)
from storage.text import ANALYZER, Query, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Note = Callable[..., None]

LOCK_WAIT = 10.0  # seconds for another writer to finish
MERGE_NOW = 32  # so many segments that an update merges at once
_RETRIES = 10  # of opening while another process commits
KEPT_OPEN = 4  # accounts whose readers stay open
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PASSING = {  # not the index's fault
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
}
_VERSIONS = {"analyzer": ANALYZER, "layout": LAYOUT}


class Opened:
    """An index at one generation, opened for reading."""

    def __init__(self, index: Any) -> None:
        self.version = version_of(index)
        self._reader = index.reader()
        self.leaves = [
            Leaf(reader, base)
            for reader, base in self._reader.leaf_readers()
            if reader.doc_count_all()
        ]
        self._meta = self._read_meta()

    def _read_meta(self) -> dict[str, Any]:
        found = [text for leaf in self.leaves for _, text in leaf.reserved()]
        meta: dict[str, Any] = json.loads(found[0]) if found else {}
        return meta

    @property
    def watermark(self) -> int:
        """The modseq reached; 0 for an empty index."""
        return int(self._meta.get("modseq", 0))

    @property
    def current(self) -> bool:
        """False when another version made it."""
        return not self.leaves or self._meta.items() >= _VERSIONS.items()

    def close(self) -> None:
        """Close its files."""
        self._reader.close()


class Indexes:
    """Opens, reads, writes and merges; ``note(event, **facts)`` is for the log."""

    def __init__(self, root: str, note: Note) -> None:
        self._root = root
        self._note = note
        self._opened: OrderedDict[int, Opened] = OrderedDict()

    # --- the contract ---

    def search(self, account: int, query: Query) -> tuple[array[int], int]:
        """Return (email ids, watermark)."""
        with self._guarded(account):
            opened = self._open(account)
            if opened:
                ids: set[int] = set()
                for leaf in opened.leaves:
                    ids.update(leaf.search(query))
                return array("Q", sorted(ids)), opened.watermark
        return array("Q"), 0

    def watermark(self, account: int) -> int:
        """Return the modseq that the index has reached; 0 when there is none."""
        with self._guarded(account):
            opened = self._open(account)
            if opened:
                return opened.watermark
        return 0

    def update(
        self,
        account: int,
        documents: Iterable[tuple[int, bytes]],
        removed: Sequence[int],
        since: int,
        watermark: int,
    ) -> None:
        """Add and remove documents and move the watermark from ``since``, in one
        commit; CONFLICT when the index stands elsewhere."""
        with self._guarded(account):
            index = self._index(account) or self._create(account)
            with self._locked(index), contextlib.closing(Opened(index)) as opened:
                at = opened.watermark if opened.current else 0
                if at != since or not opened.current:
                    raise MailError(Kind.CONFLICT, "search index stands elsewhere")
                with _writer(index) as writer:
                    _remove(writer, opened, removed)
                    self._add(writer, account, documents)
                    meta = _VERSIONS | {"modseq": watermark}
                    writer.add_reserved(json.dumps(meta))
                    many = len(writer.segments) >= MERGE_NOW
                    writer.commit(mergetype=merge_tier if many else keep_all)
            return
        raise MailError(Kind.CONFLICT, "search index was damaged")

    def merge(self, account: int) -> bool:
        """Merge segments of like size; False when there is nothing to merge."""
        with self._guarded(account):
            index = self._index(account)
            if index:
                with self._locked(index), _writer(index) as writer:
                    if mergeable(writer.segments):
                        writer.commit(mergetype=merge_tier)
                        return True
                    writer.cancel()
        return False

    def drop(self, account: int) -> None:
        """Remove an account's index."""
        self._forget(account)
        for path in (self._path(account), self._path(account) + ".bad"):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)

    def close(self) -> None:
        """Close what is kept open."""
        for account in list(self._opened):
            self._forget(account)

    # --- opening ---

    def _path(self, account: int) -> str:
        return os.path.join(self._root, str(int(account)))

    def _index(self, account: int) -> Any:
        """Return an account's index, or None when there is none."""
        path = self._path(account)
        try:
            check_private(self._root)
            check_private(path)
        except FileNotFoundError:
            return None
        for _ in range(_RETRIES - 1):
            with contextlib.suppress(FileNotFoundError):
                return _open_index(path)
        return _open_index(path)

    def _create(self, account: int) -> Any:
        path = self._path(account)
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        os.makedirs(path, mode=0o700, exist_ok=True)
        check_private(path)
        return FileIndex.create(SyncedStorage(path), SCHEMA)

    def _open(self, account: int) -> Opened | None:
        """Return the newest generation; it is kept open while it stays the newest."""
        index = self._index(account)
        if not index:
            self._forget(account)
            return None
        opened = self._opened.get(account)
        if opened and opened.version == version_of(index):
            self._opened.move_to_end(account)
            return opened
        self._forget(account)
        opened = Opened(index)
        if not opened.current:
            opened.close()
            self._put_aside(account, "made by another version")
            return None
        self._opened[account] = opened
        while len(self._opened) > KEPT_OPEN:
            self._opened.popitem(last=False)[1].close()
        return opened

    def _forget(self, account: int) -> None:
        opened = self._opened.pop(account, None)
        if opened:
            opened.close()

    # --- failures ---

    @contextlib.contextmanager
    def _guarded(self, account: int) -> Iterator[None]:
        """Turn failures into what callers are told.

        Whatever damaged files make Whoosh raise, the index is put aside and the
        block left, to answer as if there were none.
        """
        try:
            yield
        except MailError:
            raise
        except MemoryError as e:
            raise MailError(Kind.UNAVAILABLE, "search index needs more memory") from e
        except OSError as e:
            if e.errno in _FULL:
                raise MailError(Kind.STORAGE_FULL, "search index is full") from e
            if e.errno in _PASSING:
                raise MailError(Kind.UNAVAILABLE, "search index failed") from e
            self._put_aside(account, traceback.format_exc())
        except Exception:
            self._put_aside(account, traceback.format_exc())

    def _put_aside(self, account: int, why: str) -> None:
        """Rename an index that is of no use; the account is then indexed anew."""
        self._note("index-put-aside", account=account, why=why[-2000:])
        with contextlib.suppress(Exception):
            self._forget(account)
        path = self._path(account)
        shutil.rmtree(path + ".bad", ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, path + ".bad")

    @contextlib.contextmanager
    def _locked(self, index: Any) -> Iterator[None]:
        """Hold the right to write an index; UNAVAILABLE while another does."""
        lock = index.lock("WRITELOCK")
        if not try_for(lock.acquire, timeout=LOCK_WAIT, delay=0.05):
            raise MailError(Kind.UNAVAILABLE, "search index is being written")
        try:
            yield
        finally:
            lock.release()

    def _add(
        self, writer: EmailWriter, account: int, documents: Iterable[tuple[int, bytes]]
    ) -> None:
        for email, packed in documents:
            try:
                headers, body = unpack(packed)
            except ValueError as e:
                headers = body = ""
                self._note("text-damaged", account=account, email=email, why=str(e))
            writer.add_email(email, headers, body)


def version_of(index: Any) -> tuple[object, ...]:
    """Return what names a state of an index: its generation, which begins anew when
    an index is made anew, and its segments, whose names are random."""
    toc = index._read_toc()
    return (toc.generation, *(segment.segment_id() for segment in toc.segments))


def _open_index(path: str) -> Any:
    """FileNotFoundError when a commit replaces what is being opened."""
    try:
        return FileIndex(SyncedStorage(path), schema=SCHEMA)
    except EmptyIndexError:
        return None


def check_private(path: str) -> None:
    """UNAVAILABLE for a directory that somebody else could have written to."""
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise MailError(Kind.UNAVAILABLE, "search index belongs to somebody else")
    if found.st_mode & 0o022:
        raise MailError(Kind.UNAVAILABLE, "search index may be written by others")


@contextlib.contextmanager
def _writer(index: Any) -> Iterator[EmailWriter]:
    """Make a writer; one that fails, or is left without a commit, is cancelled."""
    writer = EmailWriter(index)
    try:
        yield writer
    finally:
        if not writer.is_closed:
            with contextlib.suppress(Exception):
                writer.cancel()


def _remove(writer: EmailWriter, opened: Opened, emails: Sequence[int]) -> None:
    """Delete documents of emails, and the watermark that is to be replaced."""
    for leaf in opened.leaves:
        reserved = [number for number, _ in leaf.reserved()]
        for number in reserved + leaf.numbers_of(emails):
            writer.delete_document(leaf.base + number)
