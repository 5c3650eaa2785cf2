"""HTTP/1.1 on twisted.web: the wire, its limits and back-pressure; no routes.

What twisted.web does otherwise is replaced where it matters: a body is limited before
it is read and spooled to a file beyond 256 KiB, header block and body have deadlines
that trickling octets do not extend, an answer is one write (or a stream with
back-pressure), nothing is logged to standard output and no version is shown.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from twisted.internet import protocol

from mailserverd.core import metrics
from mailserverd.core.log import get_logger
from mailserverd.core.tally import LocalTally
from mailserverd.net.http_channel import Channel, FrontSettings

if TYPE_CHECKING:
    from collections.abc import Hashable

    from mailserverd.core.tally import Tally
    from protocols.web import Application

log = get_logger("http")
CONNECTIONS = metrics.CONNECTIONS.labels("http")


class HttpFactory(protocol.ServerFactory):
    """Serves an application; bounds connections, in all and per client address."""

    noisy = False

    def __init__(
        self,
        app: Application,
        settings: FrontSettings | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.app = app
        self.settings = settings or FrontSettings()
        self.closing = False
        self.socket_limit = 10_000_000  # octets of one WebSocket message
        self._open: set[Channel] = set()
        self._tally = tally or LocalTally()
        self._empty = asyncio.Event()

    def buildProtocol(self, addr: Any) -> Any:
        """Make the protocol of a new connection."""
        channel = Channel()
        channel.factory = self
        return channel

    def log(self, request: Any) -> None:
        """Nothing: ``WebRequest`` writes its own line."""

    def opened(self, channel: Channel) -> bool:
        """Count a connection; False when it is one too many."""
        self._open.add(channel)
        every, each = map(self._tally.add, _counted(channel))
        CONNECTIONS.inc()
        limit = self.settings.connections_per_address
        if every > self.settings.connections or 0 < limit < each:
            log.warning("too-many-connections", peer=channel.peer)
            return False
        return not self.closing

    def closed(self, channel: Channel) -> None:
        """Forget a connection."""
        if channel not in self._open:
            return
        self._open.discard(channel)
        if not self._open:
            self._empty.set()
        for key in _counted(channel):
            self._tally.drop(key)
        CONNECTIONS.dec()

    async def shutdown(self, seconds: float) -> None:
        """Let open requests end, close WebSockets (1001) and idle connections."""
        self.closing = True
        for channel in list(self._open):
            if channel.socket is not None:
                channel.socket.close(1001, "the server is shutting down")
            elif not channel.requests:
                channel.close()
        self._empty.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds if self._open else 0):
                await self._empty.wait()
        for channel in list(self._open):
            channel.abort()


def _counted(channel: Channel) -> tuple[Hashable, Hashable]:
    """Return what a connection counts as: one of all, one of its address."""
    return "http", ("http", channel.peer)
