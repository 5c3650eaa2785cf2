"""Every database engine refuses rows that point into a retired segment."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Recipient
from storage.metadata import blobs as units
from storage.metadata import retired
from storage.metadata.deliver import add_email, prepare_account
from storage.metadata.queue import MailQueue
from storage.model import NewAccount
from storage.queue import NewQueued
from tests.lib import databases
from tests.lib.shard import blob_ref, delivery

FOREVER = 1 << 40


async def refused(writing):
    with pytest.raises(MailError) as caught:
        await writing
    assert caught.value.kind is Kind.UNAVAILABLE


def test_a_shard(place):
    async def run():
        shard = await databases.make(place, "shard")
        await shard.write(prepare_account, 1, NewAccount("me@example.org"))
        await shard.write(add_email, 1, delivery(1))
        await shard.write(retired.retire, 0, (1, 5))
        await shard.write(retired.retire, 0, (1,))  # once more
        # At once with one that is right: they share a batch, not their fate.
        good = dataclasses.replace(blob_ref(b"3"), segment=2)
        tasks = (
            shard.write(add_email, 1, delivery(2)),
            shard.write(add_email, 1, delivery(3, blob=good)),
            shard.write(add_email, 1, delivery(1)),  # known content
            shard.write(units.add_upload, 1, (blob_ref(b"up"), 60)),
        )
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(one, MailError) for one in done] == [
            True,
            False,
            False,
            True,
        ]
        old = delivery(1).email.blob
        moves = [dataclasses.replace(old, segment=n) for n in (5, 6)]
        assert await shard.write(units.move_blobs, 0, ((old, moves[0]),)) == 0
        assert await shard.write(units.move_blobs, 0, ((old, moves[1]),)) == 1
        since = await shard.read(retired.retired_since, 0, (1, 5, 6))
        assert set(since) == {1, 5}
        await shard.close()

    asyncio.run(run())


def test_the_queue(place):
    async def run():
        queue = MailQueue(await databases.make(place, "queue"))
        to, ref = (Recipient("friend@example.com"),), blob_ref(b"1")
        await queue.enqueue(NewQueued("", to, ref, expires=FOREVER))
        await queue.database.write(retired.retire, 0, (1,))
        late = NewQueued("", to, blob_ref(b"2"), expires=FOREVER)
        await refused(queue.enqueue(late))
        assert len(await queue.list()) == 1
        new = dataclasses.replace(ref, segment=2)
        await queue.move_blobs([(ref, new)])
        await queue.move_blobs([(new, ref)])  # back again: no
        assert await queue.live_blobs([ref.hash]) == {ref.hash: new}
        for position in (7, 1 << 62):
            await queue.database.write(retired.set_position, 0, ("work", position))
        assert await queue.database.read(retired.position, 0, "work") == 1 << 62
        await queue.close()

    asyncio.run(run())
