"""Collection, packing and figures are the same on every blob engine."""

from __future__ import annotations

import asyncio
import os

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.services.collector import Collector, Plan
from mailserverd.services.inspection import Inspection
from storage.compaction import Policy
from storage.metadata import blobs as units
from storage.metadata import flags
from storage.metadata.deliver import add_email, prepare_account
from storage.metadata.queue import MailQueue
from storage.model import NewAccount
from tests.lib import databases
from tests.lib.blob_engines import ENGINES
from tests.lib.clock import ManualClock
from tests.lib.shard import delivery

EAGER = Plan(Policy(grace=0, linger=0), rate=0)
LATER = 4e9  # seconds since the epoch: all segments have rested for long
LARGE = 450_000  # octets: such a blob has a segment of its own
SMALL = 20_000
SEGMENT = 60_000  # octets: with such a blob a segment is full


@pytest.mark.parametrize("name", ENGINES)
def test_what_nobody_needs_goes_and_what_is_sparse_is_packed(name, tmp_path):
    async def keep(shard, numbers, refs):
        """Have emails for all of these; then those of even number go."""
        for number, ref in zip(numbers, refs, strict=True):
            await shard.write(add_email, 1, delivery(number, blob=ref, size=ref.size))
        emails = [n + 1 for n in numbers if n % 2 == 0]
        await shard.write(flags.destroy, 1, (emails, None))

    async def run():
        shard = await databases.make(tmp_path, "shard")
        queue = MailQueue(await databases.make(tmp_path, "queue"))
        await shard.write(prepare_account, 1, NewAccount("me@example.org"))
        async with ENGINES[name](tmp_path / "blobs") as store:
            stores = ([shard], queue, store, ManualClock(LATER))
            contents = [os.urandom(LARGE if n < 4 else SMALL) for n in range(16)]
            refs = list(await asyncio.gather(*map(store.put, contents)))
            await keep(shard, range(16), refs)
            await store.put(b"in the newest segment" * 100)
            inspection = Inspection(*stores)
            before = await inspection.stats(0, lambda _: None)
            assert (before["records"], before["live_records"]) == (17, 8)
            done = await Collector(*stores, EAGER).run()
            assert done.forgotten == 8
            assert done.removed >= 2
            assert done.freed > 2 * LARGE
            rows = await shard.read(units.list_blobs, 0, (b"", 100))
            assert {await store.read(ref) for ref in rows} == set(contents[1::2])
            after = await inspection.stats(0, lambda _: None)
            assert after["live"] == pytest.approx(before["live"], rel=0.01)
            assert after["garbage"] < before["garbage"] - 1.9 * LARGE
            verified = await inspection.verify(0, lambda _: None)
            assert verified["damage"] == []
            assert verified["records"] == after["records"]
            with pytest.raises(MailError) as caught:
                await store.read(refs[0])
            assert caught.value.kind is Kind.UNAVAILABLE
            assert (await Collector(*stores, EAGER).run()).forgotten == 0
        await shard.close()
        await queue.close()

    asyncio.run(run())


@pytest.mark.parametrize("name", ENGINES)
def test_small_segments_are_merged_once(name, tmp_path):
    contents = [os.urandom(SEGMENT) for _ in range(EAGER.policy.few)]

    async def run():
        shard = await databases.make(tmp_path, "shard")
        queue = MailQueue(await databases.make(tmp_path, "queue"))
        await shard.write(prepare_account, 1, NewAccount("me@example.org"))
        async with ENGINES[name](tmp_path / "blobs") as store:
            for number, content in enumerate(contents):
                ref = await store.put(content)
                mail = delivery(number, blob=ref, size=ref.size)
                await shard.write(add_email, 1, mail)
            await store.put(b"in the newest segment" * 100)
            collector = Collector([shard], queue, store, ManualClock(LATER), EAGER)
            done = await collector.run()
            assert done.removed >= len(contents)
            rows = await shard.read(units.list_blobs, 0, (b"", 100))
            assert {await store.read(ref) for ref in rows} == set(contents)
            assert len({ref.segment for ref in rows}) == 1
            assert len(await store.segments()) <= 3
            again = await collector.run()
            assert (again.rewritten, again.copied) == (0, 0)
        await shard.close()
        await queue.close()

    asyncio.run(run())
