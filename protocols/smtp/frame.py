"""The transport side of a session: aiosmtpd's protocol class with our own reading.

aiosmtpd gives the frame (protocol, streams, session objects, dispatch to ``smtp_*``
methods).  Its reading (a coroutine per line), its replies (a write per line) and its
time limits (a timer per command) are replaced: octets go to the sans-IO
``ServerConnection``, replies of a pipelined group leave in one write, and one lazy
timer per connection serves every limit.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

from aiosmtpd import smtp

from mailserverd.core.log import get_logger
from protocols.smtp import replies
from protocols.smtp.conn import ServerConnection

if TYPE_CHECKING:
    import ssl

    from protocols.smtp.conn import Event
    from protocols.smtp.wire.reply import Reply

HIGH_WATER = 256 * 1024  # octets waiting to be read as events: stop reading
MAX_SKIPPED = 1024 * 1024  # octets of one line that are read over
GROUP = 16 * 1024  # octets of replies that are written without waiting for more
LINGER = 2.0  # seconds to wait for the peer's close after a farewell
HANDSHAKE = 30.0  # seconds for STARTTLS, and for a full buffer to be read
log = get_logger("smtp")


class Disconnected(Exception):
    """The peer closed the connection."""


class Silence(Exception):
    """The peer neither sent nor read anything for too long."""


class Goodbye(Exception):
    """End the session with this reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)
        self.reply = reply


