"""Units of work on PostgreSQL: synchronous functions that stop at each statement.

A unit runs in a greenlet; at a statement it hands over to the driver, which sends it
and switches back with the rows.  So several units of one transaction can advance side
by side: those that wait with the same statement are sent together, and a batch costs
the round trips of one unit (DESIGN decision 8).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import greenlet

from storage.metadata.sql import EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from storage.api import Params, Row, Work

ALL, ONE, RUN, MANY, EACH = "all", "one", "run", "many", "each"


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """What a unit waits for; ``params`` of MANY are rows, of EACH there are none."""

    mode: str
    statement: Any
    params: Any


class PgTx:
    """The transaction as a unit sees it; only for use inside ``Running``."""

    __slots__ = ("now",)

    def __init__(self, now: float) -> None:
        self.now = now

    def all(self, statement: Any, params: Params = EMPTY) -> list[Row]:
        """Return all rows."""
        rows: list[Row] = _ask(Ask(ALL, statement, params))
        return rows

    def one(self, statement: Any, params: Params = EMPTY) -> Row | None:
        """Return the first row, or None."""
        rows: list[Row] = _ask(Ask(ONE, statement, params))
        return rows[0] if rows else None

    def run(self, statement: Any, params: Params = EMPTY) -> int:
        """Execute and return the number of rows it touched."""
        touched: int = _ask(Ask(RUN, statement, params))
        return touched

    def many(self, statement: Any, rows: Sequence[Params]) -> None:
        """Execute once per row."""
        if rows:
            _ask(Ask(MANY, statement, rows))

    def each(self, *asked: tuple[Any, Params]) -> list[list[Row]]:
        """Return the rows of several SELECTs, in one round trip."""
        statements = tuple(statement for statement, _ in asked)
        found: list[list[Row]] = _ask(
            Ask(EACH, statements, tuple(params for _, params in asked))
        )
        return found


def _ask(ask: Ask) -> Any:
    driver = greenlet.getcurrent().parent
    if driver is None:
        raise RuntimeError("a unit of work runs only inside Running")
    return driver.switch(ask)


class Running:
    """One unit under way: ``ask`` is what it waits for, None once it has ended."""

    __slots__ = ("_greenlet", "ask", "asked", "error", "result", "wrote")

    def __init__(
        self, work: Work[Any, Any], account: int, args: Any, now: float
    ) -> None:
        self._greenlet = greenlet.greenlet(lambda: work(PgTx(now), account, args))
        self.ask: Ask | None = None
        self.asked = 0
        self.wrote = False
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def ended(self) -> bool:
        """Whether ``result`` or ``error`` is there."""
        return self.ask is None

    def start(self) -> None:
        """Run to the first statement."""
        self._advance(self._greenlet.switch)

    def resume(self, answer: Any) -> None:
        """Give the rows that the unit waits for; run to its next statement."""
        self._advance(self._greenlet.switch, answer)

    def fail(self, error: BaseException) -> None:
        """Raise in the unit what its statement met."""
        self._advance(self._greenlet.throw, error)

    def drop(self) -> None:
        """End a unit that is to be run anew."""
        if not self._greenlet.dead:
            self._greenlet.throw()

    def _advance(self, switch: Any, *args: Any) -> None:
        self.ask = None
        try:
            got = switch(*args)
        except BaseException as error:  # the unit's caller is told
            self.error = error
            return
        if self._greenlet.dead:
            self.result = got
            return
        self.ask = got
        self.asked += 1
        if got.mode != EACH and got.statement.postgresql.writes:
            self.wrote = True


class Order:
    """How late each statement of a unit comes: the earliest are sent first, so that
    units that took a longer way meet the others again."""

    def __init__(self) -> None:
        self._late: dict[Any, int] = {}

    def note(self, running: Running) -> None:
        """Learn from a unit that has come to its next statement."""
        if running.ask is not None:
            statement = running.ask.statement
            if self._late.get(statement, 0) < running.asked:
                self._late[statement] = running.asked

    def next_group(self, waiting: Iterable[Running]) -> list[Running]:
        """Return those that wait with the earliest statement, alike."""
        groups: dict[tuple[Any, str], list[Running]] = {}
        for running in waiting:
            if running.ask is not None:
                key = (running.ask.statement, running.ask.mode)
                groups.setdefault(key, []).append(running)
        return groups[min(groups, key=lambda key: self._late[key[0]])]
