"""Calls between processes of one daemon over Unix sockets.

A connection carries calls and tellings both ways: frames of a four-octet length and a
pickled list of messages, all that one turn of the loop has to say in one write.  Since
unpickling runs what the peer wants, the peer's user id must be this process's own, and
sockets are 0600 in a directory that is 0700.

A message is ``(number, method, arguments)``: number 0 expects no answer; an answer is
``(-number, success, value or MailError)``.
"""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import socket
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.pickles import dumps
from mailserverd.core.sockets import address, peer_uid

if TYPE_CHECKING:
    import pathlib

log = get_logger("ipc")
Handler = Callable[..., Any]
"""``handler(peer, *arguments)``: its result, or a coroutine that returns it."""
Service = Mapping[str, Handler]
Answered = Callable[[bool, Any], None]
"""Called with (True, value) or (False, MailError); once."""
Message = tuple[int, Any, Any]

HEAD = struct.Struct("<I")
MAX_FRAME = 64 << 20  # octets
PER_FRAME = 64  # messages
HIGH_WATER = 1 << 20  # octets that may wait for a slow peer before nothing is written
MAX_UNDER_WAY = 4096  # calls of one peer; with more of them nothing more is read
MAX_WAITING = 50_000  # messages for one peer
CANCEL = "!"
FIRST_PAUSE, LAST_PAUSE = 0.02, 0.25  # seconds between attempts to connect


