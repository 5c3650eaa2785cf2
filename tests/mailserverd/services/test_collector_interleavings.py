"""Every interleaving of the collector's steps with those of whoever writes.

The steps are the real ones: the collector itself, its plan, and the units on real
databases.  A small number of messages and actors, but all orders of their steps; and
for each fault that is put in, one of these finds the order that shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, update
from sqlalchemy.dialects.postgresql import insert as upsert

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Recipient
from mailserverd.services import collector as collecting
from mailserverd.services import usage
from mailserverd.services.collector import Collector, Plan
from storage import compaction
from storage.compaction import Policy, Step
from storage.metadata import (
    blobs,
    collect,
    deliver,
    flags,
    queue_admin,
    queue_rows,
    queue_tables,
    queue_units,
    retired,
    tables,
)
from storage.metadata.deliver import add_email
from storage.metadata.queue import MailQueue
from storage.metadata.sql import Insert, Sql, p
from storage.queue import Acceptance, NewQueued, Outcome, State, TargetPart
from tests.lib.blob_world import EAGER, OLD, OPEN, Base, BlobWorld, Segment
from tests.lib.interleave import Broken, Explored, Op, explore
from tests.lib.shard import NOW, delivery

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = b"K" * 16
OLDER = 2  # another segment that was sealed long ago
TARGETS = ("shard:0", "shard:1")


@pytest.fixture(scope="module")
def base() -> Base:
    return Base()


@pytest.fixture(autouse=True)
def quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the collector's line of each of thousands of runs."""
    monkeypatch.setattr(collecting.log, "info", lambda *_, **__: None, raising=False)


# --- what they do ---------------------------------------------------------------


async def collector(world: BlobWorld) -> None:
    """One run; what others removed under its hands ends it."""
    try:
        await world.collector().run()
    except MailError as error:
        assert error.kind is Kind.UNAVAILABLE


async def stopped(world: BlobWorld) -> None:
    """A collector that was stopped when it had packed, and goes on much later."""
    moves = world.facts["moves"]
    stale = world.collector()
    await stale._move(moves)
    for database in (world.queue_db, *world.shards):
        await database.write(retired.retire, 0, (OLD,))


async def late_delivery(world: BlobWorld) -> None:
    """Its bytes were put long ago; only now it comes to its row."""
    await world.deliver(0, 3, world.facts["late"])


async def another(world: BlobWorld) -> None:
    """The same bytes, for the other shard."""
    await world.deliver(1, 3, world.facts["late"])


async def same_again(world: BlobWorld) -> None:
    """Known content: its row's place is used again, if the row is there."""
    ref = await Op(lambda: world.store.put(1, OPEN))
    await world.deliver(0, 1, ref)


async def expunge(world: BlobWorld) -> None:
    """The email with message 1 goes."""
    email = world.facts["email"]
    world.destroyed.add((0, 1))
    await world.shards[0].write(flags.destroy, 1, ([email], None))


async def accept(world: BlobWorld) -> None:
    """A message for both shards, by way of an acceptance; refused parts are caught
    up from where the queue has the bytes, however often it takes."""
    ref = world.facts["late"]
    parts = tuple(TargetPart(target, b"") for target in TARGETS)
    try:
        await world.queue.accept(Acceptance(KEY, ref, b"", parts))
    except MailError:
        return  # 451: nothing was promised
    world.acknowledged |= {(0, 3), (1, 3)}
    for shard, target in enumerate(TARGETS):
        await apply(world, shard, target, ref)


async def apply(world: BlobWorld, shard: int, target: str, ref: Any) -> None:
    for _ in range(3):
        args = delivery(3, blob=ref, acceptance=KEY)
        try:
            await world.shards[shard].write(add_email, 1, args)
        except MailError:
            (pending, *_) = [
                part
                for part in await world.queue.pending(NOW + 1)
                if part.part.target == target
            ]
            ref = pending.blob
            continue
        await world.queue.applied(KEY, [target])
        return
    # It is still promised, and the queue holds it: later, then.
    world.acknowledged.discard((shard, 3))


async def send(world: BlobWorld) -> None:
    """A message to another server: queued, claimed, read, done."""
    ref = world.facts["late"]
    to = (Recipient("friend@example.com"),)
    try:
        await world.queue.enqueue(NewQueued("", to, ref, expires=NOW + 9999))
    except MailError:
        return
    for claim in await world.queue.claim():
        try:
            await world.store.read(claim.message.blob)
            state = State.DELIVERED
        except MailError:
            state = State.QUEUED
        await world.queue.finish(claim, [Outcome(0, state, due=NOW)])


async def upload(world: BlobWorld) -> None:
    """An upload of what was put long ago, and its time has come at once."""
    try:
        args = (world.facts["late"], 0)
        await world.shards[0].write(blobs.add_upload, 1, args)
    except MailError:
        return


