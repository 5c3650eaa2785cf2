"""StateChange: telling clients that something changed (RFC 8620 section 7.1).

The bus says only "account 7 reached 1042"; what changed is read from the account's
counters.  A burst is told at once, then at most every ``PAUSE`` seconds.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import MailError
from mailserverd.core.log import get_logger
from protocols.jmap.wire import ids, state

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailserverd.core.types import Access
    from protocols.jmap.services import Services
    from storage.model import AccountState

log = get_logger("jmap")
PAUSE = 0.1  # seconds between two StateChanges to one client
RETRY = 1.0  # seconds until a state that could not be read is read again
TYPES = ("Email", "EmailDelivery", "EmailSubmission", "Identity", "Mailbox", "Thread")


def counters(found: AccountState) -> dict[str, int]:
    """Return the change counter of each type."""
    return {
        "Email": found.email,
        "EmailDelivery": found.last_email,
        "EmailSubmission": found.submission,
        "Identity": found.identity,
        "Mailbox": found.mailbox,
        "Thread": found.thread,
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What a client knows of an account: enough to tell it what it missed.

    As a string it is the pushState of RFC 8887 and the event id of an event source.
    """

    epoch: int
    modseq: int
    last_email: int

    def render(self) -> str:
        """Return the token that stands for this."""
        return f"{self.epoch}-{self.modseq}-{self.last_email}"


def seen_of(found: AccountState) -> Seen:
    """Return what a client knows that was told everything up to this state."""
    return Seen(found.epoch, found.modseq, found.last_email)


NOTHING = Seen(-1, 0, 0)  # of another epoch: everything may have changed


def parse_seen(text: str) -> Seen:
    """Read a token; NOTHING when it is none of ours."""
    pieces = text.split("-")
    if len(pieces) != 3 or not all(_digits(piece) for piece in pieces):
        return NOTHING
    return Seen(*map(int, pieces))


def _digits(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= len(str(ids.MAX_ID))


def changed(found: AccountState, before: Seen) -> dict[str, str]:
    """Return type -> state of what changed since ``before``."""
    news: dict[str, str] = {}
    for name, counter in counters(found).items():
        if before.epoch != found.epoch:
            moved = True
        elif name == "EmailDelivery":
            moved = counter != before.last_email
        else:
            moved = counter > before.modseq
        if moved:
            news[name] = state.render(found.epoch, counter)
    return news


class Watch:
    """Reports the changes of one account to one client.

    ``emit(change, token)`` is called with a StateChange object and the token of
    what the client then knows.  It is never called while ``ready()`` is false; call
    ``wake`` when it may be true again.
    """

    def __init__(
        self,
        services: Services,
        access: Access,
        emit: Callable[[dict[str, Any], str], None],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._services = services
        self._access = access
        self._emit = emit
        self._ready = ready
        self._types: frozenset[str] = frozenset()
        self._seen = NOTHING
        self._dirty = False
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None

    async def start(self, types: frozenset[str], since: Seen | None) -> None:
        """Report from now on; ``since`` names what the client knows already.

        Without ``since`` only what changes from now on is reported.
        """
        if self._unsubscribe is None:
            changes = self._services.changes
            self._unsubscribe = changes.subscribe(self._access.account, self._hint)
        self._types = types
        if since is not None:
            self._seen = since
        else:
            self._seen = seen_of(await self._services.mailboxes.state(self._access))
        self.wake()

    def stop(self) -> None:
        """Report no more."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _hint(self, _account: int, _modseq: int) -> None:
        self.wake()

    def wake(self) -> None:
        """Look whether there is something to report."""
        self._dirty = True
        if self._task is None and self._unsubscribe is not None and self._ready():
            self._task = asyncio.create_task(self._report())

    async def _report(self) -> None:
        try:
            while self._dirty and self._ready():
                self._dirty = False
                await asyncio.sleep(PAUSE if await self._once() else 0)
        except MailError as error:
            log.warning("push-state-unreadable", error=str(error))
            asyncio.get_running_loop().call_later(RETRY, self.wake)
        finally:
            self._task = None

    async def _once(self) -> bool:
        found = await self._services.mailboxes.state(self._access)
        news = changed(found, self._seen)
        self._seen = seen_of(found)
        wanted = {name: text for name, text in news.items() if name in self._types}
        if wanted:
            account = ids.account(self._access.account)
            change = {"@type": "StateChange", "changed": {account: wanted}}
            self._emit(change, self._seen.render())
        return bool(wanted)
