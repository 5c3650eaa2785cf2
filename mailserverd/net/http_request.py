"""One HTTP request: its body within limits, its answer with back-pressure."""

# mypy: disallow-untyped-calls=False
# (twisted.web's request and channel are not annotated)

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from twisted.internet.interfaces import IPushProducer
from twisted.web import http
from zope.interface import implementer

from mailserverd.core import metrics
from mailserverd.core.log import get_logger
from mailserverd.net.bridge import spawn
from mailserverd.net.websocket import handshake_fault
from protocols.web import IN_MEMORY, Body, Head, Response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mailserverd.net.http_channel import Channel
    from protocols.web import Application, Release

log = get_logger("http")
PROBLEM = (("Content-Type", "application/problem+json"),)
ADMIT = 64 * 1024  # a body larger than this is read only after the login is known


class Spool:
    """A request body as it comes in: in memory, then in an unnamed file."""

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._chunks: list[bytes] = []
        self.file: BinaryIO | None = None
        self.size = 0

    def write(self, data: bytes) -> None:
        """Take the next piece; OSError when there is no room for it."""
        self.size += len(data)
        if self.file is not None:
            self.file.write(data)
            self.file.flush()
            return
        self._chunks.append(data)
        if self.size > IN_MEMORY:
            # closed by ``close`` at the end of the request
            made = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115
            self.file = cast("BinaryIO", made)
            self.file.writelines(self._chunks)
            self.file.flush()
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
        self._serving = False

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
        front: Channel = self.channel
        front.refuse(front.factory.app.too_large(self.head))

    def _no_room(self, error: OSError) -> None:
        log.error("spool-failed", path=self.head.path, error=str(error))
        text = b'{"type":"about:blank","status":507,"detail":"no room for the body"}'
        self.channel.refuse(Response(507, PROBLEM, text))

    def handleContentChunk(self, data: bytes) -> None:
        """Take a piece of the body."""
        front: Channel | None = self.channel
        if front is None or front.refused or self._spool is None:
            return
        if self._spool.size + len(data) > self.limit:
            self._too_large()
            return
        try:
            self._spool.write(data)
        except OSError as error:
            self._no_room(error)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The whole request is here."""
        self.clientproto = version
        if not self.channel.refused:
            self._serving = True
            spawn(self._serve(), name="http-request")

    async def _serve(self) -> None:
        response: Response | None = None
        try:
            response = await self._answer()
            if response is not None and self.channel is not None:
                await self._respond(response)
        finally:
            if response is not None and response.done is not None:
                response.done()
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
            refusal = handshake_fault(self.head)
            if refusal is None:
                front.upgrade(self.head, response)
                return
            response = refusal
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
        front.transport.write(front.head(response, length, chunked=chunked))
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
        if not self._serving:
            self._cleanup_body()


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
