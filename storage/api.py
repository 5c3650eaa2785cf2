"""Storage roles: the smallest contracts, with their promises.

Each role has one conformance suite under ``tests/contract`` that every engine
passes.  A failing engine raises ``MailError`` with a temporary kind (UNAVAILABLE,
STORAGE_FULL); it never pretends that something does not exist.
"""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

if TYPE_CHECKING:
    from mailserverd.core.types import Access
    from storage.model import BlobRef
    from storage.report import BlobStats, SegmentInfo, SegmentReport
    from storage.text import Hits, Query

A = TypeVar("A")
R = TypeVar("R")
Row = tuple[Any, ...]
Params = Mapping[str, object] | tuple[object, ...]
"""By name, or for ``sql.Insert`` by place."""


class Statement(Protocol):
    """A SQL statement, compiled once per dialect (``storage.metadata.sql``)."""


class Tx(Protocol):
    """One transaction (or savepoint) as a unit of work sees it: synchronous."""

    now: float  # seconds since the epoch, taken once per batch

    def all(self, statement: Statement, params: Params = ...) -> list[Row]:
        """Return all rows."""

    def one(self, statement: Statement, params: Params = ...) -> Row | None:
        """Return the first row, or None."""

    def each(self, *asked: tuple[Statement, Params]) -> list[list[Row]]:
        """Return the rows of several SELECTs that do not need one another.

        Where a database is far, they travel together.
        """

    def run(self, statement: Statement, params: Params = ...) -> int:
        """Execute and return the number of rows it touched."""

    def many(self, statement: Statement, rows: Sequence[Params]) -> None:
        """Execute once per row, in one call to the driver."""


Work = Callable[[Tx, int, A], R]
"""A unit of work: a module-level function ``work(tx, account, args) -> result``.

Arguments and result are plain data.  It may run twice (a lost batch is rerun),
may run in another process, and does nothing outside the database.  Raising undoes
what it did and nothing else of its batch.
"""


