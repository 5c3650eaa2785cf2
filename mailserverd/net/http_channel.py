"""One HTTP connection: deadlines, refusals, the way to a WebSocket."""

# mypy: disallow-untyped-calls=False
# (twisted.web's request and channel are not annotated)

from __future__ import annotations

import asyncio
import dataclasses
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from twisted.web import http

from mailserverd.net.http_request import WebRequest
from mailserverd.net.websocket import WebSocket, accept_key

if TYPE_CHECKING:
    from mailserverd.net.http import HttpFactory
    from protocols.web import Head, Response

SLOWEST = 8 * 1024  # octets per second that a body must come in at
LINGER = 5.0  # seconds to swallow what a refused client still sends
BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
ABORT = 15.0  # seconds that a closed connection may take to flush


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrontSettings:
    """Bounds of the HTTP front end; times in seconds."""

    connections: int = 10_000
    connections_per_address: int = 0  # 0 is no limit
    spool_dir: str | None = None
    idle: float = 75.0  # keep-alive
    header: float = 20.0  # for a whole header block
    body: float = 30.0  # between two pieces of a body
    write: float = 60.0  # for a client to take the next piece of an answer


class Channel(http.HTTPChannel):
    """One connection: deadlines, refusals, the way to a WebSocket."""

    factory: HttpFactory
    transport: Any
    refused = False
    peer = ""
    local = ""
    secure = False

    def __init__(self) -> None:
        super().__init__()
        self.requestFactory: Any = WebRequest
        self.loop = asyncio.get_running_loop()
        self.socket: WebSocket | None = None
        self._due = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._last: asyncio.TimerHandle | None = None  # when closing took too long
        self._body_due = 0.0

    def connectionMade(self) -> None:
        """Take a connection, unless there are too many."""
        self.peer = str(getattr(self.transport.getPeer(), "host", ""))
        here = self.transport.getHost()
        self.local = f"{getattr(here, 'host', '')}:{getattr(here, 'port', 0)}"
        self.secure = bool(self.isSecure())
        self.timeOut = cast("Any", self.factory.settings.idle)
        super().connectionMade()
        if not self.factory.opened(self):
            self.abort()

    # Deadlines: one timer that is looked at when it rings, not moved per request.

    def setTimeout(self, period: float | None) -> float | None:
        """Close the connection after ``period`` seconds unless called again."""
        before = cast("float | None", self.timeOut)
        self.timeOut = cast("Any", period)
        self._due = self.loop.time() + period if period is not None else 0.0
        if period is not None and (
            self._alarm is None or self._alarm.when() > self._due
        ):
            self._cancel_alarm()
            self._alarm = self.loop.call_at(self._due, self._ring)
        return before

    def resetTimeout(self) -> None:
        """Deadlines are set by what was reached, not by any octet that arrives."""

    def _cancel_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self) -> None:
        self._alarm = None
        if not self._due:
            return
        if self.loop.time() < self._due:
            self._alarm = self.loop.call_at(self._due, self._ring)
        else:
            self.timeoutConnection()

    def timeoutConnection(self) -> None:
        """The client was too slow, or idle for too long."""
        self.loseConnection()
        self._last = self._last or self.loop.call_later(ABORT, self.abort)

    # Reading.

    def dataReceived(self, data: bytes) -> None:
        """Feed the parser, the WebSocket, or nobody."""
        if self.socket is not None:
            self.socket.data_received(data)
        elif not self.refused:
            if self._body_due:
                self._body_arrives()
            elif not (self.requests or self._receivedHeaderSize or self._buffer):
                self.setTimeout(self.factory.settings.header)
            super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        """Take a line of a header block, unless one before it was faulty."""
        if not self.refused:
            super().lineReceived(line)

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refused = True  # octets that are here already are not looked at
        super()._respondToBadRequestAndDisconnect()

    def _body_arrives(self) -> None:
        left = self._body_due - self.loop.time()
        self.setTimeout(max(0.01, min(self.factory.settings.body, left)))

    def allHeadersReceived(self) -> None:
        """Decide about the body before any of it is taken."""
        request: WebRequest = self.requests[-1]
        if self._ambiguous(request):
            self._respondToBadRequestAndDisconnect()
            return
        request.begin(self._command, self._path)
        if self.length != 0:
            octets = request.limit if self.length is None else self.length
            settings = self.factory.settings
            self._body_due = self.loop.time() + settings.body + octets / SLOWEST
            self.setTimeout(settings.body)
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        """The request is complete; the keep-alive deadline holds after it."""
        self._body_due = 0.0
        self.timeOut = cast("Any", self.factory.settings.idle)
        super().allContentReceived()

    def _ambiguous(self, request: WebRequest) -> bool:
        """Say whether two programs may read the header block differently.

        One Host (RFC 9112 section 3.2); transfer codings on one line.
        """
        hosts = request.requestHeaders.getRawHeaders(b"host", [])
        codings = request.requestHeaders.getRawHeaders(b"transfer-encoding", [])
        missing = not hosts and self._version == b"HTTP/1.1"
        return missing or len(hosts) > 1 or len(codings) > 1

    def _send100Continue(self) -> None:
        if not self.refused:
            super()._send100Continue()

    def pause_reading(self) -> None:
        """Read no more from the client for now."""
        self._networkProducer.pauseProducing()

    def resume_reading(self) -> None:
        """Read on."""
        self._networkProducer.resumeProducing()

    # Writing.

    def head(
        self, response: Response, length: int | None, *, chunked: bool = False
    ) -> bytes:
        """Return the status line and header block of a response.

        Without length and chunks the end of the connection ends the body.
        """
        try:
            phrase = HTTPStatus(response.status).phrase
        except ValueError:
            phrase = "Status"
        lines = [f"HTTP/1.1 {response.status} {phrase}"]
        lines += [f"{name}: {value}" for name, value in response.headers]
        if chunked:
            lines.append("Transfer-Encoding: chunked")
        elif length is not None and response.status not in BODILESS:
            lines.append(f"Content-Length: {length}")
        if not self.persistent or self.factory.closing:
            self.persistent = 0
            lines.append("Connection: close")
        lines.append("\r\n")
        return "\r\n".join(lines).encode("latin-1")

    def refuse(self, response: Response) -> None:
        """Answer before the body was read, then swallow a little of it and close.

        Closing at once would reset the connection, and the answer with it.
        """
        if self.refused:
            return
        self.refused, self.persistent = True, 0
        self.transport.write(self.head(response, len(response.body)) + response.body)
        self.resume_reading()
        self.setTimeout(LINGER)

    def close(self) -> None:
        """Close after what was written."""
        self.loseConnection()

    def abort(self) -> None:
        """Close without flushing."""
        if self.transport is not None:
            self.transport.abortConnection()

    def upgrade(self, head: Head, response: Response) -> None:
        """Turn the connection into a WebSocket (RFC 6455 section 4.2)."""
        assert response.upgrade is not None
        self.setTimeout(None)
        early = b"".join(self._dataBuffer)
        self._dataBuffer = []
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept_key(head.header('sec-websocket-key'))}",
        ]
        if response.subprotocol:
            lines.append(f"Sec-WebSocket-Protocol: {response.subprotocol}")
        self.transport.write("\r\n".join([*lines, "\r\n"]).encode("latin-1"))
        self.transport.unregisterProducer()
        self.requests.clear()
        self.socket = WebSocket(self.transport, self.loop, self.factory.socket_limit)
        self.socket.start(response.upgrade)
        self.resume_reading()
        if early:
            self.socket.data_received(early)

    def connectionLost(self, reason: Any = None) -> None:
        """Clean up."""
        self._cancel_alarm()
        self._due = 0.0
        if self.socket is not None:
            self.socket.connection_lost()
        super().connectionLost(reason)
        self._cancel_alarm()
        if self._last is not None:
            self._last.cancel()
        self.factory.closed(self)