# --- what there is at first -------------------------------------------------------


def dead(world: BlobWorld) -> None:
    """An old segment in which nothing is needed, and what is about to be."""
    world.store.put(1, OLD)
    world.facts["late"] = world.store.put(3, OLD)


def unowned(world: BlobWorld) -> None:
    """A row that nobody owns, in a segment that holds nothing else."""
    world.facts["email"] = world.add(0, 1, world.store.put(1, OLD))
    world.shards[0].run(flags.destroy, 1, ([world.facts["email"]], None))
    world.destroyed.add((0, 1))
    world.facts["late"] = world.store.put(3, OLD)


def sparse(world: BlobWorld) -> None:
    """An email in a segment of garbage, and what is about to be needed there."""
    world.facts["email"] = world.add(0, 1, world.store.put(1, OLD))
    for number in (7, 8, 9):
        world.store.put(number, OLD)
    world.facts["late"] = world.store.put(3, OLD)


def packed(world: BlobWorld) -> None:
    """Somebody copied what is needed of a segment, and has not moved the rows."""
    spread(world)
    ref = next(iter(world.store.segments_[OLD].records.values()))
    world.facts["moves"] = tuple(world.store.rewrite([ref]).run().items())


def spread(world: BlobWorld) -> None:
    """The same message in both shards and in the queue, two emails of it in one."""
    ref = world.store.put(1, OLD)
    world.facts["email"] = world.add(0, 1, ref)
    for shard in range(1, len(world.shards)):
        world.add(shard, 1, ref)
    to = (Recipient("friend@example.com"),)
    world.queue_db.run(
        queue_units.enqueue, 0, NewQueued("", to, ref, expires=NOW + 9999)
    )
    for number in (7, 8, 9):
        world.store.put(number, OLD)
    world.facts["late"] = world.store.put(3, OLD)


def small(world: BlobWorld) -> None:
    """Segments that are wholly needed, by a shard and by the queue."""
    world.facts["email"] = world.add(0, 1, world.store.put(1, OLD))
    world.store.segments_[OLDER] = Segment(True, 1e6)
    ref = world.store.put(3, OLDER)
    to = (Recipient("friend@example.com"),)
    world.queue_db.run(
        queue_units.enqueue, 0, NewQueued("", to, ref, expires=NOW + 9999)
    )
    world.facts["late"] = ref


def left(world: BlobWorld) -> None:
    """Somebody copied a message out of a segment that is not worth it any more."""
    ref = world.store.put(1, OLD)
    world.facts["email"] = world.add(0, 1, ref)
    world.facts["moves"] = tuple(world.store.rewrite([ref]).run().items())
    world.facts["late"] = ref


Scenario = tuple[Any, tuple[Any, ...], bool, int]
SCENARIOS: dict[str, Scenario] = {
    "a delivery that took long": (dead, (collector, late_delivery), False, 2),
    "the same in both shards": (dead, (collector, late_delivery, another), False, 2),
    "an acceptance": (dead, (collector, accept), False, 2),
    "a queued message": (dead, (collector, send), False, 2),
    "an upload that expires": (dead, (collector, upload, late_delivery), False, 2),
    "known content again": (unowned, (collector, same_again), False, 2),
    "known content, expunged": (sparse, (collector, expunge, same_again), False, 2),
    "packing while more comes": (sparse, (collector, late_delivery, expunge), False, 2),
    "packing and an acceptance": (sparse, (collector, accept), False, 2),
    "packing for all": (spread, (collector, expunge), False, 2),
    "packing for the queue": (spread, (collector, send), False, 1),
    "merging for all": (small, (collector, expunge, late_delivery), False, 2),
    "merging for the queue": (small, (collector, send), True, 1),
    "one that was stopped": (packed, (collector, stopped), True, 1),
    "stopped, and packed in vain": (left, (collector, stopped), True, 1),
}


def run(base: Base, name: str, plan: Plan = EAGER) -> Explored:
    prepare, scripts, aged, shards = SCENARIOS[name]
    how = {"aged": aged, "shards": shards, "plan": plan}
    return explore(lambda: BlobWorld(base, prepare, scripts, **how))


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_needed_is_lost_in_any_order(base: Base, name: str) -> None:
    found = run(base, name)
    assert found.states > 50
    assert found.ends > 1


def test_no_age_is_needed_for_safety(base: Base) -> None:
    """With no grace at all, late comers come again, and nothing is lost."""
    at_once = Plan(Policy(grace=0, linger=0), rate=0)
    for name in ("a delivery that took long", "a queued message"):
        assert run(base, name, at_once).ends > 1


# --- faults that are put in ---------------------------------------------------------


Put = pytest.MonkeyPatch


def open_shards(put: Put) -> None:
    plain = upsert(tables.BLOB).on_conflict_do_nothing()
    put.setattr(deliver, "ADD_BLOB", Insert(plain, tuple(tables.BLOB.c.keys())))


