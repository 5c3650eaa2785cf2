"""A connection's bytes, both ways, with back-pressure; no sockets here.

``net`` (or a test) calls ``received``, ``lost``, ``paused`` and ``resumed``; the
session's task awaits ``event`` and ``drain``.  Responses are gathered and written when
the session waits for the next command, so one batch of commands is one write.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from protocols.imap.wire.errors import WireError
from protocols.imap.wire.reader import (
    PRE_AUTH,
    Append,
    Chunk,
    Continue,
    Malformed,
    RawLine,
    Reader,
    Tail,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from protocols.imap.wire.cursor import Cursor
    from protocols.imap.wire.reader import Event

_GATHER = 32 * 1024  # responses are written once this much has come together
_READ_AHEAD = 128 * 1024  # octets held of commands that wait for their turn
_FAIR = 50  # commands in a row before others get the loop
_CONTINUE = b"+ OK\r\n"


class ConnectionLostError(Exception):
    """The peer is gone (or was told BYE): the session ends silently."""


class BrokenStreamError(Exception):
    """What the peer sends can no longer be followed: BYE with this text."""


class Transport(Protocol):
    """What ``net`` gives a session; every method returns at once."""

    peer: str  # IP address
    tls: bool
    can_start_tls: bool  # there is a certificate, and STARTTLS is offered

    def write(self, data: bytes) -> None:
        """Send octets; more than fits is held, and ``paused`` is called."""

    def pause_reading(self) -> None:
        """Deliver nothing until ``resume_reading``."""

    def resume_reading(self) -> None:
        """Deliver again."""

    def start_tls(self) -> None:
        """Send what was written, then shake hands."""

    def close(self) -> None:
        """Send what was written, then close."""

    def abort(self) -> None:
        """Close now."""


class Channel:
    """Events in, bytes out."""

    __slots__ = (
        "_held",
        "_out",
        "_paused",
        "_served",
        "_size",
        "_stopped",
        "_waiter",
        "_writable",
        "active",
        "lost",
        "reader",
        "transport",
    )

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.reader = Reader(PRE_AUTH)
        self.lost = False
        self._out: list[bytes] = []
        self._size = 0
        self._paused = False  # the transport holds enough
        self._held = False  # we told the transport not to deliver
        self._served = 0
        self._stopped: Exception | None = None  # no command is taken any more
        self.active = False  # octets moved since this was last set False
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None

    # --- called by net --------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Take what arrived."""
        self.active = True
        self.reader.feed(data)
        if self._waiter is not None:
            _wake(self._waiter)
        elif self.reader.buffered > _READ_AHEAD and not self._held:
            self._held = True
            self.transport.pause_reading()

    def connection_lost(self) -> None:
        """The peer is gone."""
        self.lost = True
        self._out.clear()
        self._size = 0
        for future in (self._waiter, self._writable):
            if future is not None:
                _wake(future)

    def paused(self) -> None:
        """The transport's buffer is full."""
        self._paused = True

    def resumed(self) -> None:
        """The transport's buffer is empty again."""
        self._paused = False
        self.active = True
        if self._writable is not None:
            _wake(self._writable)

    # --- output ---------------------------------------------------------------

    @property
    def congested(self) -> bool:
        """True while the peer does not read what it was sent."""
        return self._paused

    def send(self, data: bytes) -> None:
        """Add to the responses; written at the next ``event`` or ``drain``."""
        self._out.append(data)
        self._size += len(data)

    def flush(self) -> None:
        """Write what was gathered."""
        if not self._out:
            return
        data = b"".join(self._out) if len(self._out) > 1 else self._out[0]
        self._out.clear()
        self._size = 0
        if not self.lost:
            self.transport.write(data)

    async def drain(self) -> None:
        """Write once enough came together, and wait while the peer is slow."""
        if self._size < _GATHER and not self._paused:
            return
        self.flush()
        while self._paused and not self.lost:
            self._writable = asyncio.get_running_loop().create_future()
            try:
                await self._writable
            finally:
                self._writable = None
        if self.lost:
            raise ConnectionLostError

    def stop(self, error: Exception | None = None) -> None:
        """Take no further command; who waits for one gets ``error``."""
        self._stopped = error or ConnectionLostError()
        if self._waiter is not None:
            _wake(self._waiter)

    # --- input ----------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """True while the session waits for its peer."""
        return self._waiter is not None and not self._waiter.done()

    async def event(self) -> Event:
        """Return the next event; synchronising literals are asked for here.

        ConnectionLostError when the peer is gone, the error given to ``stop``, and
        BrokenStreamError when what the peer sends can no longer be followed.
        """
        while self._stopped is None and not self.lost:
            event = self.reader.next()
            if event is None:
                await self._more()
            elif isinstance(event, Continue):
                self.send(_CONTINUE)
            else:
                await self._keep_pace()
                if isinstance(event, Malformed) and event.fatal:
                    raise BrokenStreamError(event.text)
                return event
        raise self._stopped or ConnectionLostError()

    async def _keep_pace(self) -> None:
        """A peer that sends many commands at once must read the answers, too."""
        self._served += 1
        if self._size >= _GATHER or self._paused:
            await self.drain()
        if self._served % _FAIR == 0:
            await asyncio.sleep(0)

    async def _more(self) -> None:
        self.flush()
        if self._held:
            self._held = False
            self.transport.resume_reading()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        self._served = 0

    async def line(self, limit: int) -> bytes:
        """Return one line as it is (AUTHENTICATE, IDLE)."""
        self.reader.expect_line(limit)
        event = await self.event()
        if isinstance(event, RawLine):
            return event.data
        raise WireError(event.text if isinstance(event, Malformed) else "not a line")


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Literal:
    """The message of an APPEND: streamed, refused, or skipped."""

    __slots__ = ("_channel", "_open", "binary", "size", "sync", "tail")

    def __init__(self, channel: Channel, event: Append) -> None:
        self._channel = channel
        self._open: bool | None = None  # None: undecided
        self.size = event.size
        self.sync = event.sync
        self.binary = event.binary
        self.tail: Cursor | None = None  # what followed on the line

    async def chunks(self) -> AsyncIterator[bytes]:
        """Ask for the octets and yield them as they come."""
        self._open = True
        self._channel.reader.accept()
        if self.sync:
            self._channel.send(_CONTINUE)
        while (event := await self._next()) is not None:
            yield event

    async def _next(self) -> bytes | None:
        event = await self._channel.event()
        if isinstance(event, Chunk):
            return event.data
        self._open = False
        if isinstance(event, Tail):
            self.tail = event.args
            return None
        raise WireError(event.text if isinstance(event, Malformed) else "not a literal")

    async def finish(self) -> None:
        """Refuse what was not asked for, or drop what is still to come."""
        if self._open is None:
            self._open = False
            self._channel.reader.refuse(sync=self.sync)
        while self._open:
            await self._next()
