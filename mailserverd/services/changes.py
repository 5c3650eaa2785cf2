"""Announcing that an account reached a modseq: hints only, the log holds the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.api import Bus


class Changes:
    """Commit, then announce; subscribers read the log themselves."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def announce(self, account: int, modseq: int) -> None:
        """Say that ``account`` reached ``modseq``; never raises."""
        self._bus.publish(account, modseq)

    def subscribe(
        self, account: int, callback: Callable[[int, int], None]
    ) -> Callable[[], None]:
        """Call ``callback(account, modseq)`` on the loop; returns unsubscribe."""
        return self._bus.subscribe(account, callback)
