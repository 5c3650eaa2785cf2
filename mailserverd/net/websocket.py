"""WebSocket connections (RFC 6455): wsproto's frames over a Twisted transport.

No extension is offered: permessage-deflate would cost each idle connection more
memory than the connection itself.  A message may come in any number of frames; its
size is bounded while it comes in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Any

import orjson
from twisted.internet.interfaces import IPushProducer
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    TextMessage,
)
from zope.interface import implementer

from mailserverd.core import metrics
from mailserverd.core.log import get_logger
from mailserverd.net.bridge import spawn
from protocols.web import Response

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from protocols.web import Head, Socket, SocketSession

log = get_logger("websocket")
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PING_EVERY = 45.0  # seconds; a peer silent for two pings is gone
STUCK = 60.0  # seconds that a client may leave its data unread
KEY_LENGTH = 16
VERSION = "13"
TOO_BIG, UNSUPPORTED, POLICY = 1009, 1003, 1008


def accept_key(key: str) -> str:
    """Return Sec-WebSocket-Accept for a key (RFC 6455 section 4.2.2)."""
    digest = hashlib.sha1(key.encode("latin-1") + GUID, usedforsecurity=False)
    return base64.b64encode(digest.digest()).decode()


def handshake_fault(head: Head) -> Response | None:
    """Return the refusal of a faulty opening handshake (RFC 6455 section 4.2.1).

    That it asks for a WebSocket at all is known already.
    """
    if head.header("sec-websocket-version") != VERSION:
        offer = (
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Version", VERSION),
        )
        return _refusal(426, "the WebSocket version must be 13", *offer)
    connection = head.header("connection").lower().replace(" ", "").split(",")
    if "upgrade" not in connection:
        return _refusal(400, "the Connection header must say upgrade")
    if not _valid_key(head.header("sec-websocket-key")):
        return _refusal(400, "Sec-WebSocket-Key must be 16 octets in base64")
    return None


def _refusal(status: int, detail: str, *headers: tuple[str, str]) -> Response:
    body = {"type": "about:blank", "status": status, "detail": detail}
    kind = ("Content-Type", "application/problem+json")
    return Response(status, (kind, *headers), orjson.dumps(body))


def _valid_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == KEY_LENGTH
    except (binascii.Error, ValueError):
        return False


@implementer(IPushProducer)
class WebSocket:
    """One connection: frames in, whole messages to the session, and back."""

    def __init__(
        self, transport: Any, loop: asyncio.AbstractEventLoop, limit: int
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._limit = limit
        self._connection = Connection(ConnectionType.SERVER)
        self._session: SocketSession | None = None
        self._text = bytearray()  # of a message whose end has not come
        self._busy = False
        self._heard = loop.time()
        self._stuck_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, session: Callable[[Socket], SocketSession]) -> None:
        """The handshake is done: talk to a session."""
        self._transport.registerProducer(self, True)
        self._session = session(self)
        self._timer = self._loop.call_later(PING_EVERY, self._tick)
        metrics.CONNECTIONS.labels("websocket").inc()

    def _tick(self) -> None:
        now = self._loop.time()
        silent = now - self._heard > 2 * PING_EVERY
        stuck = self._stuck_since is not None and now - self._stuck_since > STUCK
        if silent or stuck:
            self._transport.abortConnection()
            return
        if self._session is not None and not self._session.valid():
            self.close(POLICY, "the login no longer holds")
        self._send(Ping())
        self._timer = self._loop.call_later(PING_EVERY, self._tick)

    # From the client.

    def data_received(self, data: bytes) -> None:
        """Take octets from the network."""
        self._heard = self._loop.time()
        if self._connection.state is ConnectionState.CLOSED:
            return
        self._connection.receive_data(data)
        self._pump()

    @property
    def _held(self) -> bool:
        """True while nothing more is to be read."""
        return self._busy or self._stuck_since is not None

    def _pump(self) -> None:
        while not self._held:
            event = next(self._connection.events(), None)
            if event is None:
                return
            self._event(event)

    def _event(self, event: Event) -> None:
        match event:
            case TextMessage():
                self._take(event)
            case Ping():
                self._send(event.response())
            case CloseConnection():
                if self._connection.state is not ConnectionState.CLOSED:
                    self._send(event.response())
                self._transport.loseConnection()
            case BytesMessage():
                self.close(UNSUPPORTED, "messages are text")
            case _:
                pass

    def _take(self, event: TextMessage) -> None:
        if self._connection.state is not ConnectionState.OPEN:
            return
        self._text += event.data.encode()
        if len(self._text) > self._limit:
            self._text.clear()
            self.close(TOO_BIG, "the message is too large")
            return
        if not event.message_finished or self._session is None:
            return
        text = bytes(self._text)
        self._text.clear()
        busy = self._session.received(text)
        if busy is not None:
            self._busy = True
            self._transport.pauseProducing()
            spawn(self._wait(busy), name="websocket-wait")

    async def _wait(self, busy: Awaitable[None]) -> None:
        await busy
        self._busy = False
        self._go_on()

    def _go_on(self) -> None:
        if self._session is not None and not self._held:
            self._transport.resumeProducing()
            self._pump()

    # To the client.

    def send(self, text: bytes) -> None:
        """Queue one text message."""
        self._send(TextMessage(text.decode()))

    def _send(self, event: Event) -> None:
        state = self._connection.state
        closing = isinstance(event, CloseConnection)
        if self._session is None or (
            state is not ConnectionState.OPEN
            and not (closing and state is ConnectionState.REMOTE_CLOSING)
        ):
            return
        self._transport.write(self._connection.send(event))

    def close(self, code: int, reason: str = "") -> None:
        """Close: the code is said, then the connection ended."""
        self._send(CloseConnection(code, reason))
        self._transport.loseConnection()

    @property
    def writable(self) -> bool:
        """False while the client leaves its data unread."""
        return self._stuck_since is None

    def pauseProducing(self) -> None:
        """The transport's buffer is full: who does not read is not heard."""
        self._stuck_since = self._loop.time()
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        self._stuck_since = None
        if self._session is not None:
            self._session.writable()
        self._go_on()

    def stopProducing(self) -> None:
        """The transport is closing."""

    def connection_lost(self) -> None:
        """The connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._session is not None:
            session, self._session = self._session, None
            session.closed()
            metrics.CONNECTIONS.labels("websocket").dec()
