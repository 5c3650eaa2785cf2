"""Batches of writing units on one PostgreSQL connection.

Batches of all writers of a database follow one another: each begins with a lock that
its transaction holds to the end, whichever process runs it.  In the same round trip it
writes its own random number into the row ``writer`` of its owner.  When the answer to a
COMMIT is lost, that row tells: read ``FOR UPDATE`` on a new connection it waits for
the end of the transaction that was lost.
"""

from __future__ import annotations

import collections
import os
import time
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from storage.metadata.counters import COMMIT_SECONDS, COMMITS, LOST, UNITS
from storage.metadata.postgresql_errors import (
    DRIVER,
    describe,
    is_conflict,
    is_lost,
    translate,
)
from storage.metadata.postgresql_link import PATIENCE
from storage.metadata.postgresql_tx import Order, Running
from storage.metadata.postgresql_units import SideBySide, Unit, drive

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mailserverd.core.ports import Clock
    from storage.metadata.postgresql_link import Link

log = get_logger("storage")

LOCK = 0x6D61696C  # of this database's batches: pg_advisory_xact_lock(LOCK, 0)
HOLD = 15  # seconds after which the server ends a transaction that nobody goes on with
ATTEMPTS = 5  # of a batch that met another transaction
KEPT = 30 * 86_400  # seconds for which the row of a writer stays that is no more
QUICK = 2.0  # seconds within which a batch is lost whose server answers
SUSPECTS = 1000  # units remembered for having raised after they wrote


def _age(since: float) -> float:
    return time.monotonic() - since


def _is_hopeless(error: BaseException, attempts: int, *, last: bool) -> bool:
    """Whether a batch need not be tried again; ``last``: nor any of its units alone."""
    if is_conflict(error):
        return attempts > ATTEMPTS
    return last and not is_lost(error)


def _fail(units: Iterable[Unit], error: BaseException) -> None:
    for unit in units:
        unit.error = unit.error or error


class _SpoiledError(Exception):
    """Units raised after they wrote: the batch is run anew, these by themselves."""


