"""IMAP on Twisted: bytes, back-pressure, TLS, limits and shutdown; no grammar.

TLS from the first octet is noticed on the transport itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from twisted.internet import protocol
from twisted.internet.interfaces import IPushProducer, ISSLTransport
from zope.interface import implementer

from mailserverd.core import metrics
from mailserverd.core.log import get_logger
from mailserverd.core.tally import LocalTally
from mailserverd.net.bridge import spawn
from protocols.imap.server import Server

if TYPE_CHECKING:
    from collections.abc import Hashable

    from mailserverd.core.tally import Tally
    from mailserverd.net.tls import Certificates
    from protocols.imap.services import ImapServices, ImapSettings
    from protocols.imap.session import Session

log = get_logger("imap")
CONNECTIONS = metrics.CONNECTIONS.labels("imap")
ABORT = 15.0  # seconds that a closed connection may take to flush
SWEEP = 5.0  # seconds between two looks at time limits
FULL = b"* BYE [UNAVAILABLE] Too many connections\r\n"


class ImapServer:
    """All IMAP connections of this process, whatever their listener."""

    def __init__(self, services: ImapServices, tally: Tally | None = None) -> None:
        self.core = Server(services)
        self.connections: set[ImapProtocol] = set()
        self._tally = tally or LocalTally()
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def settings(self) -> ImapSettings:
        """The limits; new ones hold for new connections."""
        return self.core.services.settings

    @settings.setter
    def settings(self, settings: ImapSettings) -> None:
        self.core.services = dataclasses.replace(self.core.services, settings=settings)

    def factory(self, certificates: Certificates | None = None) -> ImapFactory:
        """Return a factory for one listener; with certificates it has STARTTLS."""
        return ImapFactory(self, certificates)

    def admit(self, connection: ImapProtocol) -> bool:
        """Count a new connection; False when there are too many."""
        self._sweeper = self._sweeper or spawn(self._sweep(), name="imap-sweep")
        settings, keys = self.settings, _counted(connection)
        every, each = map(self._tally.add, keys)
        limit = settings.connections_per_address
        if every > settings.connections or 0 < limit < each:
            for key in keys:
                self._tally.drop(key)
            return False
        self.connections.add(connection)
        CONNECTIONS.inc()
        return True

    def forget(self, connection: ImapProtocol) -> None:
        """A connection is gone; harmless for one that was not admitted."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        for key in _counted(connection):
            self._tally.drop(key)
        CONNECTIONS.dec()

    async def _sweep(self) -> None:
        """End what is over time."""
        while True:
            await asyncio.sleep(SWEEP)
            try:
                await self.core.sweep()
            except Exception:
                log.exception("sweep-failed")

    async def shutdown(self, seconds: float) -> None:
        """Say BYE to all; what has not ended after ``seconds`` is cut off."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self.connections):
            connection.session.end("server is shutting down", "UNAVAILABLE")
        tasks = [connection.task for connection in self.connections if connection.task]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for connection in tuple(self.connections):
            connection.abort()


def _counted(connection: ImapProtocol) -> tuple[Hashable, Hashable]:
    """Return what a connection counts as: one of all, one of its address."""
    return "imap", ("imap", connection.peer)


class ImapFactory(protocol.Factory):
    """Makes the protocol of each connection of one listener."""

    noisy = False

    def __init__(self, server: ImapServer, certificates: Certificates | None) -> None:
        self.server = server
        self.certificates = certificates

    def buildProtocol(self, addr: Any) -> ImapProtocol:
        """Return a new connection's protocol."""
        return ImapProtocol(self.server, self.certificates)


@implementer(IPushProducer)
class ImapProtocol(protocol.Protocol):
    """One connection: ``protocols.imap.channel.Transport`` on a Twisted transport."""

    transport: Any
    session: Session

    def __init__(self, server: ImapServer, certificates: Certificates | None) -> None:
        self._server = server
        self._certificates = certificates
        self._closing: asyncio.TimerHandle | None = None
        self._lost = False
        self.peer = ""
        self.tls = False
        self.can_start_tls = certificates is not None
        self.task: asyncio.Task[None] | None = None

    # --- from Twisted -----------------------------------------------------------

    def connectionMade(self) -> None:
        """Begin the session."""
        transport = self.transport
        self.peer = transport.getPeer().host
        self.tls = ISSLTransport.providedBy(transport)
        if not self._server.admit(self):
            transport.write(FULL)
            transport.loseConnection()
            return
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
        transport.registerProducer(self, True)
        self.session = self._server.core.connect(self)
        self.task = spawn(self.session.run(), name="imap")

    def dataReceived(self, data: bytes) -> None:
        """Hand over what arrived; after the farewell nobody listens."""
        if self.task is not None and self._closing is None:
            self.session.channel.received(data)

    def connectionLost(self, reason: Any = None) -> None:
        """The session ends when its command does."""
        self._lost = True
        self._server.forget(self)
        if self._closing is not None:
            self._closing.cancel()
        if self.task is not None:
            self.session.channel.connection_lost()

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self.session.channel.paused()

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        self.session.channel.resumed()

    def stopProducing(self) -> None:
        """The connection is gone; ``connectionLost`` follows."""

    # --- for the session ----------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send octets."""
        self.transport.write(data)

    def pause_reading(self) -> None:
        """Deliver nothing until ``resume_reading``."""
        self.transport.pauseProducing()

    def resume_reading(self) -> None:
        """Deliver again."""
        self.transport.resumeProducing()

    def start_tls(self) -> None:
        """Shake hands; what was written before goes first, in clear text."""
        self.tls = True
        self.transport.startTLS(self._certificates)

    def close(self) -> None:
        """Send what was written, then close; a peer that takes nothing is cut off."""
        if self._closing is not None or self._lost:
            return
        self.transport.unregisterProducer()
        # TLS ends with the peer's alert, which stands behind what it still sends.
        self.transport.resumeProducing()
        self.transport.loseConnection()
        loop = asyncio.get_running_loop()
        self._closing = loop.call_later(ABORT, self.abort)

    def abort(self) -> None:
        """Close now."""
        self.transport.abortConnection()
