"""``local:`` in several processes: hints over a mesh of Unix sockets.

Each process listens on ``bus-SLOT.sock`` and keeps a link to every other one, over
which it says which accounts it wants to hear of.  Whoever publishes sends to those
alone, all hints of a turn of the loop in one message, the highest modseq per account.

Where hints may have been lost there is a *gap*: after a link was made or lost, after a
peer was too slow, and for a new subscription once all peers know of it.  Whoever
listens to gaps then looks at the accounts themselves.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mailserverd.core import ipc
from mailserverd.core.errors import MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter
from storage.bus.local import LocalBus

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Collection, Iterable, Sequence

    Callback = Callable[[int, int], None]
    OnGap = Callable[[Collection[int] | None], None]

log = get_logger("bus")
HINTS = counter("bus_hints", "Hints sent to and received from others", ("direction",))
GAPS = counter("bus_gaps", "Times that hints may have been lost")
MAX_KEPT = 10_000  # accounts of which hints wait for a slow peer
LINGER = 2.0  # seconds that an account nobody watches any more is still heard of


class _Subscriber:
    """Another process, and what it is still to be told."""

    def __init__(self, peer: ipc.Peer) -> None:
        self.peer = peer
        self.wanted: set[int] = set()
        self._waiting: dict[int, int] = {}
        self._lost = False
        peer.resumed = self.flush
        self._count = HINTS.labels("sent")

    def add(self, account: int, modseq: int) -> bool:
        """Keep a hint; True when it is the first one that waits."""
        waiting = self._waiting
        first = not waiting
        if modseq > waiting.get(account, -1):
            waiting[account] = modseq
        if len(waiting) > MAX_KEPT:
            self._waiting = {}
            self._lost = True
        return first

    def flush(self) -> None:
        """Send what waits, unless the peer reads too slowly."""
        if self.peer.writable and (self._waiting or self._lost):
            self._count.inc(len(self._waiting))
            self.peer.tell("hints", self._waiting, self._lost)
            self._waiting, self._lost = {}, False


class SocketBus:
    """``Bus`` between the processes of a node; made by ``open``."""

    def __init__(self) -> None:
        self._here = LocalBus()
        self._known: set[int] = set()  # accounts that peers are told we want
        self._new: set[int] = set()  # to be told
        self._unwatched: set[int] = set()  # to be withdrawn, if they stay so
        self._links: list[ipc.Link] = []
        self._ready: set[ipc.Peer] = set()  # peers that know what we want
        self._server: ipc.Server | None = None
        self._subscribers: dict[ipc.Peer, _Subscriber] = {}
        self._wanted: dict[int, set[_Subscriber]] = {}
        self._dirty: set[_Subscriber] = set()
        self._gap: list[OnGap] = []
        self._loop = asyncio.get_running_loop()
        self._sweep: asyncio.TimerHandle | None = None
        self._received = HINTS.labels("received")

    @classmethod
    async def open(
        cls, run_dir: pathlib.Path, slot: str, peers: Sequence[str]
    ) -> SocketBus:
        """Join; ``peers`` are the slots of the other processes, living or not."""
        self = cls()
        self._server = await ipc.listen(
            run_dir / f"bus-{slot}.sock",
            {"want": self._told_wanted},
            made=self._came,
            lost=self._left,
        )
        service = {"hints": self._told_hints}
        self._links = [
            ipc.Link(run_dir / f"bus-{one}.sock", service, up=self._up, down=self._down)
            for one in peers
        ]
        return self

    # --- the bus --------------------------------------------------------------

    def publish(self, account: int, modseq: int) -> None:
        """Tell every subscriber of this account; never raises, never waits."""
        self._here.publish(account, modseq)
        for subscriber in self._wanted.get(account, ()):
            if subscriber.add(account, modseq):
                if not self._dirty:
                    self._loop.call_soon(self._send)
                self._dirty.add(subscriber)

    def subscribe(self, account: int, callback: Callback) -> Callable[[], None]:
        """Call ``callback(account, modseq)`` on each hint; returns unsubscribe, which
        may be called more than once."""
        stop = self._here.subscribe(account, callback)
        if account not in self._known:
            if not self._new:
                self._loop.call_soon(self._tell_new)
            self._known.add(account)
            self._new.add(account)

        def unsubscribe() -> None:
            stop()
            self._stopped(account)

        return unsubscribe

    def echo(self, account: int, modseq: int) -> None:
        """Tell the subscribers in this process alone; never raises."""
        self._here.publish(account, modseq)

    def watched(self) -> list[int]:
        """Return the accounts that somebody in this process subscribed to."""
        return self._here.watched()

    def on_gap(self, callback: OnGap) -> None:
        """Call with the accounts of which hints may be missing; None: with all."""
        self._gap.append(callback)

    @property
    def whole(self) -> bool:
        """True while every other process tells us what we want to know."""
        return len(self._ready) == len(self._links)

    async def close(self) -> None:
        """Leave; the others hear nothing from here any more."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._gap.clear()
        self._send()
        for link in self._links:
            await link.close()
        if self._server is not None:
            self._server.close()

    # --- what we want -----------------------------------------------------------

    def _stopped(self, account: int) -> None:
        if self._here.watches(account):
            return
        self._unwatched.add(account)
        if self._sweep is None:
            self._sweep = self._loop.call_later(LINGER, self._withdraw)

    def _withdraw(self) -> None:
        """Say which accounts stayed unwatched; those of just now may return."""
        self._sweep = None
        gone = {one for one in self._unwatched if not self._here.watches(one)}
        self._unwatched.clear()
        self._known -= gone
        self._new -= gone
        for peer in self._ready if gone else ():
            peer.tell("want", (), tuple(gone))

    def _tell_new(self) -> None:
        """Tell all peers of new subscriptions; when they know, look once."""
        new, self._new = tuple(self._new), set()
        left = len(self._ready)

        def answered(success: bool, _value: Any) -> None:
            nonlocal left
            left -= 1
            if not left and success:  # a lost link makes a gap of its own
                self._missed(new)

        for peer in tuple(self._ready) if new else ():
            try:
                peer.request("want", (new, ()), answered)
            except MailError:  # it does not read: told all when it is there again
                peer.abort()

    def _up(self, peer: ipc.Peer) -> None:
        """Tell a peer all that we want; from its answer on we hear everything."""

        def answered(success: bool, _value: Any) -> None:
            if success:
                self._missed(None)

        peer.request("want", (tuple(self._known), ()), answered)
        self._ready.add(peer)

    def _down(self, peer: ipc.Peer) -> None:
        self._ready.discard(peer)
        self._missed(None)

    def _told_hints(self, _peer: ipc.Peer, hints: dict[int, int], lost: bool) -> None:
        self._received.inc(len(hints))
        for account, modseq in hints.items():
            self._here.publish(account, modseq)
        if lost:
            self._missed(None)

    def _missed(self, accounts: Collection[int] | None) -> None:
        GAPS.inc()
        for callback in self._gap:
            try:
                callback(accounts)
            except Exception:
                log.exception("gap-failed")

    # --- what others want -------------------------------------------------------

    def _came(self, peer: ipc.Peer) -> None:
        self._subscribers[peer] = _Subscriber(peer)

    def _left(self, peer: ipc.Peer) -> None:
        subscriber = self._subscribers.pop(peer, None)
        if subscriber is not None:
            self._dirty.discard(subscriber)
            self._unwant(subscriber, subscriber.wanted)

    def _told_wanted(
        self, peer: ipc.Peer, added: Iterable[int], removed: Iterable[int]
    ) -> None:
        subscriber = self._subscribers[peer]
        self._unwant(subscriber, removed)
        subscriber.wanted.difference_update(removed)
        subscriber.wanted.update(added)
        for account in added:
            self._wanted.setdefault(account, set()).add(subscriber)

    def _unwant(self, subscriber: _Subscriber, accounts: Iterable[int]) -> None:
        for account in accounts:
            wanting = self._wanted.get(account)
            if wanting is not None:
                wanting.discard(subscriber)
                if not wanting:
                    del self._wanted[account]

    def _send(self) -> None:
        dirty, self._dirty = self._dirty, set()
        for subscriber in dirty:
            subscriber.flush()