class Peer(asyncio.Protocol):
    """One connection, the same on both sides.

    ``lost(peer)`` is called once, when the connection has ended; what waits for an
    answer has then failed with UNAVAILABLE, and what was being served for the peer is
    cancelled.
    """

    def __init__(
        self,
        service: Service | None = None,
        made: Callable[[Peer], None] | None = None,
        lost: Callable[[Peer], None] | None = None,
    ) -> None:
        self.closed = False
        self.resumed: Callable[[], None] | None = None  # called when writable again
        self._service = service or {}
        self._made, self._lost = made, lost
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._out: list[Message] = []
        self._flushing = False
        self._writable = True
        self._reading = True
        self._number = 0
        self._waiting: dict[int, Answered] = {}
        self._serving: dict[object, asyncio.Task[Any]] = {}
        self._chunks: list[bytes] = []
        self._have, self._need = 0, HEAD.size

    # --- what callers use -----------------------------------------------------

    async def call(self, method: str, *args: object) -> Any:
        """Return what the peer's handler returns; raises its MailError.

        UNAVAILABLE when the connection ends first: the call may have been served.  A
        caller that is cancelled cancels the handler, too.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()
        number = self.request(method, args, functools.partial(_settle, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            self.withdraw(number)
            raise

    def request(self, method: str, args: tuple[Any, ...], answered: Answered) -> int:
        """Call without waiting; returns the call's number for ``withdraw``.

        UNAVAILABLE when the connection has ended or the peer is too far behind.
        """
        if self.closed or len(self._out) >= MAX_WAITING:
            raise MailError(Kind.UNAVAILABLE, "another process does not answer")
        self._number += 1
        self._waiting[self._number] = answered
        self._say((self._number, method, args))
        return self._number

    def withdraw(self, number: int) -> None:
        """Forget a call; the peer stops serving it if it still does."""
        if self._waiting.pop(number, None) is not None:
            self.tell(CANCEL, number)

    def tell(self, method: str, *args: object) -> None:
        """Send something that is not answered; never raises."""
        if not self.closed and len(self._out) < MAX_WAITING:
            self._say((0, method, args))

    def close(self) -> None:
        """Send what waits, then end the connection; harmless when done twice."""
        if self._transport is not None and not self._transport.is_closing():
            self._flush(all_of_it=True)
            self._transport.close()

    def abort(self) -> None:
        """End the connection now, whatever waits."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def writable(self) -> bool:
        """False while the peer reads too slowly."""
        return self._writable

    @property
    def under_way(self) -> int:
        """The number of calls that are being served for the peer."""
        return len(self._serving)

    # --- the connection -------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless the peer is another user."""
        self._transport = cast("asyncio.Transport", transport)
        if (uid := peer_uid(self._transport)) != os.geteuid():
            log.warning("peer-refused", uid=uid)
            self._made = None
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(HIGH_WATER)
        if self._out:  # said while connecting
            self._flush()
        if self._made is not None:
            self._made(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what waits for answers, and stop serving."""
        self.closed = True
        self._out.clear()
        for task in tuple(self._serving.values()):
            task.cancel()
        waiting, self._waiting = self._waiting, {}
        for answered in waiting.values():
            answered(False, MailError(Kind.UNAVAILABLE, "another process has ended"))
        if self._lost is not None:
            self._lost(self)

    def pause_writing(self) -> None:
        """Keep what is said until the peer has read more."""
        self._writable = False

    def resume_writing(self) -> None:
        """Go on."""
        self._writable = True
        self._flush()
        if self.resumed is not None:
            self.resumed()

    # --- in -------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take apart what arrived."""
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need or self._transport is None:
            return
        if len(self._chunks) > 1:
            data = b"".join(self._chunks)
        try:
            rest = data[self._frames_in(data) :]
        except Exception:  # what cannot be unpickled raises anything
            log.exception("frame-refused")
            self._transport.abort()
            rest = b""
        self._chunks = [rest] if rest else []
        self._have = len(rest)

    def _frames_in(self, data: bytes) -> int:
        """Serve all whole frames; returns where the rest begins."""
        at, end, view = 0, len(data), memoryview(data)
        self._need = HEAD.size
        while end - at >= HEAD.size:
            start = at + HEAD.size
            (size,) = HEAD.unpack_from(data, at)
            if size > MAX_FRAME:
                raise ValueError(f"a frame of {size} octets")
            if end - start < size:
                self._need = HEAD.size + size
                break
            at = start + size
            for message in pickle.loads(view[start:at]):
                self._take(*message)
        return at

    def _take(self, number: int, what: Any, value: Any) -> None:
        if number < 0:
            answered = self._waiting.pop(-number, None)
            if answered is not None:  # else nobody wants it any more
                answered(what, value)
        elif what == CANCEL:
            task = self._serving.get(value[0])
            if task is not None:
                task.cancel()
        else:
            self._serve(number, what, value)

    def _serve(self, number: int, method: str, args: tuple[Any, ...]) -> None:
        try:
            result = self._service[method](self, *args)
        except Exception as error:
            self._answer(number, False, _public(error, method))
            return
        if not asyncio.iscoroutine(result):
            self._answer(number, True, result)
            return
        task = self._loop.create_task(result)
        key = number or task
        self._serving[key] = task
        task.add_done_callback(functools.partial(self._served, key, method))
        if self._reading and len(self._serving) > MAX_UNDER_WAY:
            self._read_on(False)

    def _served(self, key: object, method: str, task: asyncio.Task[Any]) -> None:
        del self._serving[key]
        if not self._reading and len(self._serving) < MAX_UNDER_WAY // 2:
            self._read_on(True)
        number = key if isinstance(key, int) else 0
        if task.cancelled():
            error: BaseException | None = MailError(Kind.UNAVAILABLE, "withdrawn")
        else:
            error = task.exception()
        if error is None:
            self._answer(number, True, task.result())
        else:
            self._answer(number, False, _public(error, method))

    def _read_on(self, on: bool) -> None:
        self._reading = on
        if self._transport is not None and not self._transport.is_closing():
            (self._transport.resume_reading if on else self._transport.pause_reading)()

    # --- out ------------------------------------------------------------------

    def _answer(self, number: int, success: bool, value: Any) -> None:
        if number and not self.closed:
            self._say((-number, success, value))

    def _say(self, message: Message) -> None:
        self._out.append(message)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self, *, all_of_it: bool = False) -> None:
        """Write what was said, several messages per frame."""
        self._flushing = False
        if self._transport is None or not self._out:
            return
        while self._out and (self._writable or all_of_it):
            batch = self._out[:PER_FRAME]
            del self._out[:PER_FRAME]
            for data in self._pickled(batch):
                self._transport.writelines((HEAD.pack(len(data)), data))

    def _pickled(self, batch: list[Message]) -> list[bytes]:
        """Return frames; a message that cannot be sent fails alone."""
        try:
            data = dumps(batch)
        except Exception as error:
            if len(batch) == 1:
                return self._unsent(batch[0], Kind.INTERNAL, error)
        else:
            if len(data) <= MAX_FRAME:
                return [data]
            if len(batch) == 1:
                return self._unsent(batch[0], Kind.TOO_LARGE, None)
        return [frame for one in batch for frame in self._pickled([one])]

    def _unsent(
        self, message: Message, kind: Kind, error: Exception | None
    ) -> list[bytes]:
        number, what, value = message
        problem = MailError(kind)
        log.error("message-not-sent", method=str(what), error=repr(error or kind))
        if number > 0 and (answered := self._waiting.pop(number, None)):
            answered(False, problem)
        if number >= 0:
            return []
        if isinstance(value, MailError):  # its details are what cannot be sent
            problem = MailError(value.kind, value.text)
        return [dumps([(number, False, problem)])]


