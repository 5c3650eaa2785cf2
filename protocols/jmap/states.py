"""State strings of the object types, and the honesty of oldState."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from protocols.jmap.push import counters
from protocols.jmap.wire import state
from protocols.jmap.wire.errors import MethodError

if TYPE_CHECKING:
    from mailserverd.core.types import Access
    from protocols.jmap.method import Context
    from storage.model import AccountState


def of(found: AccountState, type_name: str) -> str:
    """Return the state string of a type."""
    return state.render(found.epoch, counters(found)[type_name])


async def current(context: Context, access: Access) -> AccountState:
    """Read the account's counters.

    Read before the data that it is returned with: a state may be older than what
    comes with it, never newer.
    """
    return await context.services.mailboxes.state(access)


def check(found: AccountState, type_name: str, wanted: str | None) -> None:
    """Compare with ifInState; ``stateMismatch`` (RFC 8620 section 5.3)."""
    if wanted is not None and wanted != of(found, type_name):
        raise MethodError("stateMismatch")


@dataclasses.dataclass(slots=True)
class Writes:
    """The modseqs of our own writes: does oldState tell all that newState hides?

    Every writing unit raises the account's modseq by one.  When it rose by more,
    somebody else wrote in between; a client that trusts oldState to newState would
    never learn of it, so oldState is then null ("does not know", RFC 8620
    section 5.3).
    """

    type_name: str
    before: AccountState
    own: set[int] = dataclasses.field(default_factory=set)
    unnamed: int = 0  # writes of ours whose modseq we were not told

    def wrote(self, modseq: int) -> None:
        """Note the modseq of one of our writes (or an older one: no write)."""
        if modseq > self.before.modseq:
            self.own.add(modseq)

    def states(self, after: AccountState) -> tuple[str | None, str]:
        """Return (oldState, newState)."""
        ours = len(self.own) + self.unnamed
        alone = after.modseq - self.before.modseq == ours
        old = of(self.before, self.type_name) if alone else None
        return old, of(after, self.type_name)
