"""The shape of a JMAP method, and what it is given to do its work."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from mailserverd.core.types import Access
from protocols.jmap.wire import arguments, ids
from protocols.jmap.wire.arguments import Argument, Schema
from protocols.jmap.wire.errors import MethodError

if TYPE_CHECKING:
    import asyncio

    from auth.people.authenticate import Principal
    from protocols.jmap.budget import Share
    from protocols.jmap.services import Limits, Services
    from protocols.jmap.wire.request import Invocation

Arguments = dict[str, Any]
Run = Callable[["Context", Arguments], Awaitable[Arguments]]
ACCOUNT = Argument(arguments.identifier)


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """One method: its name, the capability that offers it, what it takes, and how.

    ``run`` returns the arguments of the response; it raises MethodError or MailError
    when the call as a whole fails.
    """

    name: str
    capability: str
    run: Run
    takes: Schema | None  # None: anything (Core/echo)


@dataclasses.dataclass(slots=True)
class Context:
    """One API request under way: who asks, what was answered and created so far."""

    services: Services
    principal: Principal
    created_ids: dict[str, str]
    heavy: asyncio.Semaphore  # for work that takes much memory: one at a time
    responses: list[Invocation] = dataclasses.field(default_factory=list)
    following: list[tuple[str, Arguments]] = dataclasses.field(default_factory=list)
    share: Share | None = None  # of the memory that all answers have

    @property
    def limits(self) -> Limits:
        """The limits that the session object announces."""
        return self.services.settings.limits

    def access(self, account_id: str, error: str = "accountNotFound") -> Access:
        """Return the access to an account; MethodError when there is none."""
        number = ids.parse_account(account_id)
        if number != self.principal.account:
            raise MethodError(error)
        return Access(self.principal.account, number)

    def real(self, text: str) -> str:
        """Replace a creation id (``#k1``) by the id it stands for, if it is known."""
        if text[:1] == "#":
            return self.created_ids.get(text[1:], text)
        return text

    def follow(self, name: str, args: Arguments) -> None:
        """Call another method after this one, under the same call id."""
        self.following.append((name, args))

    def spend(self, octets: int) -> None:
        """Take from what the response may still hold; see ``Share.spend``."""
        if self.share is not None:
            self.share.spend(octets)
