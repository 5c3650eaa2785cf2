"""Announcing that an account reached a modseq: hints only, the log holds the truth."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mailserverd.core.errors import MailError
from mailserverd.core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from storage.api import Bus

log = get_logger("changes")
DIRECTORY, QUEUE, DEFERRED = 0, -1, -2
"""Hints of no account: the directory changed; the queue has something due; a part of
a message waits for its target."""
POLL = 3.0  # seconds between looks while hints cannot arrive
LOOKS = 8  # accounts that are looked at at once


class Changes:
    """Commit, then announce; subscribers read the log themselves.

    ``look`` returns an account's modseq.  It is needed where hints come from other
    processes, and ``watch`` must run then: accounts whose hints may have been lost
    are looked at, so that a lost hint costs a moment and nothing else.
    """

    def __init__(
        self, bus: Bus, look: Callable[[int], Awaitable[int]] | None = None
    ) -> None:
        self._bus = bus
        self._look = look
        self._missing: set[int] = set()
        self._all = False
        self._wake = asyncio.Event()
        if look is not None:
            bus.on_gap(self._gap)

    def announce(self, account: int, modseq: int) -> None:
        """Say that ``account`` reached ``modseq``; never raises."""
        self._bus.publish(account, modseq)

    def subscribe(
        self, account: int, callback: Callable[[int, int], None]
    ) -> Callable[[], None]:
        """Call ``callback(account, modseq)`` on the loop; returns unsubscribe."""
        return self._bus.subscribe(account, callback)

    # --- lost hints -----------------------------------------------------------

    def _gap(self, accounts: Collection[int] | None) -> None:
        if accounts is None:
            self._all = True
        else:
            self._missing.update(accounts)
        self._wake.set()

    async def watch(self) -> None:
        """Look at accounts whose hints may have been lost, until cancelled."""
        while True:
            pause = None if self._bus.whole else POLL
            try:
                async with asyncio.timeout(pause):  # wait_for may lose a cancellation
                    await self._wake.wait()
            except TimeoutError:
                self._all = True
            self._wake.clear()
            await self._look_at(self._take())

    def _take(self) -> list[int]:
        found = self._bus.watched() if self._all else list(self._missing)
        self._all, self._missing = False, set()
        return found

    async def _look_at(self, accounts: list[int]) -> None:
        """Tell subscribers of this process how far each account is."""
        left = iter(accounts)

        async def some() -> None:
            for account in left:
                await self._look_at_one(account)
                await asyncio.sleep(0)  # reading may not have waited for anything

        await asyncio.gather(*(some() for _ in range(min(LOOKS, len(accounts)))))

    async def _look_at_one(self, account: int) -> None:
        if account <= 0 or self._look is None:
            self._bus.echo(account, 0)
            return
        try:
            modseq = await self._look(account)
        except MailError as error:
            log.warning("account-not-read", account=account, error=str(error))
        else:
            self._bus.echo(account, modseq)