class Writer:
    """Runs batches, one after the other; ``limit`` is in seconds per batch.

    ``serial``: units of different accounts may touch the same rows, so that none
    may advance beside another.
    """

    def __init__(
        self, link: Link, name: str, clock: Clock, limit: float, *, serial: bool
    ) -> None:
        self._link = link
        self._name = name
        self._clock = clock
        self._limit = limit
        self._serial = serial
        self._owner = os.urandom(16)
        self._number = int.from_bytes(self._owner[:4], "big") >> 1 | 1  # not 0
        self._known = False  # whether our row of ``writer`` is there
        self._now = 0.0  # as the units of the batch under way see it
        self._order = Order()
        self._suspects: collections.OrderedDict[Any, None] = collections.OrderedDict()
        self._labels = (COMMITS.labels(name), UNITS.labels(name))

    async def run(self, units: list[Unit], until: float = 0.0) -> None:
        """Run and commit units: each then has its result or error; never raises.

        ``until`` is when pieces of a batch are given up.
        """
        began = time.monotonic()
        until = until or began + self._limit
        attempts, alone = 0, False
        while True:
            started = time.monotonic()
            for unit in units:
                unit.result = unit.error = None
            try:
                with self._link.limited(self._limit):
                    await self._attempt(units, alone=alone)
            except _SpoiledError:
                LOST.labels(self._name).inc()
            except DRIVER as error:
                attempts += 1
                self._lost(units, error)
                last = alone or len(units) == 1
                late = _age(began) > PATIENCE or _age(until) > 0
                if (
                    late
                    or self._link.target.away
                    or _is_hopeless(error, attempts, last=last)
                ):
                    told = self._link.target.is_told(error)
                    return _fail(units, translate(error, self._name, told=told))
                alone = alone or not (is_lost(error) or is_conflict(error))
                if attempts > 1 and len(units) > 1 and _age(started) < QUICK:
                    # The way breaks again and again: what is shorter may get through.
                    middle = len(units) // 2
                    await self.run(units[:middle], until)
                    return await self.run(units[middle:], until)
            except Exception as error:  # told to the units' callers
                self._link.abort()
                return _fail(units, error)
            else:
                return None

    def _lost(self, units: Sequence[Unit], error: BaseException) -> None:
        """Take note of a batch that was rolled back as a whole."""
        LOST.labels(self._name).inc()
        if is_lost(error):
            self._link.abort()
        if not self._link.target.away:  # else it was not begun
            what, why = len(units), describe(error)
            log.warning("batch-lost", database=self._name, units=what, error=why)

    # --- one transaction --------------------------------------------------------

    async def _attempt(self, units: list[Unit], *, alone: bool) -> None:
        """Run units in one transaction and commit it."""
        batch, self._now = os.urandom(16), self._clock.now()
        if await self._link.open():
            await self._sweep()
        try:
            await self._begin(batch)
            single = len(units) == 1 and not alone
            if alone:
                await self._one_by_one(units)
            else:
                await self._segments(units)
            if single and units[0].error is not None:
                await self._link.script("ROLLBACK")
                return
        except _SpoiledError:
            await self._link.script("ROLLBACK")
            raise
        except DRIVER as error:
            if not is_lost(error):
                await self._link.script("ROLLBACK")
            raise
        began = time.monotonic()
        if not await self._commit(batch):
            raise ConnectionError("the commit was not made")
        COMMIT_SECONDS.observe(_age(began))
        self._labels[0].inc()
        self._labels[1].inc(len(units))

    async def _begin(self, batch: bytes) -> None:
        """Begin the transaction that is the only one of its kind: one round trip."""
        if not self._known:
            await self._link.script(
                "INSERT INTO writer (owner, batch, at) VALUES "
                f"({_octets(self._owner)}, '', {int(self._clock.now())}) "
                "ON CONFLICT DO NOTHING; "
                f"DELETE FROM writer WHERE at < {int(self._clock.now()) - KEPT}"
            )
            self._known = True
        status = await self._link.script(
            f"{self._opening()}; UPDATE writer SET batch = {_octets(batch)}, "
            f"at = {int(self._clock.now())} WHERE owner = {_octets(self._owner)}"
        )
        if status != "UPDATE 1":  # somebody tidied up
            self._known = False
            await self._link.script("ROLLBACK")
            raise ConnectionResetError("the row of this writer is gone")

    def _opening(self) -> str:
        """Return what begins a transaction and takes our lock, then everybody's."""
        synchronous = self._link.target.synchronous
        return (
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; "
            f"SET LOCAL statement_timeout = '{self._limit:g}s'; "
            f"SET LOCAL idle_in_transaction_session_timeout = '{HOLD}s'; "
            + ("" if synchronous else "SET LOCAL synchronous_commit = on; ")
            + ("" if self._link.target.prepared else "SET LOCAL jit = off; ")
            + f"SELECT pg_advisory_xact_lock({LOCK}, {self._number}), "
            f"pg_advisory_xact_lock({LOCK}, 0); "
            # Others' batches are waited for; what else locks our tables, not for long.
            f"SET LOCAL lock_timeout = '{PATIENCE:g}s'"
        )

    async def _sweep(self) -> None:
        """End what is left of this writer's transactions on lost connections."""
        await self._link.script(
            "BEGIN; SELECT pg_terminate_backend(pid) FROM pg_locks "
            "WHERE locktype = 'advisory' AND pid <> pg_backend_pid() AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database()) "
            f"AND classid = {LOCK} AND objid = {self._number} AND objsubid = 2; COMMIT"
        )

    async def _commit(self, batch: bytes) -> bool:
        """Commit; False when it was not committed, for whatever reason."""
        try:
            return await self._link.script("COMMIT") == "COMMIT"
        except DRIVER as error:
            log.warning("commit-unanswered", database=self._name, error=describe(error))
        return await self._was_committed(batch)

    async def _was_committed(self, batch: bytes) -> bool:
        """Ask the row of this writer, whose lock waits for the lost transaction."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self._link.abort()
                await self._link.open()
                await self._sweep()
                await self._link.script(
                    f"BEGIN; SET LOCAL lock_timeout = '{PATIENCE:g}s'"
                )
                rows = await self._link.fetch(
                    f"SELECT batch FROM writer WHERE owner = {_octets(self._owner)} "
                    "FOR UPDATE"
                )
                await self._link.script("COMMIT")
            except DRIVER as error:
                if time.monotonic() > until:
                    log.exception("commit-unknown", database=self._name)
                    raise MailError(
                        Kind.UNAVAILABLE, "storage did not answer"
                    ) from error
            else:
                found = bool(rows) and rows[0][0] == batch
                log.info("commit-resolved", database=self._name, committed=found)
                return found

    # --- units ------------------------------------------------------------------

    async def _segments(self, units: Sequence[Unit]) -> None:
        """Run units side by side, but for those that nothing may run beside."""
        beside: list[Unit] = []
        last: list[Unit] = []
        for unit in units:
            if unit.key in self._suspects:
                last.append(unit)
            elif not self._serial and unit.account and not _touches_several(unit):
                beside.append(unit)
            else:
                await self._side_by_side(beside, len(units))
                await self._side_by_side([unit], len(units))
                beside = []
        await self._side_by_side(beside, len(units))
        await self._one_by_one(last)

    async def _side_by_side(self, units: Sequence[Unit], of: int) -> None:
        """Let units advance together; ``of`` is how many the transaction has."""
        together = SideBySide(self._link, self._order, self._now)
        wrecks = await together.run(units)
        if wrecks and of > 1:
            for unit in wrecks:
                self._suspect(unit)
            raise _SpoiledError

    async def _one_by_one(self, units: Sequence[Unit]) -> None:
        """Run units each in a savepoint of its own."""
        for unit in units:
            running = Running(unit.work, unit.account, unit.args, self._now)
            await self._link.script("SAVEPOINT u")
            await drive(self._link, running)
            unit.result, unit.error = running.result, running.error
            if isinstance(unit.error, DRIVER):
                if is_lost(unit.error) or is_conflict(unit.error):
                    raise unit.error
                unit.error = translate(unit.error, self._name)
            if unit.error is None:
                self._suspects.pop(unit.key, None)
                await self._link.script("RELEASE u")
            else:
                await self._link.script("ROLLBACK TO u; RELEASE u")

    def _suspect(self, unit: Unit) -> None:
        """Remember a unit that raised after it wrote: it may do so again."""
        self._suspects[unit.key] = None
        if len(self._suspects) > SUSPECTS:
            self._suspects.popitem(last=False)


def _touches_several(unit: Unit) -> bool:
    return getattr(unit.work, "several", False) is True


def _octets(value: bytes) -> str:
    return f"'\\x{value.hex()}'"
