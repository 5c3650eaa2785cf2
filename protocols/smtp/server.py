"""What the sessions of a listener share: settings, services, connection counts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
from typing import TYPE_CHECKING

from mailserverd.core.metrics import CONNECTIONS, DURATION, REQUESTS
from mailserverd.core.tally import LocalTally
from protocols.smtp import replies
from protocols.smtp.session import Session
from protocols.smtp.settings import Kind

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Hashable

    from prometheus_client import Counter

    from auth.people.authenticate import Authenticator
    from mailserverd.core.tally import Tally
    from mailserverd.services.receive import Receive
    from mailserverd.services.submission import Submission
    from protocols.smtp.settings import SmtpSettings
    from protocols.smtp.wire.reply import Reply


@dataclasses.dataclass(frozen=True, slots=True)
class Services:
    """What sessions call; the last two only where people submit mail."""

    receive: Receive
    submission: Submission | None = None
    authenticator: Authenticator | None = None


class SmtpServer:
    """A protocol factory (call it) for one or more listening sockets of one kind.

    ``tls`` returns the context for a new STARTTLS handshake, so that renewed
    certificates serve at once; without it STARTTLS is not offered.
    """

    def __init__(
        self,
        kind: Kind,
        settings: SmtpSettings,
        services: Services,
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        tally: Tally | None = None,
    ) -> None:
        if kind is Kind.SUBMISSION and services.submission is None:
            raise ValueError("a submission listener needs the submission service")
        self.kind = kind
        self.settings = settings
        self.services = services
        self.tls = tls
        self._sessions: set[Session] = set()
        self._tally = tally or LocalTally()
        self._stopping = False
        self._empty = asyncio.Event()
        self._gauge = CONNECTIONS.labels(kind.value)
        self._counters: dict[str, Counter] = {}
        self.duration = DURATION.labels(kind.value)

    def __call__(self) -> Session:
        """Return the protocol object of a new connection."""
        return Session(self)

    def count(self, verb: str) -> None:
        """Count a command (a verb of ours, or "unknown")."""
        counter = self._counters.get(verb)
        if counter is None:
            counter = self._counters[verb] = REQUESTS.labels(self.kind.value, verb)
        counter.inc()

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._sessions)

    def enter(self, session: Session) -> Reply | None:
        """Count a connection; return the reply that refuses it, when one must."""
        self._sessions.add(session)
        every, each = map(self._tally.add, self._counted(session))
        self._gauge.inc()
        limit = self.settings.max_connections_per_address
        if self._stopping:
            return replies.SHUTTING_DOWN
        if every > self.settings.max_connections or 0 < limit < each:
            return replies.TOO_MANY_CONNECTIONS
        return None

    def leave(self, session: Session) -> None:
        """Forget a connection."""
        if session not in self._sessions:
            return
        self._sessions.discard(session)
        for key in self._counted(session):
            self._tally.drop(key)
        self._gauge.dec()
        if not self._sessions:
            self._empty.set()

    def _counted(self, session: Session) -> tuple[Hashable, Hashable]:
        """Return what a session counts as: one of all, one of its network."""
        kind = self.kind.value
        return kind, (kind, _network(session.peer_address))

    async def drain(self) -> None:
        """Let messages on their way end, then close everything.

        Idle sessions get 421 at once; after ``drain_timeout`` seconds the others are
        cut off, unanswered: their clients will try again.
        """
        self._stopping = True
        for session in list(self._sessions):
            session.stop()
        if self._sessions:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.drain_timeout):
                    await self._empty.wait()
        for session in list(self._sessions):
            session.abort()


def _network(address: str) -> str:
    """One client is one IPv4 address, or one /64 of IPv6."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
