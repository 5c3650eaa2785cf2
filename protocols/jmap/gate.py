"""How many requests (or uploads) of one account run at once."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QUEUE = 64  # requests of one account that may wait for their turn
PATIENCE = 10.0  # seconds that one may wait


class Gate:
    """Counts what is under way per account; ``size`` of them at most, in order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._inside: dict[int, int] = {}
        self._queues: dict[int, collections.deque[asyncio.Future[None]]] = {}

    def enter(self, account: int) -> bool:
        """Come in if there is room; pair with ``leave``."""
        inside = self._inside.get(account, 0)
        if inside >= self.size:
            return False
        self._inside[account] = inside + 1
        return True

    def leave(self, account: int) -> None:
        """Hand the place to who waits longest, or free it."""
        queue = self._queues.get(account)
        while queue:
            waiter = queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._queues.pop(account, None)
        left = self._inside[account] - 1
        if left:
            self._inside[account] = left
        else:
            del self._inside[account]

    async def enter_soon(
        self, account: int, queue: int = QUEUE, patience: float | None = PATIENCE
    ) -> bool:
        """Come in, after waiting for a turn if need be; False when that is too long.

        Pair with ``leave`` when True.
        """
        if self.enter(account):
            return True
        waiting = self._queues.setdefault(account, collections.deque())
        if len(waiting) >= queue:
            return False
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(waiter)
        try:
            async with asyncio.timeout(patience):
                await waiter
        except TimeoutError:
            return self._given(waiter, account)
        except asyncio.CancelledError:
            if self._given(waiter, account):
                self.leave(account)
            raise
        return True

    def _given(self, waiter: asyncio.Future[None], account: int) -> bool:
        """Give up waiting; True when a place was handed over at the same moment."""
        if waiter.done() and not waiter.cancelled():
            return True
        queue = self._queues.get(account)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
        return False

    @contextlib.asynccontextmanager
    async def waiting(self, account: int) -> AsyncIterator[None]:
        """Come in, however long it takes."""
        entered = await self.enter_soon(account, 1 << 30, None)
        assert entered
        try:
            yield
        finally:
            self.leave(account)
