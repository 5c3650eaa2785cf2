"""``local:``: hints inside one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    Callback = Callable[[int, int], None]

log = get_logger("bus")


def open_bus(_url: str) -> LocalBus:
    """Open ``local:``."""
    return LocalBus()


class LocalBus:
    """``Bus`` by direct calls: an account nobody watches costs one look-up."""

    def __init__(self) -> None:
        self._watched: dict[int, dict[object, Callback]] = {}

    def publish(self, account: int, modseq: int) -> None:
        """Tell every subscriber of this account; never raises.

        A subscriber that fails is logged and does not keep the others from hearing.
        """
        subscribers = self._watched.get(account)
        if not subscribers:
            return
        for callback in tuple(subscribers.values()):
            try:
                callback(account, modseq)
            except Exception:
                log.exception("subscriber-failed", account=account, modseq=modseq)

    def subscribe(self, account: int, callback: Callback) -> Callable[[], None]:
        """Call ``callback(account, modseq)`` on each hint; returns unsubscribe, which
        may be called more than once."""
        token = object()
        self._watched.setdefault(account, {})[token] = callback

        def unsubscribe() -> None:
            subscribers = self._watched.get(account, {})
            subscribers.pop(token, None)
            if not subscribers:
                self._watched.pop(account, None)

        return unsubscribe

    def echo(self, account: int, modseq: int) -> None:
        """As ``publish``: there is no other process."""
        self.publish(account, modseq)

    def watches(self, account: int) -> bool:
        """Return whether somebody subscribed to an account."""
        return account in self._watched

    def watched(self) -> list[int]:
        """Return the accounts that somebody subscribed to."""
        return list(self._watched)

    def on_gap(self, callback: Callable[[Collection[int] | None], None]) -> None:
        """Do nothing: no hint is ever lost here."""

    @property
    def whole(self) -> bool:
        """True."""
        return True

    async def close(self) -> None:
        """Do nothing."""