class Frame(smtp.SMTP):
    """One connection: events in, replies out, time limits, TLS."""

    def __init__(self, hostname: str) -> None:
        super().__init__(None, hostname=hostname, loop=asyncio.get_running_loop())
        self.conn = ServerConnection()
        self.tls = ""  # "TLSv1.3 TLS_AES_256_GCM_SHA384" when active
        self.utf8_replies = False
        self.peer: tuple[Any, ...] = ()
        self._io: asyncio.Transport | None = None
        self._replies: list[bytes] = []
        self._size = 0
        self._eof = False
        self._reading = True
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._stopping = False

    async def converse(self) -> None:
        """Speak with the peer until it leaves; what it raises ends the session."""
        raise NotImplementedError

    def closed(self) -> None:
        """Take note that the session is over; called once."""

    # --- what asyncio and aiosmtpd call ---------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the session's task."""
        self.tls = _describe_tls(transport)
        # uvloop's transports do not inherit from asyncio's.
        self._io = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.peer = peer if isinstance(peer, tuple) else ()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take octets; with too many unread ones, stop reading the socket."""
        self.conn.feed(data)
        self._wake()
        if self.conn.buffered > HIGH_WATER:
            self._pause(pause=True)

    def eof_received(self) -> bool:
        """Note the end; what was received before it is still obeyed."""
        self._eof = True
        self._wake()
        return not self.tls

    def connection_lost(self, error: Exception | None) -> None:
        """Let the task end by itself: a message being stored is stored whole."""
        self._eof = True
        if self._timer is not None:
            self._timer.cancel()
        # Not aiosmtpd's own: it would cancel the task, wherever it stands.
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = self._io = None
        self._wake()

    def _reset_timeout(self, duration: float | None = None) -> None:
        """Nothing: time limits are set where something is waited for."""

    async def _handle_client(self) -> None:
        farewell: Reply | None = None
        try:
            await self.converse()
        except Goodbye as goodbye:
            farewell = goodbye.reply
        except Silence:
            farewell = replies.TIMED_OUT
        except (Disconnected, ConnectionError):
            pass
        except Exception:
            log.exception("session-failed", peer=self.peer_address)
            farewell = replies.INTERNAL_ERROR
        finally:
            self.closed()
        with contextlib.suppress(Disconnected, ConnectionError, Silence):
            if farewell is not None:
                await self._farewell(farewell)
        if self._io is not None:
            self._io.close()

    async def _farewell(self, reply: Reply) -> None:
        self.reply(reply)
        await self.flush()
        transport = self._io
        if transport is None or reply is replies.BYE or self._eof:
            return
        if not transport.can_write_eof():
            return
        # Closing with unread octets would reset the connection and lose the reply.
        transport.write_eof()
        self._stopping = False
        end = self.loop.time() + LINGER
        while not self.ended and (left := end - self.loop.time()) > 0:
            self.conn = ServerConnection()
            self._pause(pause=False)
            await self._wait(left)

    # --- events and replies ---------------------------------------------------

    async def event(self, limit: float) -> Event:
        """Return the next event; Silence when it is not complete in ``limit`` seconds.

        Replies not yet written leave first, in one write.
        """
        until = 0.0
        while (event := self.conn.next_event()) is None:
            await self.flush()
            if self._eof:
                raise Disconnected
            if self.conn.skipped > MAX_SKIPPED:
                raise Goodbye(replies.ENDLESS_LINE)
            self._pause(pause=False)
            now = self.loop.time()
            until = until or now + limit
            await self._wait(until - now)
        return event

    def reply(self, reply: Reply) -> None:
        """Add a reply to the group that leaves when no more commands are at hand."""
        wire = reply.encode(utf8=self.utf8_replies)
        self._replies.append(wire)
        self._size += len(wire)

    async def breathe(self) -> None:
        """Write a long group early, and let other sessions run."""
        if self._size > GROUP:
            await self.flush()
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Write the group; wait while the peer does not read."""
        if not self._replies:
            return
        wire = b"".join(self._replies)
        self._replies.clear()
        self._size = 0
        if self._io is None:
            raise Disconnected
        self._io.write(wire)
        if self._io.get_write_buffer_size() > HIGH_WATER:
            try:
                async with asyncio.timeout(HANDSHAKE):
                    await self._writer.drain()
            except TimeoutError:
                raise Silence from None

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Shake hands; what the peer sent before is forgotten (RFC 3207 section 4.2).

        ConnectionError when the handshake fails.
        """
        await self.flush()
        try:
            async with asyncio.timeout(HANDSHAKE):
                # start_tls drains too, but what comes meanwhile would be kept.
                await self._writer.drain()
                self.conn.start_tls()
                self._pause(pause=False)
                await self._writer.start_tls(context)
        except (OSError, ValueError) as error:  # SSLError, TimeoutError: both OSError
            log.info("tls-failed", peer=self.peer_address, error=str(error))
            raise ConnectionResetError("TLS handshake failed") from error
        self.transport = self._io = cast("asyncio.Transport", self._writer.transport)
        self.tls = _describe_tls(self._io)

    @property
    def peer_address(self) -> str:
        """The client's IP address; an IPv4 one in its own form."""
        address = str(self.peer[0]) if self.peer else ""
        return address.removeprefix("::ffff:")

    @property
    def ended(self) -> bool:
        """True when the peer sends no more."""
        return self._eof

    def stop(self) -> None:
        """End the session when it next waits between transactions."""
        self._stopping = True
        if self._waiter is not None and self.may_stop and not self._waiter.done():
            self._waiter.set_exception(Goodbye(replies.SHUTTING_DOWN))

    def abort(self) -> None:
        """Cut the connection."""
        if self._io is not None:
            self._io.abort()

    @property
    def may_stop(self) -> bool:
        """True while no message is on its way."""
        return True

    # --- waiting --------------------------------------------------------------

    async def _wait(self, limit: float) -> None:
        """Wait until octets or the end come; Silence, or Goodbye on a stop."""
        if self._stopping and self.may_stop:
            raise Goodbye(replies.SHUTTING_DOWN)
        loop = self.loop
        self._waiter = loop.create_future()
        self._deadline = loop.time() + limit
        if self._timer is None or self._timer_at > self._deadline:
            self._set_timer()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self.loop.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return  # busy for a peer that did its part: the next wait sets a timer
        if self.loop.time() < self._deadline:
            self._set_timer()
        else:
            self._waiter.set_exception(Silence())

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _pause(self, *, pause: bool) -> None:
        if self._io is not None and self._reading is pause:
            (self._io.pause_reading if pause else self._io.resume_reading)()
            self._reading = not pause


def _describe_tls(transport: asyncio.BaseTransport) -> str:
    ssl_object = transport.get_extra_info("ssl_object")
    if ssl_object is None:
        return ""
    cipher = ssl_object.cipher()
    return f"{ssl_object.version()} {cipher[0] if cipher else ''}".strip()
