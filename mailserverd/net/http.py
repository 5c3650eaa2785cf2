"""HTTP/1.1 on twisted.web: the wire, its limits and back-pressure; no routes.

The lead's two lines::

    site = JmapSite(HttpServices(mailboxes=..., messages=..., search=...,
        identities=..., submissions=..., receive=..., submission=...,
        authenticator=..., directory=..., changes=..., offload=..., clock=...,
        settings=HttpSettings(public_url=..., plaintext_auth=..., allowed_origins=...)))
    factory = HttpFactory(site, FrontSettings(spool_dir=...))   # for listen_twisted

``HttpFactory(MetricsSite({"storage": check}))`` is the metrics listener: ``/healthz``,
``/readyz``, ``/metrics``.  ``await factory.shutdown(seconds)`` lets requests end.

What twisted.web does otherwise is replaced where it matters: a body is limited before
it is read and spooled to a file beyond 256 KiB, header block and body have deadlines
that trickling octets do not extend, an answer is one write (or a stream with
back-pressure), nothing is logged to standard output and no version is shown.
"""

# mypy: disallow-untyped-calls=False
# (twisted.web's request and channel are not annotated)

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from twisted.internet import protocol
from twisted.internet.interfaces import IPushProducer
from twisted.web import http
from zope.interface import implementer

from mailserverd.core import metrics
from mailserverd.core.log import get_logger
from mailserverd.net.bridge import spawn
from mailserverd.net.websocket import WebSocket, accept_key
from protocols.jmap.services import Services as HttpServices
from protocols.jmap.services import Settings as HttpSettings
from protocols.jmap.site import JmapSite
from protocols.web import IN_MEMORY, Application, Body, Head, Release, Response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["FrontSettings", "HttpFactory", "HttpServices", "HttpSettings", "JmapSite"]
log = get_logger("http")
ADMIT = 64 * 1024  # a body larger than this is read only after the login is known
SLOWEST = 8 * 1024  # octets per second that a body must come in at
LINGER = 5.0  # seconds to swallow what a refused client still sends
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


class Spool:
    """A request body as it comes in: in memory, then in an unnamed file."""

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._chunks: list[bytes] = []
        self.file: BinaryIO | None = None
        self.size = 0

    def write(self, data: bytes) -> None:
        """Take the next piece."""
        self.size += len(data)
        if self.file is not None:
            self.file.write(data)
            return
        self._chunks.append(data)
        if self.size > IN_MEMORY:
            # closed by ``close`` at the end of the request
            made = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115
            self.file = cast("BinaryIO", made)
            self.file.writelines(self._chunks)
            self._chunks.clear()

    def body(self) -> Body:
        """Return what was written."""
        return Body(b"".join(self._chunks), self.file, self.size)

    def close(self) -> None:
        """Forget everything."""
        self._chunks.clear()
        if self.file is not None:
            self.file.close()


@implementer(IPushProducer)
class Drain:
    """Tells a stream when the client can take more."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self._open.clear()

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        self._open.set()

    def stopProducing(self) -> None:
        """The connection is gone; the stream's task is cancelled by the request."""
        self._open.set()

    async def wait(self, seconds: float) -> None:
        """Wait until more may be written; TimeoutError when the client is stuck."""
        if not self._open.is_set():
            async with asyncio.timeout(seconds):
                await self._open.wait()


