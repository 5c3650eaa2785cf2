"""What the connections of a process share: registry, views, counts, time limits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mailserverd.core.memory import give_back
from protocols.imap.commands import BASE
from protocols.imap.ext import EXTENSIONS
from protocols.imap.extension import make_registry
from protocols.imap.session import Session
from protocols.imap.views import Views

if TYPE_CHECKING:
    from protocols.imap.channel import Transport
    from protocols.imap.services import ImapServices

REGISTRY = make_registry((BASE, *EXTENSIONS))
MANY = 100_000  # messages of views, beyond which their memory is worth giving back
POLL = 120.0  # seconds after which idling sessions' views are read without a hint


class Server:
    """Makes sessions and looks after them."""

    def __init__(self, services: ImapServices) -> None:
        self.services = services
        self.views = Views(
            services.messages,
            services.mailboxes,
            services.changes,
            max_messages=services.settings.view_messages,
        )
        self.sessions: set[Session] = set()
        self._per_account: dict[int, int] = {}
        self._polled = services.clock.monotonic()

    def connect(self, transport: Transport) -> Session:
        """Return the session of a new connection; run it in a task."""
        session = Session(
            self.services, REGISTRY, self.views, self._per_account, transport
        )
        self.sessions.add(session)
        session.on_end = self.sessions.discard
        return session

    async def sweep(self) -> None:
        """End sessions that are over time, drop views; call every few seconds.

        Now and then, ask for changes whose announcement was lost.
        """
        now = self.services.clock.monotonic()
        for session in tuple(self.sessions):
            session.check(now)
        if self.views.sweep(now) > MANY:
            await asyncio.to_thread(give_back)
        if now - self._polled > POLL:
            self._polled = now
            await self.views.poll()