class Reader(Protocol):
    """A database that another process owns: this one reads it alone."""

    uuid: bytes  # 16 octets, kept inside the database

    async def read(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a reading unit on one snapshot, which includes every write that has
        returned to any process."""

    async def close(self) -> None:
        """Finish what runs, then close."""


class Database(Protocol):
    """One database: a metadata shard, the directory, or the queue."""

    name: str  # in logs and metrics: "shard-0"
    uuid: bytes  # 16 octets, kept inside the database

    async def write(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a writing unit; durable when it returns.

        Units of concurrent callers share one commit.  The order in which units
        ran is the order in which they are committed.
        """

    async def read(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a reading unit on one snapshot, which includes every write that
        has returned."""

    def stuck_for(self) -> float:
        """Return for how many seconds the batch under way has been; 0 when idle."""

    async def close(self) -> None:
        """Finish what is pending, then close."""


class MetadataStore(Protocol):
    """All shards: finds an account's database by the directory."""

    async def write(self, access: Access, work: Work[A, R], args: A) -> R:
        """``Database.write`` on the account's shard."""

    async def read(self, access: Access, work: Work[A, R], args: A) -> R:
        """``Database.read`` on the account's shard."""

    def shard_of(self, account: int) -> int:
        """Return the shard's position, to group recipients; NOT_FOUND otherwise."""


class BlobStore(Protocol):
    """Immutable bytes, addressed by where they lie and checked by their hash."""

    async def put(self, data: bytes | Sequence[bytes | memoryview]) -> BlobRef:
        """Store bytes (a sequence is one blob in chunks); durable on return.

        Concurrent puts share one sync.  Raises STORAGE_FULL or UNAVAILABLE; then
        nothing was acknowledged.
        """

    async def put_file(self, file: BinaryIO, size: int) -> BlobRef:
        """Store ``size`` octets from a file's start without holding them in memory."""

    async def read(self, ref: BlobRef, start: int = 0, end: int | None = None) -> bytes:
        """Return content[start:end]; UNAVAILABLE when missing or damaged, which its
        ``details["damaged"]`` tells from a store that is away for a while."""

    def stream(
        self, ref: BlobRef, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield content[start:end] in chunks of at most 256 KiB."""

    def expect(self, change: int) -> None:
        """Say that ``change`` more (or, negative, fewer) puts are about to come, so
        that a batch may wait a moment for them."""

    async def close(self) -> None:
        """Finish what is pending, then close."""


class SegmentStore(BlobStore, Protocol):
    """A blob store that packs blobs into immutable segments (``storage.segments``),
    and lets the collector look at them and pack them anew."""

    async def segments(self) -> list[SegmentInfo]:
        """Return all segments in the order of their numbers."""

    async def list_blobs(self, segment: int) -> list[BlobRef]:
        """Return the refs of all records in a segment, damaged ones too."""

    async def rewrite(
        self, refs: Iterable[BlobRef], rate: int = 0
    ) -> dict[BlobRef, BlobRef]:
        """Copy live records into new segments; return old -> new, durable.

        Damaged records are missing from the result: their segment must stay.  With a
        ``rate`` at most so many octets are copied per second.
        """

    async def remove_segment(self, segment: int) -> None:
        """Remove a sealed segment; INVALID for one that is still written."""

    async def verify_segment(self, segment: int) -> SegmentReport:
        """Read a whole segment and compare checksums and hashes."""

    def stats(self) -> BlobStats:
        """Return what was counted since the store was opened."""


class SearchIndex(Protocol):
    """The words of each account's emails; it may lag behind, and says how far it is.

    An engine that lost an index says 0 and is given everything again.
    """

    async def search(self, account: int, query: Query) -> Hits:
        """Return the emails whose indexed words match, and the index's watermark.

        What was created after the watermark is not among them; what was destroyed
        may be.  INVALID for a query that is too complex, LIMIT for a prefix of too
        many words.
        """

    async def update(
        self,
        account: int,
        documents: Sequence[tuple[int, bytes]],
        removed: Sequence[int],
        since: int,
        watermark: int,
    ) -> None:
        """Index what changed in (since, watermark], durably and as a whole.

        ``documents`` are (email id, text as ``storage.text.pack`` makes it) of new
        emails, ``removed`` ids of destroyed ones.  CONFLICT, and nothing is done,
        when the index does not stand at ``since``: ask for its watermark and go on
        from there.  An update may so be repeated when its answer was lost.
        """

    async def watermark(self, account: int) -> int:
        """Return the modseq that the index has reached; 0 when it holds nothing."""

    async def drop(self, account: int) -> None:
        """Remove all that is indexed of an account."""

    async def close(self) -> None:
        """Finish what is pending, then close."""


class Cache(Protocol):
    """Rendered pieces that can be made again; a key names one state of a thing, so
    that nothing ever has to be invalidated (the modseq is part of it)."""

    def get(self, key: Hashable) -> bytes | None:
        """Return what was put under ``key``, or None; never raises."""

    def put(self, key: Hashable, value: bytes) -> None:
        """Keep a value for a while; never raises."""


class Bus(Protocol):
    """Hints: "account 7 reached 1042".  Losing one loses nothing."""

    def publish(self, account: int, modseq: int) -> None:
        """Tell every subscriber of this account; never raises."""

    def subscribe(
        self, account: int, callback: Callable[[int, int], None]
    ) -> Callable[[], None]:
        """Call ``callback(account, modseq)`` on each hint; returns unsubscribe."""

    def echo(self, account: int, modseq: int) -> None:
        """Tell the subscribers in this process alone; never raises."""

    def watched(self) -> list[int]:
        """Return the accounts that somebody in this process subscribed to."""

    def on_gap(self, callback: Callable[[Collection[int] | None], None]) -> None:
        """Call with the accounts of which hints may be missing; None: with all.

        A new subscription has a gap at its beginning where other processes have to
        be told of it.
        """

    @property
    def whole(self) -> bool:
        """False while hints of some other process cannot arrive."""

    async def close(self) -> None:
        """Leave the bus."""
