"""One attempt to hand a message to the servers of one domain.

Which servers, in which order, over which connection; then what each said of each
recipient.  The conversation itself is the protocol's: ``Dialer`` and
``Conversation`` are what it implements.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Protocol

from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter
from mailserverd.services.routes import NoRoute

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mailserverd.core.types import Envelope
    from mailserverd.services.routes import Host, Router

IDLE = 20.0  # seconds a connection waits for another message
MAX_IDLE = 50  # connections that wait
MAX_TRIES = 6  # hosts per attempt
ATTEMPTS = counter("relay_recipients", "Recipients by outcome", ("outcome",))
log = get_logger("relay")


@dataclasses.dataclass(frozen=True, slots=True)
class Said:
    """What a server said of one recipient; our own words have no ``mta``.

    ``dsn``: the server took over the sender's wish for a notification.
    """

    code: int
    status: str  # enhanced, "" when it gave none
    text: str
    mta: str = ""
    dsn: bool = False

    @property
    def delivered(self) -> bool:
        """True when the recipient's server has the message."""
        return 200 <= self.code < 300

    @property
    def permanent(self) -> bool:
        """True when trying again is of no use."""
        return self.code >= 500

    @property
    def line(self) -> str:
        """The reply on one line."""
        return " ".join(filter(None, (str(self.code), self.status, self.text)))


@dataclasses.dataclass(frozen=True, slots=True)
class Outbound:
    """A message for recipients in one domain (those of the envelope)."""

    envelope: Envelope
    size: int
    eight_bit: bool
    content: Callable[[], AsyncIterator[bytes]]  # lines end with CRLF


class HostFailed(Exception):
    """This host did not take the message nor refuse it: try the next."""

    def __init__(self, said: Said) -> None:
        super().__init__(said.line)
        self.said = said


class TlsFailed(HostFailed):
    """The handshake failed: opportunistic TLS means to try without."""


class Conversation(Protocol):
    """An open connection to a host."""

    @property
    def usable(self) -> bool:
        """True while another message may be sent."""

    async def deliver(self, message: Outbound) -> tuple[Said, ...]:
        """Return what was said, per recipient; HostFailed when nothing was."""

    def close(self) -> None:
        """Take leave; never raises."""


class Dialer(Protocol):
    """Opens conversations."""

    async def dial(self, host: Host, *, tls: bool) -> Conversation:
        """Connect and greet, with STARTTLS where offered; HostFailed, TlsFailed."""

    async def close(self) -> None:
        """Wait for conversations that take their leave."""


class Relay:
    """Attempts, over connections that are kept for a while."""

    def __init__(self, router: Router, dialer: Dialer) -> None:
        self._router = router
        self._dialer = dialer
        self._idle: dict[Host, list[tuple[Conversation, asyncio.TimerHandle]]] = {}
        self._count = 0

    async def attempt(self, domain: str, message: Outbound) -> tuple[Said, ...]:
        """Try to deliver; returns what was said of each recipient, in order."""
        try:
            hosts = await self._router.hosts(domain)
        except NoRoute as error:
            said = Said(error.code, error.status, error.text)
            return self._counted((said,) * len(message.envelope.recipients))
        last = Said(451, "4.4.1", "no server could be tried")
        for host in hosts[:MAX_TRIES]:
            try:
                return self._counted(await self._try(host, message))
            except HostFailed as error:
                last = error.said
                log.info(
                    "host-failed", host=host.name, address=host.address, reply=last.line
                )
        return self._counted((last,) * len(message.envelope.recipients))

    @staticmethod
    def _counted(said: tuple[Said, ...]) -> tuple[Said, ...]:
        for one in said:
            outcome = "delivered" if one.delivered else "deferred"
            ATTEMPTS.labels("failed" if one.permanent else outcome).inc()
        return said

    async def _try(self, host: Host, message: Outbound) -> tuple[Said, ...]:
        kept = self._take(host)
        if kept is not None:
            try:
                return await self._deliver(host, kept, message)
            except HostFailed:  # it had gone away meanwhile
                log.debug("connection-stale", host=host.name)
        return await self._deliver(host, await self._dial(host), message)

    async def _dial(self, host: Host) -> Conversation:
        try:
            return await self._dialer.dial(host, tls=True)
        except TlsFailed as error:
            log.info("tls-fallback", host=host.name, reply=error.said.line)
            return await self._dialer.dial(host, tls=False)

    async def _deliver(
        self, host: Host, conversation: Conversation, message: Outbound
    ) -> tuple[Said, ...]:
        try:
            said = await conversation.deliver(message)
        except BaseException:
            conversation.close()
            raise
        self._give(host, conversation)
        return said

    # --- connections that wait ------------------------------------------------

    def _take(self, host: Host) -> Conversation | None:
        waiting = self._idle.get(host)
        if not waiting:
            return None
        conversation, timer = waiting.pop()
        timer.cancel()
        self._count -= 1
        if not waiting:
            del self._idle[host]
        return conversation

    def _give(self, host: Host, conversation: Conversation) -> None:
        if not conversation.usable or self._count >= MAX_IDLE:
            conversation.close()
            return
        timer = asyncio.get_running_loop().call_later(
            IDLE, self._expire, host, conversation
        )
        self._idle.setdefault(host, []).append((conversation, timer))
        self._count += 1

    def _expire(self, host: Host, conversation: Conversation) -> None:
        waiting = self._idle.get(host, [])
        left = [pair for pair in waiting if pair[0] is not conversation]
        self._count -= len(waiting) - len(left)
        if left:
            self._idle[host] = left
        else:
            self._idle.pop(host, None)
        conversation.close()

    async def close(self) -> None:
        """Close the connections that wait."""
        for waiting in self._idle.values():
            for conversation, timer in waiting:
                timer.cancel()
                conversation.close()
        self._idle.clear()
        self._count = 0
        await self._dialer.close()
