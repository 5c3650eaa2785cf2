"""How many requests (or uploads) of one account run at once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Gate:
    """Counts what is under way per account; ``size`` of them at most."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._inside: dict[int, int] = {}
        self._queues: dict[int, list[asyncio.Future[None]]] = {}

    def enter(self, account: int) -> bool:
        """Come in if there is room; pair with ``leave``."""
        inside = self._inside.get(account, 0)
        if inside >= self.size:
            return False
        self._inside[account] = inside + 1
        return True

    def leave(self, account: int) -> None:
        """Make room for the next."""
        left = self._inside[account] - 1
        if left:
            self._inside[account] = left
        else:
            del self._inside[account]
        queue = self._queues.pop(account, [])
        for waiter in queue:
            if not waiter.done():
                waiter.set_result(None)

    @contextlib.asynccontextmanager
    async def waiting(self, account: int) -> AsyncIterator[None]:
        """Come in, after waiting for room if need be."""
        while not self.enter(account):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queues.setdefault(account, []).append(waiter)
            await waiter
        try:
            yield
        finally:
            self.leave(account)