class WebRequest(http.Request):
    """One request: collects the body within limits, asks the application, answers."""

    channel: Any  # a Channel, None once the connection is gone
    head: Head = Head("", "")
    limit = 0

    def __init__(self, channel: Any, queued: object = False) -> None:
        del queued  # pipelined requests wait in the channel
        super().__init__(channel, False)
        self._spool: Spool | None = None
        self._release: Release | None = None
        self._admission: asyncio.Task[None] | None = None
        self._stream: asyncio.Task[None] | None = None
        self._started = 0.0

    def begin(self, command: bytes, target: bytes) -> None:
        """The header block is complete."""
        front: Channel = self.channel
        self.method, self.uri = command, target
        self._started = front.loop.time()
        self.head = _head(self, command, target, front)
        self.limit = front.factory.app.body_limit(self.head)

    def gotLength(self, length: int | None) -> None:
        """The header block said how long the body is (None: in chunks)."""
        if length == 0:
            return
        self._spool = Spool(self.channel.factory.settings.spool_dir)
        if length is not None and length > self.limit:
            self._too_large()
        elif length is None or length > ADMIT:
            self.channel.pause_reading()
            self._admission = spawn(self._admit(), name="http-admit")

    async def _admit(self) -> None:
        app: Application = self.channel.factory.app
        answer = await app.admit(self.head)
        front: Channel | None = self.channel
        if isinstance(answer, Response):
            if front is not None:
                front.refuse(answer)
        elif front is None:
            answer()
        else:
            self._release = answer
            front.resume_reading()

    def _too_large(self) -> None:
        text = b'{"type":"urn:ietf:params:jmap:error:limit","status":413,"limit":'
        name = b'"maxSizeUpload"' if b"upload" in self.uri else b'"maxSizeRequest"'
        detail = b',"detail":"the body is larger than this path takes"}'
        headers = (("Content-Type", "application/problem+json"),)
        self.channel.refuse(Response(413, headers, text + name + detail))

    def handleContentChunk(self, data: bytes) -> None:
        """Take a piece of the body."""
        front: Channel = self.channel
        if front is None or front.refused or self._spool is None:
            return
        if self._spool.size + len(data) > self.limit:
            self._too_large()
            return
        self._spool.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The whole request is here."""
        self.clientproto = version
        if not self.channel.refused:
            spawn(self._serve(), name="http-request")

    async def _serve(self) -> None:
        try:
            response = await self._answer()
            if response is not None and self.channel is not None:
                await self._respond(response)
        finally:
            self._cleanup_body()

    async def _answer(self) -> Response | None:
        if self._admission is not None:
            await self._admission
            if self.channel is None or self.channel.refused:
                return None
        body = self._spool.body() if self._spool is not None else Body()
        app: Application = self.channel.factory.app
        return await app.handle(self.head, body)

    def _cleanup_body(self) -> None:
        if self._spool is not None:
            self._spool.close()
        if self._release is not None:
            self._release()
            self._release = None

    async def _respond(self, response: Response) -> None:
        front: Channel = self.channel
        if response.upgrade is not None:
            front.upgrade(self.head, response)
            return
        self._log_line(response)
        if response.stream is None and len(response.body) <= IN_MEMORY:
            body = b"" if self.method == b"HEAD" else response.body
            front.transport.write(front.head(response, len(response.body)) + body)
            self._ended()
            return
        self._stream = asyncio.current_task()
        with contextlib.suppress(asyncio.CancelledError):
            await self._send_stream(response)
        self._stream = None

    async def _send_stream(self, response: Response) -> None:
        front: Channel = self.channel
        drain = Drain()
        length = response.length if response.stream else len(response.body)
        chunked = length is None and self.clientproto == b"HTTP/1.1"
        if length is None and not chunked:
            front.persistent = 0
        self.registerProducer(drain, True)
        front.transport.write(front.head(response, length))
        try:
            source = _pieces(response, head_only=self.method == b"HEAD")
            async with contextlib.aclosing(source) as pieces:
                async for piece in pieces:
                    data = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
                    front.transport.write(data)
                    await drain.wait(front.factory.settings.write)
        except Exception as error:
            # too late for another status: a cut connection is what the client sees
            log.warning("response-cut", path=self.head.path, error=repr(error))
            front.abort()
            return
        if chunked:
            front.transport.write(b"0\r\n\r\n")
        self.unregisterProducer()
        self._ended()

    def _ended(self) -> None:
        self.startedWriting = 1
        if self.channel is not None:
            self.finish()

    def _log_line(self, response: Response) -> None:
        seconds = self.channel.loop.time() - self._started
        metrics.REQUESTS.labels("http", str(response.status)).inc()
        metrics.DURATION.labels("http").observe(seconds)
        write = log.debug if response.status < HTTPStatus.BAD_REQUEST else log.info
        write(
            "http-request",
            method=self.head.method,
            path=self.head.path,
            status=response.status,
            peer=self.head.peer,
            ms=round(seconds * 1000, 2),
        )

    def connectionLost(self, reason: Any) -> None:
        """The client is gone: end a stream, let anything else run to its end."""
        super().connectionLost(reason)
        if self._stream is not None:
            self._stream.cancel()


def _head(request: WebRequest, command: bytes, target: bytes, front: Channel) -> Head:
    path, _, query = target.decode("latin-1").partition("?")
    headers = {
        name.decode("latin-1").lower(): ", ".join(v.decode("latin-1") for v in values)
        for name, values in request.requestHeaders.getAllRawHeaders()
    }
    return Head(
        command.decode("latin-1"),
        path,
        query,
        headers,
        peer=front.peer,
        local=front.local,
        secure=front.secure,
    )


async def _pieces(response: Response, *, head_only: bool) -> AsyncGenerator[bytes]:
    if head_only:
        return
    if response.stream is not None:
        async for piece in response.stream:
            if piece:
                yield piece
        return
    view = memoryview(response.body)
    for start in range(0, len(view), IN_MEMORY):
        yield bytes(view[start : start + IN_MEMORY])


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
        self.loop.call_later(ABORT, self.abort)

    # Reading.

    def dataReceived(self, data: bytes) -> None:
        """Feed the parser, the WebSocket, or nobody."""
        if self.socket is not None:
            self.socket.data_received(data)
        elif not self.refused:
            if self._body_due:
                self._body_arrives()
            elif not self.requests and not self._receivedHeaderSize:
                self.setTimeout(self.factory.settings.header)
            super().dataReceived(data)

    def _body_arrives(self) -> None:
        left = self._body_due - self.loop.time()
        self.setTimeout(max(0.01, min(self.factory.settings.body, left)))

    def allHeadersReceived(self) -> None:
        """Decide about the body before any of it is taken."""
        request: WebRequest = self.requests[-1]
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

    def head(self, response: Response, length: int | None) -> bytes:
        """Return the status line and header block of a response."""
        try:
            phrase = HTTPStatus(response.status).phrase
        except ValueError:
            phrase = "Status"
        lines = [f"HTTP/1.1 {response.status} {phrase}"]
        lines += [f"{name}: {value}" for name, value in response.headers]
        if response.status != HTTPStatus.NO_CONTENT:
            lines.append(
                "Transfer-Encoding: chunked"
                if length is None
                else f"Content-Length: {length}"
            )
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
        self.factory.closed(self)


class HttpFactory(protocol.ServerFactory):
    """Serves an application; bounds connections, in all and per client address."""

    noisy = False

    def __init__(self, app: Application, settings: FrontSettings | None = None) -> None:
        self.app = app
        self.settings = settings or FrontSettings()
        self.closing = False
        self.socket_limit = 10_000_000  # octets of one WebSocket message
        self._open: set[Channel] = set()
        self._peers: dict[str, int] = {}
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
        count = self._peers[channel.peer] = self._peers.get(channel.peer, 0) + 1
        metrics.CONNECTIONS.labels("http").set(len(self._open))
        each = self.settings.connections_per_address
        if len(self._open) > self.settings.connections or 0 < each < count:
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
        left = self._peers[channel.peer] - 1
        if left:
            self._peers[channel.peer] = left
        else:
            del self._peers[channel.peer]
        metrics.CONNECTIONS.labels("http").set(len(self._open))

    async def shutdown(self, seconds: float) -> None:
        """Let open requests end, close WebSockets (1001) and idle connections."""
        self.closing = True
        for channel in list(self._open):
            if channel.socket is not None:
                channel.socket.close(1001, "the server is shutting down")
            elif not channel.requests:
                channel.loseConnection()
        self._empty.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds if self._open else 0):
                await self._empty.wait()
        for channel in list(self._open):
            channel.abort()
