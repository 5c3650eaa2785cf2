"""Units of one PostgreSQL transaction: side by side, or one to its end."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, Any

from storage.metadata.postgresql_errors import DRIVER
from storage.metadata.postgresql_tx import Order, Running

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from storage.api import Work
    from storage.metadata.postgresql_link import Link


@dataclasses.dataclass(slots=True, eq=False)
class Unit:
    """A unit that waits, and what became of it."""

    work: Work[Any, Any]
    account: int
    args: Any
    done: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    @property
    def key(self) -> tuple[Any, int]:
        """What it is remembered by when it raised after it wrote."""
        return self.work, self.account


class SideBySide:
    """Units of different accounts that advance together in one transaction.

    Those that wait with the same statement are sent in one round trip; those of one
    account follow one another.
    """

    def __init__(self, link: Link, order: Order, now: float) -> None:
        self._link = link
        self._order = order
        self._now = now
        self._waiting: dict[Running, tuple[Unit, collections.deque[Unit]]] = {}
        self._wrecks: list[Unit] = []

    async def run(self, units: Sequence[Unit]) -> list[Unit]:
        """Run units; return those that raised after they had written.

        Raises what the driver does.
        """
        for chain in _chains(units):
            self._begin(chain)
        try:
            while self._waiting:
                await self._step()
        finally:
            for running in self._waiting:
                running.drop()
        return self._wrecks

    async def _step(self) -> None:
        group = self._order.next_group(self._waiting)
        asks = [running.ask for running in group if running.ask is not None]
        answers = await self._link.send_alike(asks)
        for running, answer in zip(group, answers, strict=True):
            unit, chain = self._waiting[running]
            running.resume(answer)
            if self._has_ended(unit, running):
                del self._waiting[running]
                self._begin(chain)

    def _begin(self, chain: collections.deque[Unit]) -> None:
        """Begin the units of an account up to one that waits."""
        while chain:
            unit = chain.popleft()
            running = Running(unit.work, unit.account, unit.args, self._now)
            running.start()
            if not self._has_ended(unit, running):
                self._waiting[running] = unit, chain
                return

    def _has_ended(self, unit: Unit, running: Running) -> bool:
        """Take note of where a unit stands."""
        if not running.ended:
            self._order.note(running)
            return False
        unit.result, unit.error = running.result, running.error
        if running.error is not None and running.wrote:
            self._wrecks.append(unit)
        return True


async def drive(link: Link, running: Running) -> None:
    """Run a unit to its end; what the driver raises goes through the unit."""
    running.start()
    while running.ask is not None:
        try:
            answer = await link.send(running.ask)
        except DRIVER as error:
            running.fail(error)
            if running.error is None:  # it went on: the transaction does not
                running.drop()
                running.error = error
            return
        running.resume(answer)


def _chains(units: Sequence[Unit]) -> list[collections.deque[Unit]]:
    """Group units by account, in their order."""
    chains: dict[int, collections.deque[Unit]] = {}
    for unit in units:
        chains.setdefault(unit.account, collections.deque()).append(unit)
    return list(chains.values())
