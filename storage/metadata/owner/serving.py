"""The owner's side: units of other processes run in the batches of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mailserverd.core import ipc
from mailserverd.core.metrics import counter
from storage.metadata.owner.applied import under_key

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

    from storage.api import Database

UNITS = counter(
    "metadata_remote_units", "Units that other processes sent", ("database",)
)
FORGET_EVERY = 64  # answers that arrived before their outcomes are forgotten
SESSION = 8  # octets of a key that name its sender; the rest is its count


def key_of(session: bytes, count: int) -> bytes:
    """Return the key of a sender's unit: 16 octets, in the order of the counts."""
    return session + count.to_bytes(8, "big")


class Serving:
    """Answers peers for as long as this process owns the database.

    ``wanted`` is called when the preferred owner asks for the database.
    """

    def __init__(self, local: Database, wanted: Callable[[], None]) -> None:
        self._local = local
        self._wanted = wanted
        self._server: ipc.Server | None = None
        self._draining = False
        self._running: dict[bytes, asyncio.Task[Any]] = {}
        self._forgotten: dict[bytes, int] = {}
        self._count = UNITS.labels(local.name)

    async def start(self, path: pathlib.Path) -> None:
        """Listen; OSError when the socket cannot be made."""
        service: ipc.Service = {"unit": self._unit, "want": self._want}
        self._server = await ipc.listen(path, service)

    async def drain(self, *, to_preferred: bool) -> None:
        """Take no more units and finish those that are here.

        ``to_preferred`` asks all others to let the preferred owner be the next.
        """
        self._draining = True
        if self._server is not None:
            self._server.close_door()
            for peer in self._server.peers:
                peer.tell("moving", to_preferred)
        while self._running:
            await asyncio.wait(tuple(self._running.values()))

    def end(self) -> None:
        """Let the peers look for the next owner; answers go out before."""
        if self._server is not None:
            self._server.close()

    def _want(self, _peer: ipc.Peer) -> None:
        if not self._draining:
            self._wanted()

    async def _unit(self, _peer: ipc.Peer, key: bytes, *sent: Any) -> bytes:
        """Run a unit; one that may have been sent before is looked up first."""
        work, account, args, again, below = sent
        if again and key in self._running:  # its first sending still runs
            await asyncio.wait((self._running[key],))
        if self._draining:  # the next owner gets it, when the connection has ended
            await asyncio.get_running_loop().create_future()
        task = asyncio.current_task()
        if task is not None:
            self._running[key] = task
        self._count.inc()
        call = key, work, args, again, self._forget(key, below)
        try:
            return await self._local.write(under_key(work), account, call)
        finally:
            if self._running.get(key) is task:
                del self._running[key]

    def _forget(self, key: bytes, below: int) -> tuple[bytes, bytes] | None:
        """Return the keys whose outcomes their sender has, now and then."""
        session = key[:SESSION]
        known = self._forgotten.get(session, 0)
        if below - known < FORGET_EVERY:
            return None
        self._forgotten[session] = below
        return key_of(session, known), key_of(session, below)
