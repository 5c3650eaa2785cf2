"""Two shards, a queue and segments, whose every access is a step (``interleave``).

The databases are real (SQLite in memory, the product's tables) and so are the units
that run on them and the collector; segments are lists of what they hold.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from mailserverd.core.errors import Kind, MailError
from mailserverd.services.collector import Collector, Plan
from mailserverd.services.usage import size_of
from storage.compaction import Policy
from storage.metadata.common_tables import COMMON
from storage.metadata.deliver import add_email
from storage.metadata.queue import MailQueue
from storage.metadata.queue_tables import QUEUE
from storage.metadata.sqlite import SqliteTx
from storage.report import SegmentInfo
from storage.segments import RECORD_HEADER
from tests.lib.clock import ManualClock
from tests.lib.interleave import Actor, Op, run_through
from tests.lib.shard import NOW, Shard, blob_ref, delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence

    from storage.model import BlobRef

    Script = Callable[["BlobWorld"], Coroutine[Any, Any, None]]

OLD, OPEN = 1, 1000  # segments: sealed long ago; being written
EAGER = Plan(Policy(grace=100, linger=0, few=2), rate=0)
SHARD_STATE = (
    "SELECT hash, segment, offset FROM blob ORDER BY hash",
    "SELECT hash, owner_id, expires FROM blob_owner ORDER BY hash, owner_id",
    "SELECT email_id, hash FROM email ORDER BY email_id",
    "SELECT segment FROM retired ORDER BY segment",
)
QUEUE_STATE = (
    "SELECT hash, segment, offset FROM blob ORDER BY hash",
    "SELECT message, hash, finished FROM queue_message ORDER BY message",
    "SELECT acceptance, hash, open FROM acceptance ORDER BY acceptance",
    "SELECT target, applied FROM acceptance_target ORDER BY acceptance, target",
    "SELECT segment FROM retired ORDER BY segment",
    "SELECT name, position FROM progress",
)
NEEDED = """
SELECT hash, segment, offset FROM blob WHERE
EXISTS (SELECT 1 FROM queue_message m WHERE m.hash = blob.hash AND finished = 0) OR
EXISTS (SELECT 1 FROM acceptance a WHERE a.hash = blob.hash AND open > 0)
"""


class StepDatabase:
    """``Database`` on a connection; each unit is a step, and a transaction."""

    def __init__(self, name: str, connection: sqlite3.Connection) -> None:
        self.name = name
        self.connection = connection

    def write(self, work: Any, account: int, args: Any) -> Op:
        """Run a unit when its turn comes."""
        return Op(lambda: self.run(work, account, args))

    read = write

    def run(self, work: Any, account: int, args: Any) -> Any:
        """Run a unit now; what it raises undoes what it did."""
        execute = self.connection.execute
        execute("SAVEPOINT u")
        try:
            result = work(SqliteTx(self.connection, NOW), account, args)
        except BaseException:
            execute("ROLLBACK TO u")
            raise
        finally:
            execute("RELEASE u")
        return result


@dataclasses.dataclass(slots=True)
class Segment:
    """Records by offset."""

    sealed: bool
    quiet: float
    records: dict[int, BlobRef] = dataclasses.field(default_factory=dict)

    def add(self, ref: BlobRef, number: int) -> BlobRef:
        """Append a record; return its address."""
        at = 64 + sum(r.length + RECORD_HEADER for r in self.records.values())
        placed = dataclasses.replace(ref, segment=number, offset=at)
        self.records[at] = placed
        return placed


class StepSegments:
    """``SegmentStore``; each call is a step.  ``aged``: copies are old at once."""

    def __init__(self, *, aged: bool) -> None:
        self.aged = aged
        self.segments_: dict[int, Segment] = {
            OLD: Segment(True, 1e6),
            OPEN: Segment(False, 0.0),
        }
        self.next = 100

    def put(self, number: int, segment: int) -> BlobRef:
        """Store message ``number`` now."""
        return self.segments_[segment].add(blob_ref(b"%d" % number), segment)

    def holds(self, digest: bytes, segment: int, offset: int) -> bool:
        """Return whether a record lies there."""
        found = self.segments_.get(segment)
        ref = found.records.get(offset) if found else None
        return ref is not None and ref.hash == digest

    def read(self, ref: BlobRef) -> Op:
        """Read a blob: UNAVAILABLE when it is not there."""

        def run() -> None:
            if not self.holds(ref.hash, ref.segment, ref.offset):
                raise MailError(Kind.UNAVAILABLE, "missing")

        return Op(run)

    def segments(self) -> Op:
        """List segments."""
        return Op(
            lambda: [
                SegmentInfo(
                    n, s.sealed, size_of(tuple(s.records.values())), NOW - s.quiet
                )
                for n, s in sorted(self.segments_.items())
            ]
        )

    def list_blobs(self, segment: int) -> Op:
        """List records."""

        def run() -> list[BlobRef]:
            if segment not in self.segments_:
                raise MailError(Kind.UNAVAILABLE, "no such segment")
            return list(self.segments_[segment].records.values())

        return Op(run)

    def rewrite(self, refs: Iterable[BlobRef], _rate: int = 0) -> Op:
        """Copy into a new segment what is still there."""
        wanted = list(refs)

        def run() -> dict[BlobRef, BlobRef]:
            sound = [r for r in wanted if self.holds(r.hash, r.segment, r.offset)]
            made, number = Segment(True, 1e6 if self.aged else 0.0), self.next
            if sound:
                self.next += 1
                self.segments_[number] = made
            return {ref: made.add(ref, number) for ref in sound}

        return Op(run)

    def remove_segment(self, segment: int) -> Op:
        """Remove a sealed segment."""

        def run() -> None:
            if not self.segments_[segment].sealed:
                raise MailError(Kind.INVALID, "being written")
            del self.segments_[segment]

        return Op(lambda: run() if segment in self.segments_ else None)


class Base:
    """The databases, made once; each world takes back what it did to them."""

    def __init__(self) -> None:
        self.shards = [Shard(1), Shard(1)]
        queue = sqlite3.connect(":memory:", isolation_level=None)
        engine = create_engine("sqlite://", creator=lambda: queue, poolclass=StaticPool)
        with engine.connect() as made:
            COMMON.create_all(made)
            QUEUE.create_all(made)
            made.commit()
        self.queue = queue
        self.connections = [*(s.connection for s in self.shards), queue]


class BlobWorld:
    """Who shares what; ``prepare`` fills it, ``scripts`` are its actors."""

    def __init__(
        self,
        base: Base,
        prepare: Callable[[BlobWorld], None],
        scripts: Sequence[Script],
        *,
        aged: bool = False,
        plan: Plan = EAGER,
        shards: int = 2,
    ) -> None:
        self._plan = plan
        for connection in base.connections:
            connection.execute("BEGIN")
        self._base = base
        self.store = StepSegments(aged=aged)
        self.shards = [
            StepDatabase(f"shard-{n}", shard.connection)
            for n, shard in enumerate(base.shards[:shards])
        ]
        self.queue_db = StepDatabase("queue", base.queue)
        self.queue = MailQueue(cast("Any", self.queue_db))
        self.acknowledged: set[tuple[int, int]] = set()  # (shard, message)
        self.destroyed: set[tuple[int, int]] = set()
        self.facts: dict[str, Any] = {}
        prepare(self)
        self.actors = [Actor(script(self)) for script in scripts]

    # --- what actors do ---

    def collector(self) -> Collector:
        """Return a collector of its own."""
        return Collector(
            cast("Any", self.shards),
            self.queue,
            cast("Any", self.store),
            ManualClock(NOW),
            self._plan,
        )

    def add(self, shard: int, number: int, ref: BlobRef) -> int:
        """Deliver now; returns the email's id."""
        args = delivery(number, blob=ref)
        email: int = self.shards[shard].run(add_email, 1, args).email_id
        return email

    async def deliver(self, shard: int, number: int, ref: BlobRef) -> None:
        """Deliver what was put at ``ref`` some time ago; if refused, put it again."""
        try:
            await self.shards[shard].write(add_email, 1, delivery(number, blob=ref))
        except MailError:
            again = await Op(lambda: self.store.put(number, OPEN))
            await self.shards[shard].write(add_email, 1, delivery(number, blob=again))
        self.acknowledged.add((shard, number))

    # --- what must hold ---

    def state(self) -> Hashable:
        """Return everything stored."""
        rows = [
            tuple(database.connection.execute(text).fetchall())
            for databases, texts in (
                (self.shards, SHARD_STATE),
                ([self.queue_db], QUEUE_STATE),
            )
            for database in databases
            for text in texts
        ]
        held = tuple((n, s.sealed, *s.records) for n, s in self.store.segments_.items())
        return (*rows, held, self.store.next)

    def check(self) -> None:
        """What a row places is there, owned or not: the next message may own it."""
        for shard in self.shards:
            execute = shard.connection.execute
            for row in execute("SELECT hash, segment, offset FROM blob"):
                assert self.store.holds(*row), f"{shard.name} lost {row[1:]}"
            lost = execute(
                "SELECT count(*) FROM email WHERE hash NOT IN (SELECT hash FROM blob)"
            )
            assert lost.fetchone() == (0,), f"an email of {shard.name} has no blob"
        for row in self.queue_db.connection.execute(NEEDED):
            assert self.store.holds(*row), f"the queue lost {row[1:]}"

    def finish(self) -> None:
        """Acknowledged mail is there; then the collector leaves no garbage."""
        for shard, number in self.acknowledged - self.destroyed:
            digest = blob_ref(b"%d" % number).hash
            found = self.shards[shard].connection.execute(
                "SELECT count(*) FROM email WHERE hash = ?", (digest,)
            )
            assert found.fetchone() != (0,), f"message {number} is not in {shard}"
        for _ in range(2):
            run_through(self.collector().run())
            self.check()
        self._tidy()

    def _tidy(self) -> None:
        needed = {
            row
            for shard in self.shards
            for row in shard.connection.execute(
                "SELECT hash, segment, offset FROM blob"
            )
        } | set(self.queue_db.connection.execute(NEEDED))
        dense = []
        for number, segment in self.store.segments_.items():
            if not segment.sealed or segment.quiet < self._plan.policy.grace:
                continue
            kept = [
                r
                for r in segment.records.values()
                if (r.hash, r.segment, r.offset) in needed
            ]
            assert 2 * size_of(kept) > size_of(tuple(segment.records.values())), (
                f"segment {number} holds garbage"
            )
            dense.append(number)
        assert len(dense) < self._plan.policy.few, f"{dense} are not merged"

    def close(self) -> None:
        """Take back all that was done."""
        for connection in self._base.connections:
            connection.execute("ROLLBACK")
