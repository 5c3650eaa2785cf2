"""Feeds the search index from the change log; the index's watermark is its cursor.

The un-indexed tail is searched directly, so the index may lag: it is fed in batches
(64 messages, or after 60 s of quiet), and not while the daemon is busy unless
it lags far behind.  Which accounts lag is asked of the shards every few seconds
(``storage.metadata.indexed``), so nothing is kept of the many that are quiet.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter, gauge
from mailserverd.core.types import system
from storage.metadata import accounts, indexed, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mailserverd.core.ports import Clock
    from storage.api import Database, MetadataStore, SearchIndex

log = get_logger("indexer")
INDEXED = counter("search_indexed", "Messages given to the search index")
FAILED = counter("search_index_failures", "Updates that the search index refused")
LAG = gauge("search_lag", "Changes that the search index has not seen")

FLUSH_MESSAGES = 64
FLUSH_QUIET = 60.0  # seconds without a change
MAX_LAG = 5000  # changes; above it, being busy is no excuse
BATCH_MESSAGES = 500  # of one update, when there is much to catch up with
BATCH_OCTETS = 4 << 20
STEP_EVERY = 1.0  # seconds, while something is to be done
LOOK_EVERY = 15.0  # seconds between looks at all shards
MOST = 2000  # accounts that are kept an eye on; others come when these are done
PAGE = 500  # accounts that one look returns at once
BACK_OFF = (1.0, 5.0, 30.0, 120.0, 300.0)
REBUILD_AFTER = len(BACK_OFF)  # failures in a row


@dataclasses.dataclass(slots=True)
class _Account:
    """An account that changed since it was indexed."""

    reached: int  # modseq that was seen or read
    done: int  # modseq up to which the index lacks nothing; -1: it was never asked
    changed_at: float = 0.0
    failures: int = 0
    not_before: float = 0.0

    @property
    def lag(self) -> int:
        return self.reached - max(self.done, 0)


class Indexer:
    """Feeds the index with what lies on ``shards``; one for all processes."""

    def __init__(
        self,
        store: MetadataStore,
        index: SearchIndex,
        shards: Sequence[Database],
        clock: Clock,
        *,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._index = index
        self._shards = tuple(shards)
        self._clock = clock
        self._busy = busy
        self._accounts: dict[int, _Account] = {}
        self._looked = -LOOK_EVERY
        self._turn = asyncio.Lock()

    @property
    def lag(self) -> int:
        """Changes that indexes have not seen, of all accounts."""
        return sum(known.lag for known in self._accounts.values())

    async def run(self) -> None:
        """Serve until cancelled; what is under way then is repeated later."""
        while True:
            await self.step()
            await asyncio.sleep(STEP_EVERY if self._accounts else LOOK_EVERY)

    async def step(self) -> None:
        """Do what is due now."""
        now = self._clock.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            for shard in self._shards:
                await self._look(shard)
        for account in sorted(self._accounts, key=self._by_lag):
            if self._due(self._accounts[account]):
                await self.flush(account)
        LAG.set(self.lag)

    def _by_lag(self, account: int) -> int:
        return -self._accounts[account].lag

    def _due(self, known: _Account) -> bool:
        now = self._clock.monotonic()
        if now < known.not_before:
            return False
        if known.lag > MAX_LAG:
            return True
        if self._busy():
            return False
        return known.lag >= FLUSH_MESSAGES or now - known.changed_at >= FLUSH_QUIET

    # --- accounts -----------------------------------------------------------------

    async def _look(self, shard: Database) -> None:
        """See which accounts of a shard changed, and which are gone."""
        try:
            after, page = 0, PAGE
            while page == PAGE and len(self._accounts) < MOST:
                found = await shard.read(indexed.behind, 0, (after, PAGE))
                for account, modseq, done in found:
                    self._heard(account, modseq, done)
                page, after = len(found), found[-1][0] if found else 0
            for account in await shard.read(indexed.orphans, 0, PAGE):
                await self._index.drop(account)
                await shard.write(indexed.forget, account, None)
        except MailError as error:
            log.warning("look-failed", error=str(error))

    def _heard(self, account: int, modseq: int, done: int) -> None:
        known = self._accounts.get(account)
        if known is None:
            known = self._accounts[account] = _Account(done, done)
        if modseq > known.reached:
            known.reached = modseq
            known.changed_at = self._clock.monotonic()

    async def _forget(self, account: int) -> None:
        self._accounts.pop(account, None)
        try:
            await self._index.drop(account)
        except MailError as error:
            log.warning("index-not-dropped", account=account, error=str(error))

    # --- feeding ------------------------------------------------------------------

    async def flush(self, account: int) -> None:
        """Bring one account's index up to date; failures are noted, not raised."""
        known = self._accounts.setdefault(account, _Account(-1, -1))
        async with self._turn:
            try:
                await self._feed(account, known)
            except MailError as error:
                await self._failed(account, known, error)
            else:
                known.failures = 0

    async def _feed(self, account: int, known: _Account) -> None:
        since = await self._start(account)
        more = True
        while more:
            args = (since, BATCH_MESSAGES, BATCH_OCTETS)
            feed = await self._store.read(system(account), texts.feed, args)
            more = feed.more
            known.reached = max(known.reached, feed.reached)
            if feed.documents or feed.removed:
                await self._index.update(
                    account, feed.documents, feed.removed, since, feed.watermark
                )
                INDEXED.inc(len(feed.documents))
                since = feed.watermark
            known.done = feed.watermark
        await self._store.write(system(account), indexed.note, known.done)
        if known.done >= known.reached:
            self._accounts.pop(account, None)

    async def _start(self, account: int) -> int:
        """Return the index's watermark; one from another life is dropped."""
        watermark = await self._index.watermark(account)
        state = await self._store.read(system(account), accounts.state, None)
        if watermark > state.modseq:  # the account was restored from a backup
            log.warning("index-is-ahead", account=account, watermark=watermark)
            await self._index.drop(account)
            return 0
        return watermark

    async def _failed(self, account: int, known: _Account, error: MailError) -> None:
        if error.kind is Kind.CONFLICT:  # somebody else moved it: ask again
            return
        if error.kind is Kind.NOT_FOUND:
            await self._forget(account)
            return
        FAILED.inc()
        pause = BACK_OFF[min(known.failures, len(BACK_OFF) - 1)]
        known.failures += 1
        known.not_before = self._clock.monotonic() + pause
        log.warning(
            "index-update-failed",
            account=account,
            failures=known.failures,
            retry_in=pause,
            error=str(error),
        )
        if known.failures == REBUILD_AFTER and error.kind is not Kind.STORAGE_FULL:
            await self._rebuild(account)

    async def _rebuild(self, account: int) -> None:
        """Start an index anew that refused again and again."""
        log.warning("index-rebuilt", account=account)
        try:
            await self._store.write(system(account), indexed.forget, None)
            await self._index.drop(account)
        except MailError as error:
            log.warning("index-not-dropped", account=account, error=str(error))