def _settle(future: asyncio.Future[Any], success: bool, value: Any) -> None:
    if future.done():
        return
    if success:
        future.set_result(value)
    else:
        future.set_exception(value)


def _public(error: BaseException, method: str) -> MailError:
    """Return what the peer is told; a fault's cause stays in this process's log."""
    if isinstance(error, MailError):
        if error.kind is Kind.INTERNAL:
            log.error("call-failed", method=method, exc_info=error)
        return error
    log.error("call-failed", method=method, exc_info=error)
    return MailError(Kind.INTERNAL)


# --- ends ------------------------------------------------------------------------


class Server:
    """A socket that is listened on, and the peers that came."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.peers: set[Peer] = set()
        self.listening: asyncio.Server | None = None
        self.closed = False

    def close_door(self) -> None:
        """Accept nobody any more; those who came stay."""
        if self.listening is not None:
            self.listening.close()
            self.listening = None
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Accept nobody any more and end all connections."""
        self.closed = True
        self.close_door()
        for peer in tuple(self.peers):
            peer.close()


async def listen(
    path: pathlib.Path,
    service: Service,
    *,
    made: Callable[[Peer], None] | None = None,
    lost: Callable[[Peer], None] | None = None,
) -> Server:
    """Listen on ``path``; the socket that a dead process left is replaced.

    The caller sees to it that no living process listens there.
    """
    server = Server(path)

    def came(peer: Peer) -> None:
        server.peers.add(peer)
        if server.closed:  # it was at the door when that was closed
            peer.abort()
            return
        if made is not None:
            made(peer)

    def left(peer: Peer) -> None:
        server.peers.discard(peer)
        if lost is not None:
            lost(peer)

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - once, before serving
        with address(path) as where:
            sock.bind(where)
        os.chmod(path, 0o600)
        loop = asyncio.get_running_loop()
        server.listening = await loop.create_unix_server(
            lambda: Peer(service, came, left), sock=sock
        )
    except BaseException:
        sock.close()
        raise
    return server


async def connect(
    path: pathlib.Path,
    service: Service | None = None,
    *,
    lost: Callable[[Peer], None] | None = None,
) -> Peer:
    """Connect to who listens on ``path``; OSError when nobody does."""
    loop = asyncio.get_running_loop()
    with address(path) as where:
        _, peer = await loop.create_unix_connection(
            lambda: Peer(service, None, lost), where
        )
    return peer


class Link:
    """A connection that is made again whenever it is lost, until ``close``.

    ``up(peer)`` is called after it was made, ``down(peer)`` after it was lost.
    """

    def __init__(
        self,
        path: pathlib.Path,
        service: Service | None = None,
        *,
        up: Callable[[Peer], None] | None = None,
        down: Callable[[Peer], None] | None = None,
    ) -> None:
        self.path = path
        self.peer: Peer | None = None
        self._service, self._up, self._down = service, up, down
        self._lost = asyncio.Event()
        self._made = asyncio.Event()
        self._task = asyncio.create_task(self._keep(), name=f"link-{path.name}")

    async def call(self, method: str, *args: object, wait: float = 2.0) -> Any:
        """As ``Peer.call``; waits up to ``wait`` seconds for a connection."""
        if self.peer is None:
            try:
                async with asyncio.timeout(wait):  # wait_for may lose a cancellation
                    await self._made.wait()
            except TimeoutError:
                raise MailError(
                    Kind.UNAVAILABLE, "another process does not answer"
                ) from None
        peer = self.peer
        if peer is None:
            raise MailError(Kind.UNAVAILABLE, "another process does not answer")
        return await peer.call(method, *args)

    def tell(self, method: str, *args: object) -> None:
        """As ``Peer.tell``; nothing is said while there is no connection."""
        if self.peer is not None:
            self.peer.tell(method, *args)

    async def close(self) -> None:
        """End the connection and make it no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self.peer is not None:
            self.peer.close()

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                peer = await connect(self.path, self._service, lost=self._ended)
            except OSError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE)
                continue
            pause = FIRST_PAUSE
            if not peer.closed:
                self._lost.clear()
                self.peer = peer
                self._made.set()
                if self._up is not None:
                    self._up(peer)
                await self._lost.wait()
            await asyncio.sleep(FIRST_PAUSE)

    def _ended(self, peer: Peer) -> None:
        if peer is self.peer:
            self.peer = None
            self._made.clear()
            self._lost.set()
            if self._down is not None:
                self._down(peer)
