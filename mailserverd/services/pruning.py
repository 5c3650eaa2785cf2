"""Forgetting what has served its time, once a day, in small transactions.

Tombstones and dead thread keys of accounts, applied acceptances on shards, finished
messages of the queue.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mailserverd.core.errors import MailError
from mailserverd.core.log import get_logger
from storage.metadata import prune

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.core.ports import Clock
    from storage.api import Database
    from storage.metadata.queue import MailQueue

log = get_logger("pruning")

FIRST = 3600.0  # seconds after the start
EVERY = 86_400.0  # seconds
QUEUE_DAYS = 7  # finished messages are kept for status and trace
PAGE = 500  # accounts read at once


class Pruning:
    """Works through every shard and the queue; safe to stop at any time."""

    def __init__(
        self, shards: Sequence[Database], queue: MailQueue, clock: Clock
    ) -> None:
        self._shards = tuple(shards)
        self._queue = queue
        self._clock = clock

    async def watch(self) -> None:
        """Run every day until cancelled."""
        await asyncio.sleep(FIRST)
        while True:
            await self.run()
            await asyncio.sleep(EVERY)

    async def run(self) -> None:
        """Do one pass; a database that is down is left for the next one."""
        for number, shard in enumerate(self._shards):
            try:
                accounts = await self._shard(shard)
                log.info("shard-pruned", shard=number, accounts=accounts)
            except MailError as error:
                log.warning("prune-failed", shard=number, error=str(error))
        try:
            log.info("queue-pruned", messages=await self._queue_rows())
        except MailError as error:
            log.warning("prune-failed", shard="queue", error=str(error))

    async def _shard(self, shard: Database) -> int:
        done = after = 0
        while page := await shard.read(prune.account_ids, 0, (after, PAGE)):
            for account in page:
                await self._account(shard, account)
            after, done = page[-1], done + len(page)
        while await shard.write(prune.forget_delivered, 0, prune.DELIVERED_DAYS):
            pass
        return done

    async def _account(self, shard: Database, account: int) -> None:
        days = prune.TOMBSTONE_DAYS
        while await shard.write(prune.prune_tombstones, account, days):
            pass
        key: int | None = prune.FIRST_KEY
        while key is not None:
            key = await shard.write(prune.prune_keys, account, key)

    async def _queue_rows(self) -> int:
        before = int(self._clock.now()) - QUEUE_DAYS * prune.DAY
        done = 0
        while gone := await self._queue.purge(before):
            done += gone
        return done