def open_queue(put: Put) -> None:
    new = upsert(queue_tables.BLOB)
    places = {name: new.excluded[name] for name in queue_rows.LOCATION}
    plain = new.on_conflict_do_update(index_elements=["hash"], set_=places)
    put.setattr(queue_rows, "PUT_BLOB", Sql(plain, queue_tables.BLOB.c.keys()))


def open_moves(put: Put) -> None:
    table = tables.BLOB
    change = update(table).where(
        table.c.hash == p("of"),
        table.c.segment == p("old_segment"),
        table.c.offset == p("old_offset"),
    )
    names = ("store", "segment", "offset", "length", "codec", "key")
    put.setattr(blobs, "MOVE", Sql(change.values({n: p(f"to_{n}") for n in names})))


def queue_moves_by_hash(put: Put) -> None:
    table = queue_tables.BLOB
    change = update(table).where(table.c.hash == p("of_hash"))
    places = {name: p(f"to_{name}") for name in queue_rows.LOCATION}
    put.setattr(queue_admin, "MOVE_BLOB", Sql(change.values(places)))


def _retires_in(put: Put, which: slice) -> None:
    made = Collector.__init__

    def init(self: Any, *args: Any, **how: Any) -> None:
        made(self, *args, **how)
        self._databases = self._databases[which]

    put.setattr(Collector, "__init__", init)


def queue_not_retired(put: Put) -> None:
    _retires_in(put, slice(1, None))


def a_shard_not_retired(put: Put) -> None:
    _retires_in(put, slice(0, 2))


def removed_at_once(put: Put) -> None:
    def hasty(use: Any, policy: Any) -> Step:
        step = compaction.judge(use, policy)
        return Step.REMOVE if step is Step.RETIRE else step

    put.setattr(collecting, "judge", hasty)


def asked_before(put: Put) -> None:
    look = usage.Usage.look

    async def remembering(self: Any, info: Any, *args: Any, **how: Any) -> Any:
        known = self.__dict__.setdefault("known", {})
        if info.segment not in known:
            known[info.segment] = await look(self, info, *args, **how)
        return known[info.segment]

    put.setattr(usage.Usage, "look", remembering)


def queue_not_asked(put: Put) -> None:
    async def nothing(*_: object) -> dict[bytes, Any]:
        return {}

    put.setattr(MailQueue, "live_blobs", nothing)


def a_shard_not_asked(put: Put) -> None:
    made = usage.Usage.__init__

    def init(self: Any, shards: Any, queue: Any, store: Any) -> None:
        made(self, shards[:1], queue, store)

    put.setattr(usage.Usage, "__init__", init)


def owned_alone_counts(put: Put) -> None:
    put.setattr(blobs, "placed_blobs", collect.kept_blobs)


def forgotten_though_owned(put: Put) -> None:
    table = tables.BLOB
    put.setattr(blobs, "FORGET", Sql(delete(table).where(table.c.hash == p("hash"))))


FAULTS: dict[Callable[[Put], None], tuple[str, ...]] = {
    open_shards: ("a delivery that took long", "packing and an acceptance"),
    open_queue: ("a queued message", "an acceptance"),
    open_moves: ("stopped, and packed in vain",),
    queue_moves_by_hash: ("one that was stopped",),
    queue_not_retired: ("a queued message",),
    a_shard_not_retired: ("the same in both shards",),
    removed_at_once: ("a delivery that took long",),
    asked_before: ("a delivery that took long",),
    queue_not_asked: ("packing for the queue",),
    a_shard_not_asked: ("the same in both shards",),
    owned_alone_counts: ("known content, expunged",),
    forgotten_though_owned: ("known content again",),
}


@pytest.mark.parametrize(
    ("fault", "name"),
    [(fault, name) for fault, names in FAULTS.items() for name in names],
)
def test_a_fault_is_found(
    base: Base, monkeypatch: Put, fault: Callable[[Put], None], name: str
) -> None:
    fault(monkeypatch)
    with pytest.raises(Broken):
        run(base, name)


def test_the_order_of_questions_does_not_matter(base: Base, monkeypatch: Put) -> None:
    """A part goes from the queue to a shard; who asks the shard first misses it, but
    nothing can go into a retired segment that way."""

    async def shards_first(self: Any, refs: Any, **_: Any) -> Any:
        hashes = tuple(ref.hash for ref in refs)
        found = [
            await shard.read(blobs.placed_blobs, 0, hashes) for shard in self._shards
        ]
        found.append(await self._queue.live_blobs(hashes))
        return [r for r in refs if any(usage._at(one, r) for one in found)]

    monkeypatch.setattr(usage.Usage, "_needed", shards_first)
    assert run(base, "an acceptance").ends > 1
