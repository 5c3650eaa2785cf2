"""Feeds the search index from the change log; the index's watermark is its cursor.

The un-indexed tail is searched directly, so the index may lag: it is fed in batches
(64 messages, or after 60 s of quiet), and not while the daemon is busy unless
it lags far behind.  Losing an announcement loses nothing: accounts are looked over
from time to time, and what an index holds is what it says it holds.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter, gauge
from mailserverd.core.types import system
from storage.metadata import accounts, texts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from mailserverd.core.ports import Clock
    from mailserverd.services.changes import Changes
    from storage.api import MetadataStore, SearchIndex

log = get_logger("indexer")
INDEXED = counter("search_indexed", "Messages given to the search index")
FAILED = counter("search_index_failures", "Updates that the search index refused")
LAG = gauge("search_lag", "Changes that the search index has not seen")

FLUSH_MESSAGES = 64
FLUSH_QUIET = 60.0  # seconds without a change
MAX_LAG = 5000  # changes; above it, being busy is no excuse
BATCH_MESSAGES = 500  # of one update, when there is much to catch up with
BATCH_OCTETS = 4 << 20
LOOK_EVERY = 1.0  # seconds
REVIEW_EVERY = 300.0  # seconds between looks at all accounts
BACK_OFF = (1.0, 5.0, 30.0, 120.0, 300.0)
REBUILD_AFTER = len(BACK_OFF)  # failures in a row


@dataclasses.dataclass(slots=True)
class _Account:
    """What is known of one account's index."""

    reached: int = 0  # modseq that was announced or read
    done: int = -1  # modseq up to which the index lacks nothing; -1: not asked yet
    changed_at: float = 0.0
    failures: int = 0
    not_before: float = 0.0
    unsubscribe: Callable[[], None] | None = None

    @property
    def lag(self) -> int:
        return self.reached - max(self.done, 0)


class Indexer:
    """One per shard owner.  ``list_accounts`` names the accounts it serves."""

    def __init__(
        self,
        store: MetadataStore,
        index: SearchIndex,
        changes: Changes,
        clock: Clock,
        list_accounts: Callable[[], Awaitable[Iterable[int]]],
        *,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._index = index
        self._changes = changes
        self._clock = clock
        self._list_accounts = list_accounts
        self._busy = busy
        self._accounts: dict[int, _Account] = {}
        self._dirty: set[int] = set()
        self._wake = asyncio.Event()
        self._reviewed = -REVIEW_EVERY
        self._turn = asyncio.Lock()

    @property
    def lag(self) -> int:
        """Changes that indexes have not seen, of all accounts."""
        return sum(self._accounts[account].lag for account in self._dirty)

    async def run(self) -> None:
        """Serve until cancelled; what is under way then is repeated later."""
        try:
            while True:
                await self.step()
                self._wake.clear()
                pause = LOOK_EVERY if self._dirty else REVIEW_EVERY
                try:
                    await asyncio.wait_for(self._wake.wait(), pause)
                except TimeoutError:
                    continue
                if self._dirty:
                    await asyncio.sleep(LOOK_EVERY)  # let a burst gather
        finally:
            for known in self._accounts.values():
                if known.unsubscribe:
                    known.unsubscribe()

    async def step(self) -> None:
        """Do what is due now."""
        now = self._clock.monotonic()
        if now - self._reviewed >= REVIEW_EVERY:
            self._reviewed = now
            await self._review()
        for account in sorted(self._dirty, key=self._by_lag):
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

    async def _review(self) -> None:
        """Look at all accounts: new ones, removed ones, lost announcements."""
        try:
            present = set(await self._list_accounts())
        except MailError as error:
            log.warning("review-failed", error=str(error))
            return
        for account in present:
            await self._look(account)
        for account in set(self._accounts) - present:
            await self._forget(account)

    async def _look(self, account: int) -> None:
        known = self._accounts.get(account)
        if known is None:
            known = self._accounts[account] = _Account()
            known.unsubscribe = self._changes.subscribe(account, self._heard)
        try:
            state = await self._store.read(system(account), accounts.state, None)
        except MailError as error:
            log.warning("account-not-read", account=account, error=str(error))
            return
        self._heard(account, state.modseq)

    async def _forget(self, account: int) -> None:
        known = self._accounts.pop(account)
        self._dirty.discard(account)
        if known.unsubscribe:
            known.unsubscribe()
        try:
            await self._index.drop(account)
        except MailError as error:
            log.warning("index-not-dropped", account=account, error=str(error))

    def _heard(self, account: int, modseq: int) -> None:
        known = self._accounts.get(account)
        if known is None or modseq <= max(known.reached, known.done):
            return
        known.reached = modseq
        known.changed_at = self._clock.monotonic()
        self._dirty.add(account)
        self._wake.set()

    # --- feeding ------------------------------------------------------------------

    async def flush(self, account: int) -> None:
        """Bring one account's index up to date; failures are noted, not raised."""
        known = self._accounts.setdefault(account, _Account())
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
        if known.done >= known.reached:
            self._dirty.discard(account)

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
            await self._index.drop(account)
        except MailError as error:
            log.warning("index-not-dropped", account=account, error=str(error))
