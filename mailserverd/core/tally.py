"""How many there are of each key: in this process, or in all that share a table.

Limits such as "50 connections of one address" hold for the daemon, not for each of
its worker processes.  A worker therefore counts in a column of its own of a table in
shared memory and reads the sum of all columns: no locks, no messages, and what a
crashed worker counted is wiped by who replaces it.
"""

from __future__ import annotations

import collections
import mmap
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Hashable

ROWS = 2  # of cells that a key is counted in; the smallest is what counts
CELLS = 1 << 15  # of a row; a power of two
TOP = 0xFFFF


class Tally(Protocol):
    """Counts per key."""

    def add(self, key: Hashable) -> int:
        """Count one more; return how many there are now, this one among them."""

    def drop(self, key: Hashable) -> None:
        """Count one less; pairs with ``add``."""


class LocalTally:
    """``Tally`` of one process, exact."""

    def __init__(self) -> None:
        self._counts: collections.Counter[Hashable] = collections.Counter()

    def add(self, key: Hashable) -> int:
        """Count one more; return how many there are now, this one among them."""
        self._counts[key] += 1
        return self._counts[key]

    def drop(self, key: Hashable) -> None:
        """Count one less; pairs with ``add``."""
        self._counts[key] -= 1
        if self._counts[key] <= 0:
            del self._counts[key]


class Table:
    """Shared memory of ``columns`` processes; made before they are forked.

    Pages that no count ever touched take no memory.  Keys are hashed with the
    secret of this daemon's start (``hash`` of texts), so nobody chooses neighbours.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._memory = mmap.mmap(-1, columns * ROWS * CELLS * 2)
        self._cells = memoryview(self._memory).cast("H")

    def column(self, number: int) -> SharedTally:
        """Return what process ``number`` counts with, from nothing."""
        start = number * ROWS * CELLS
        self._cells[start : start + ROWS * CELLS] = memoryview(
            bytes(ROWS * CELLS * 2)
        ).cast("H")
        return SharedTally(self._cells, self._columns, number)


class SharedTally:
    """``Tally`` of all processes; too high when keys share cells, never too low."""

    def __init__(self, cells: memoryview, columns: int, number: int) -> None:
        self._cells = cells
        self._columns = range(0, columns * ROWS * CELLS, ROWS * CELLS)
        self._own = number * ROWS * CELLS

    def add(self, key: Hashable) -> int:
        """Count one more; return how many there are now, this one among them."""
        places = _places(key)
        for place in places:
            at = self._own + place
            self._cells[at] = min(self._cells[at] + 1, TOP)
        return min(
            sum(self._cells[column + place] for column in self._columns)
            for place in places
        )

    def drop(self, key: Hashable) -> None:
        """Count one less; pairs with ``add``."""
        for place in _places(key):
            at = self._own + place
            self._cells[at] = max(self._cells[at] - 1, 0)


def _places(key: Hashable) -> tuple[int, int]:
    """Return the two cells of a key, one in each row."""
    number = hash(key)
    return number % CELLS, CELLS + (number // CELLS) % CELLS
