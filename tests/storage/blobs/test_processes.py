"""Several processes on one store: writers that are killed, and a collector."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import random
import signal
import sys

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ports import SystemClock
from mailserverd.services.collector import Collector, Plan
from mailserverd.services.usage import size_of
from storage.blobs.file import FileBlobStore
from storage.compaction import Policy
from storage.metadata import blobs as units
from storage.metadata.deliver import add_email, prepare_account
from storage.metadata.queue import MailQueue
from storage.model import NewAccount
from tests.lib import blob_writer, databases
from tests.lib.blobs import opened, verified
from tests.lib.clock import ManualClock
from tests.lib.shard import delivery

pytestmark = pytest.mark.timeout(90)
ROOT = pathlib.Path(__file__).parents[3]
EAGER = Plan(Policy(grace=0, linger=0), rate=0)
WRITERS, LIVES = 3, 3
KEEP = 6  # one blob of so many is kept
LATE = 40  # of those, one of so many when its segment is perhaps no more


@contextlib.asynccontextmanager
async def writer(directory):
    """Run a process that puts without end; it is killed at last."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.lib.blob_writer", str(directory)),
        *("4", "0", "shared"),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.communicate()  # also what nobody read


class Keeper:
    """Has a shard, and rows in it for some of what the writers put."""

    def __init__(self, shard, queue, store):
        self.shard = shard
        self.kept = {}  # hash -> seed
        self.refused = self.numbers = self.runs = 0
        self.ran = asyncio.Condition()
        self.use(store, queue)

    def use(self, store, queue):
        """Collect in a store."""
        # All segments have rested for long; no fence is old enough to be forgotten.
        clock = ManualClock(SystemClock().now() + 86_400)
        self.collector = Collector([self.shard], queue, store, clock, EAGER)

    async def follow(self, directory, rng):
        """Keep what one writer puts, through some of its lives."""
        for _ in range(LIVES):
            async with writer(directory) as process:
                for _ in range(rng.randrange(100, 500)):
                    line = await process.stdout.readline()
                    assert line, "a writer failed"
                    seed, ref = blob_writer.parse(line)
                    if seed % KEEP == 0:
                        await self.keep(seed, ref)

    async def keep(self, seed, ref):
        """Commit a row: until then nobody but us knows that the blob is needed."""
        self.numbers += 1
        if self.numbers % LATE == 0:
            await self.collections(3)
        args = delivery(self.numbers, blob=ref, size=ref.size)
        try:
            await self.shard.write(add_email, 1, args)
        except MailError as error:
            assert error.kind is Kind.UNAVAILABLE
            self.refused += 1
        else:
            self.kept[ref.hash] = seed

    async def collections(self, count):
        """Wait for so many runs of the collector to end."""
        last = self.runs + count
        async with self.ran:
            await self.ran.wait_for(lambda: self.runs >= last)

    async def collect(self, ended):
        """Collect all the time."""
        removed = 0
        while not ended.is_set():
            removed += (await self.collector.run()).removed
            async with self.ran:
                self.runs += 1
                self.ran.notify_all()
            await asyncio.sleep(0.01)
        return removed

    async def check(self, store):
        """Everything that was kept is there, byte for byte, and little else."""
        await self.collector.run()
        found, needed, after = 0, 0, b""
        while refs := await self.shard.read(units.list_blobs, 0, (after, 500)):
            after = refs[-1].hash
            needed += size_of(refs)
            for ref in refs:
                found += 1
                content = blob_writer.content(self.kept[ref.hash])
                assert await store.read(ref) == content
        assert found == len(self.kept) > 100
        octets = sum(s.octets for s in await store.segments() if s.sealed)
        # Half of each may be dead, and the newest one (here 100 KB) is not packed.
        assert octets < 2 * needed + 150_000


def test_writers_are_killed_while_another_process_collects(tmp_path):
    blobs, rng = tmp_path / "blobs", random.Random(5)

    async def run():
        shard = await databases.make(tmp_path, "shard")
        queue = MailQueue(await databases.make(tmp_path, "queue"))
        await shard.write(prepare_account, 1, NewAccount("me@example.org"))
        async with opened(blobs, blob_writer.SHARED) as store:
            keeper, ended = Keeper(shard, queue, store), asyncio.Event()
            collecting = asyncio.create_task(keeper.collect(ended))
            await asyncio.gather(*(keeper.follow(blobs, rng) for _ in range(WRITERS)))
            ended.set()
            assert await collecting > 5
            assert keeper.refused
            await keeper.check(store)
        async with opened(blobs, blob_writer.OPTIONS) as store:  # all recovered
            reports = await verified(store)
            assert not [report for report in reports if report.damage]
            numbers = [report.segment for report in reports]
            assert len(set(numbers)) == len(numbers)
            keeper.use(store, queue)
            await keeper.check(store)
        await shard.close()
        await queue.close()

    asyncio.run(run())


def test_each_process_writes_its_own_segment_and_reads_all(tmp_path):
    async def run():
        async with (
            opened(tmp_path, blob_writer.SHARED) as one,
            opened(tmp_path, blob_writer.SHARED) as two,
        ):
            refs = [
                await store.put(b"%d" % n) for n in range(4) for store in (one, two)
            ]
            assert len({ref.segment for ref in refs}) == 2
            for store in (one, two):
                for n, ref in enumerate(refs):
                    assert await store.read(ref) == b"%d" % (n // 2)

    asyncio.run(run())


def test_the_segment_of_a_dead_process_is_recovered_beside_living_ones(tmp_path):
    async def run():
        async with opened(tmp_path, blob_writer.SHARED) as living:
            ours = await living.put(b"of a living process")
            async with writer(tmp_path) as process:
                lines = [await process.stdout.readline() for _ in range(20)]
                refs = [blob_writer.parse(line) for line in lines]
            async with opened(tmp_path, blob_writer.SHARED) as next_one:
                theirs = await next_one.put(b"of the next process")
                assert theirs.segment != ours.segment
                for seed, ref in refs:
                    content = blob_writer.content(seed)
                    assert await next_one.read(ref) == content
                    assert await living.read(ref) == content
                again = await living.put(b"it goes on where it was")
                assert again.segment == ours.segment

    asyncio.run(run())


def test_a_segment_that_another_process_reads_is_removed_all_the_same(tmp_path):
    """Who holds its old address is told that it is gone, and its blocks are freed."""

    async def run():
        async with (
            opened(tmp_path, blob_writer.SHARED) as reader,
            opened(tmp_path, blob_writer.SHARED) as remover,
        ):
            old = await remover.put(b"x" * 70_000)
            await remover.put(b"y" * 70_000)
            assert await reader.read(old) == b"x" * 70_000
            moves = await remover.rewrite([old])
            await remover.remove_segment(old.segment)
            with pytest.raises(MailError) as caught:
                await reader.read(old)
            assert caught.value.kind is Kind.UNAVAILABLE
            assert await reader.read(moves[old]) == b"x" * 70_000

    asyncio.run(run())


def test_the_store_stays_shut_to_who_wants_it_alone(tmp_path):
    async def run():
        async with opened(tmp_path, blob_writer.SHARED):
            with pytest.raises(MailError) as caught:
                await FileBlobStore.open(str(tmp_path), blob_writer.OPTIONS)
            assert caught.value.kind is Kind.UNAVAILABLE

    asyncio.run(run())
