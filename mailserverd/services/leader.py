"""Background work that one process at a time does, among all nodes: by a lease.

A lease is a row in the database that the work is about.  Who holds it renews it well
before it ends; whoever cannot renew it in time stops working before another begins.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from mailserverd.core.errors import MailError
from mailserverd.core.log import get_logger
from storage.metadata import leases

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mailserverd.core.ports import Clock
    from storage.api import Database

log = get_logger("leader")
LEASE = 15.0  # seconds


class Leader:
    """Does a piece of work while this process holds its lease."""

    def __init__(
        self,
        database: Database,
        name: str,
        clock: Clock,
        *,
        owner: bytes = b"",
        seconds: float = LEASE,
    ) -> None:
        self._database = database
        self._name = name
        self._clock = clock
        self._owner = owner or os.urandom(16)
        self._seconds = seconds
        self.term: int | None = None  # of the lease; None: another process has it

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work()`` whenever the lease is held, until cancelled.

        It is cancelled when the lease is lost, and begun anew with the next one; if
        it ends, or fails, so does this, and the lease is given back.
        """
        try:
            while True:
                until = await self._renew(self._seconds / 3)
                if self.term is not None and await self._lead(work, until):
                    return
                await asyncio.sleep(self._seconds / 3)
        finally:
            await self._release()

    async def _lead(self, work: Callable[[], Awaitable[None]], until: float) -> bool:
        """Work until the lease is lost; True when the work came to its end."""
        log.info("leading", lease=self._name, term=self.term)
        term = self.term
        working = asyncio.ensure_future(work())
        try:
            while self.term == term:
                # The last third stays for stopping before another one begins.
                left = until - self._seconds / 3 - self._clock.monotonic()
                if left <= self._seconds / 30:
                    break
                await asyncio.wait((working,), timeout=left / 2)
                if working.done():
                    await working
                    return True
                until = max(until, await self._renew(left / 2))
        finally:
            working.cancel()
            await asyncio.wait((working,))
        log.warning("lease-lost", lease=self._name)
        self.term = None
        return False

    async def _renew(self, limit: float) -> float:
        """Take or keep the lease; returns until when (monotonic) it is held at least.

        ``limit`` is how many seconds that may take.
        Returns 0 when the database did not answer: what was held still is.
        """
        began = self._clock.monotonic()
        args = (self._name, self._owner, self._seconds)
        try:
            async with asyncio.timeout(limit):
                self.term = await self._database.write(leases.take, 0, args)
        except (MailError, TimeoutError) as error:
            log.warning("lease-not-renewed", lease=self._name, error=str(error))
            return 0.0
        return began + self._seconds

    async def _release(self) -> None:
        if self.term is None:
            return
        self.term = None
        try:
            async with asyncio.timeout(self._seconds / 3):
                args = (self._name, self._owner)
                await self._database.write(leases.release, 0, args)
        except (MailError, TimeoutError) as error:
            log.warning("lease-not-released", lease=self._name, error=str(error))
