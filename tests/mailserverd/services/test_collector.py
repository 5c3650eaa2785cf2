"""The collector removes what nobody owns, and nothing else, while mail arrives."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, cast

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Recipient
from mailserverd.services import collector as collecting
from mailserverd.services.collector import Collector, Plan
from mailserverd.services.usage import Pace
from storage.compaction import Policy
from storage.metadata.queue import MailQueue
from storage.queue import NewQueued
from storage.segments import RECORD_HEADER
from tests.lib.clock import ManualClock
from tests.lib.mailhost import MailHost, mail_host

if TYPE_CHECKING:
    import pathlib

ALICE, BOB = "alice@example.org", "bob@example.org"
EAGER = Plan(Policy(grace=0.0, linger=0.0), rate=0)
PATIENT = Plan(Policy(grace=0.0), rate=0)


def message(text: str) -> bytes:
    return f"From: s@example.net\r\nSubject: {text}\r\n\r\n{text}\r\n".encode()


def collector(host: MailHost, plan: Plan = EAGER) -> Collector:
    return Collector(host.databases, host.queue, host.blobs, host.clock, plan)


async def expunge(host: MailHost, address: str) -> None:
    access = await host.account(address)
    boxes = (await host.mailboxes.list(access)).mailboxes
    inbox = next(b.mailbox_id for b in boxes if b.role == "inbox")
    view = await host.messages.view(access, inbox)
    await host.messages.destroy(access, list(view.email_ids))


async def seal(host: MailHost) -> None:
    """End the newest segment, and begin another, as a restart does."""
    host.blobs._appender.seal_active()
    await host.blobs.put(b"the next segment")


async def count(host: MailHost) -> int:
    found = [
        await host.blobs.list_blobs(s.segment) for s in await host.blobs.segments()
    ]
    return sum(map(len, found))


def run(tmp_path: pathlib.Path, work: Any, **how: Any) -> None:
    async def whole() -> None:
        async with mail_host(tmp_path, **how) as host:
            await work(host)

    asyncio.run(whole())


def test_what_nobody_owns_goes_and_the_rest_stays_readable(
    tmp_path: pathlib.Path,
) -> None:
    async def work(host: MailHost) -> None:
        await host.send(message("to alice alone"), ALICE)
        await host.send(message("to both"), ALICE, BOB)
        await host.send(message("to bob alone"), BOB)
        await expunge(host, ALICE)
        await seal(host)
        before = await host.mail(BOB)
        done = await collector(host).run()
        assert (done.forgotten, done.rewritten) == (1, 0)
        assert await host.mail(BOB) == before
        await expunge(host, BOB)
        done = await collector(host).run()
        assert (done.forgotten, done.removed) == (2, 1)
        assert done.freed > 0

    run(tmp_path, work)


def test_a_sparse_segment_is_packed_and_its_messages_move(
    tmp_path: pathlib.Path,
) -> None:
    async def work(host: MailHost) -> None:
        await host.send(message("kept"), BOB)
        for number in range(9):
            await host.send(message(f"dropped {number}"), ALICE)
        await expunge(host, ALICE)
        await seal(host)
        kept = await host.mail(BOB)
        done = await collector(host, PATIENT).run()
        assert (done.rewritten, done.retired, done.removed) == (1, 1, 0)
        assert await host.mail(BOB) == kept
        assert (await collector(host, PATIENT).run()).removed == 0  # it lingers
        done = await collector(host).run()
        assert done.removed == 1
        assert await host.mail(BOB) == kept
        assert await count(host) == 2  # the message, and the next segment's blob

    run(tmp_path, work)


def test_what_is_queued_moves_once(tmp_path: pathlib.Path) -> None:
    """The old record of a queued message must not be packed again and again."""

    async def work(host: MailHost) -> None:
        ref = await host.blobs.put(message("to another server"))
        for number in range(3):
            await host.send(message(f"dropped {number}"), ALICE)
        to = (Recipient("friend@example.com"),)
        queued = await host.queue.enqueue(NewQueued(BOB, to, ref, expires=1 << 40))
        await expunge(host, ALICE)
        await seal(host)
        assert (await collector(host, PATIENT).run()).rewritten == 1
        done = await collector(host).run()
        assert (done.rewritten, done.removed) == (0, 1)
        place = (await host.queue.show(queued)).message.blob
        assert await host.blobs.read(place) == message("to another server")

    run(tmp_path, work)


def test_the_same_content_again_while_its_old_record_is_collected(
    tmp_path: pathlib.Path,
) -> None:
    async def work(host: MailHost) -> None:
        for _ in range(5):
            await host.send(message("again and again"), BOB)
            await expunge(host, BOB)
            await seal(host)
            arriving = asyncio.create_task(host.send(message("again and again"), BOB))
            await collector(host).run()
            await arriving
            await collector(host).run()
            (copy,) = await host.mail(BOB)
            assert copy.endswith(b"again and again\r\n")
            await expunge(host, BOB)

    run(tmp_path, work)


def test_nothing_young_is_touched(tmp_path: pathlib.Path) -> None:
    async def work(host: MailHost) -> None:
        await host.blobs.put(b"of a delivery under way")
        await seal(host)
        patient = Collector(host.databases, host.queue, host.blobs, host.clock)
        before = await count(host)
        done = await patient.run()
        assert (done.removed, done.rewritten) == (0, 0)
        assert await count(host) == before

    run(tmp_path, work)


@pytest.mark.parametrize("down", ["queue", "shard"])
def test_nothing_is_removed_while_a_store_cannot_be_read(
    tmp_path: pathlib.Path, down: str
) -> None:
    async def work(host: MailHost) -> None:
        await host.send(message("gone soon"), BOB)
        await expunge(host, BOB)
        await seal(host)
        before = await count(host)

        class Down:
            async def read(self, *_: object) -> None:
                raise MailError(Kind.UNAVAILABLE)

            write = read

        queue: Any = MailQueue(cast("Any", Down())) if down == "queue" else host.queue
        shards: Any = [*host.databases, Down()] if down == "shard" else host.databases
        broken = Collector(shards, queue, host.blobs, host.clock, EAGER)
        with pytest.raises(MailError):
            await broken.run()
        assert await count(host) == before

    run(tmp_path, work)


async def sparse(host: MailHost, segments: int) -> None:
    """Make segments in which one message of five is needed."""
    for number in range(segments):
        await host.send(message(f"kept {number}"), BOB)
        for other in range(4):
            await host.send(message(f"dropped {number} {other}"), ALICE)
        await seal(host)
    await expunge(host, ALICE)


def test_a_dry_run_says_what_a_run_then_does(tmp_path: pathlib.Path) -> None:
    async def work(host: MailHost) -> None:
        await sparse(host, 3)
        segments = await host.blobs.segments()
        dry = dataclasses.replace(PATIENT, dry_run=True)
        foreseen = await collector(host).run(dry)
        assert await host.blobs.segments() == segments
        assert (foreseen.forgotten, foreseen.rewritten) == (12, 3)
        done = await collector(host).run(PATIENT)
        assert done == foreseen
        assert done.pending == done.garbage > 0

    run(tmp_path, work)


async def small(host: MailHost, segments: int) -> None:
    """Make segments of one message each, all needed."""
    for number in range(segments):
        await host.send(message(f"kept {number} of {segments}"), BOB)
        await seal(host)


def test_small_segments_become_one_and_a_few_are_left_alone(
    tmp_path: pathlib.Path,
) -> None:
    async def work(host: MailHost) -> None:
        few = EAGER.policy.few
        await small(host, few)
        mail = await host.mail(BOB)
        dry = dataclasses.replace(PATIENT, dry_run=True)
        foreseen = await collector(host).run(dry)
        done = await collector(host).run(PATIENT)
        assert done == foreseen
        assert done.rewritten == done.retired == few
        assert (await collector(host).run()).removed == few
        assert await host.mail(BOB) == mail
        left = await host.blobs.segments()
        assert len(left) <= 3  # the new one, perhaps with the next ones' blobs, and one
        again = await collector(host).run()  # nothing is copied twice
        assert (again.rewritten, again.copied) == (0, 0)
        assert await host.blobs.segments() == left

    run(tmp_path, work)


def test_small_segments_with_damage_are_not_copied_again_and_again(
    tmp_path: pathlib.Path,
) -> None:
    async def work(host: MailHost) -> None:
        few = EAGER.policy.few
        await small(host, few + 1)
        for info in (await host.blobs.segments())[:few]:
            ref = (await host.blobs.list_blobs(info.segment))[-1]
            path = tmp_path / "blobs" / f"{info.segment:010d}.seg"
            octets = bytearray(path.read_bytes())
            octets[ref.offset + RECORD_HEADER] ^= 1
            path.write_bytes(octets)
        one = collector(host)
        first = await one.run()
        assert first.copied
        assert first.rewritten == 1
        await seal(host)  # the copy is not the newest any more
        for _ in range(2):
            assert (await one.run()).copied == 0

    run(tmp_path, work)


def test_a_run_that_was_ended_goes_on_there(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "NOTE_EVERY", 1)

    async def work(host: MailHost) -> None:
        for number in range(4):
            await host.send(message(f"{number}"), BOB)
            await seal(host)
        seen: list[int] = []
        listed = host.blobs.list_blobs

        async def noting(segment: int) -> Any:
            seen.append(segment)
            return await listed(segment)

        def leave(state: dict[str, Any]) -> None:
            if state["segment"] == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(host.blobs, "list_blobs", noting)
        with pytest.raises(KeyboardInterrupt):
            await collector(host).run(progress=leave)
        before, seen[:] = list(seen), []
        await collector(host).run()
        assert seen[0] == before[-1]  # what was not noted is looked at again
        assert sorted(seen) == [1, 2, 3, 4]  # and all are, in the end

    run(tmp_path, work)


def test_nothing_is_removed_while_accounts_live_elsewhere(
    tmp_path: pathlib.Path,
) -> None:
    async def work(host: MailHost) -> None:
        stores = (host.databases, host.queue, host.blobs, host.clock, EAGER)
        with pytest.raises(MailError) as caught:
            await Collector(*stores, missing=lambda: 3).run()
        assert "3 accounts" in caught.value.text

    run(tmp_path, work)


def test_a_segment_with_octets_of_no_record_is_kept(tmp_path: pathlib.Path) -> None:
    """Nobody can tell who needs what lay there."""

    async def work(host: MailHost) -> None:
        ref = await host.blobs.put(b"of which the header decays")
        await host.blobs.put(b"of which it does not")
        await seal(host)
        path = tmp_path / "blobs" / f"{ref.segment:010d}.seg"
        octets = bytearray(path.read_bytes())
        octets[ref.offset] ^= 1
        path.write_bytes(octets[:-8])  # and no footer lists it
        assert (await collector(host).run()).retired == 0
        assert path.exists()

    run(tmp_path, work)


@pytest.mark.parametrize("records", [0, 1])
def test_a_segment_that_was_cut_is_kept(tmp_path: pathlib.Path, records: int) -> None:
    """What it lacks may be needed, and may come back from a backup."""

    async def work(host: MailHost) -> None:
        await host.send(message("to bob"), BOB)
        await host.send(message("to alice"), ALICE)
        await expunge(host, BOB)
        (info,) = await host.blobs.segments()
        refs = await host.blobs.list_blobs(info.segment)
        await seal(host)
        path = tmp_path / "blobs" / f"{info.segment:010d}.seg"
        left = refs[records].offset if records else 0
        path.write_bytes(path.read_bytes()[:left])
        done = await collector(host).run()
        assert (done.retired, done.removed) == (0, 0)
        assert path.exists()

    run(tmp_path, work)


def test_a_segment_without_a_record_goes(tmp_path: pathlib.Path) -> None:
    """A full disk, or a crash just then, leaves one that was begun; it is sealed."""

    async def work(host: MailHost) -> None:
        await seal(host)
        host.blobs._appender.seal_active()
        empty = host.blobs._appender._ready().number
        await seal(host)
        path = tmp_path / "blobs" / f"{empty:010d}.seg"
        assert path.exists()
        assert (await host.blobs.verify_segment(empty)).damage == ()
        done = await collector(host).run()
        assert not path.exists()
        assert done.garbage == 0

    run(tmp_path, work)


def test_work_keeps_to_its_rate() -> None:
    waits: list[float] = []

    class Clock(ManualClock):
        def monotonic(self) -> float:
            return sum(waits)

    async def work() -> None:
        pace = Pace(1000, Clock())
        for _ in range(100):
            await pace.spend(10)  # a hundredth of a second each

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with pytest.MonkeyPatch.context() as put:
        put.setattr(asyncio, "sleep", sleep)
        asyncio.run(work())
    assert 0.95 < sum(waits) <= 1.0
    assert sum(map(bool, waits)) < 50  # short pauses are saved up
