"""Attempts to deliver to four accounts, each attempt known by a token of its own."""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import MailError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tests.lib.mailhost import MailHost

PEOPLE = tuple(f"user{n}@example.org" for n in range(4))
ROLES = ("shard-0", "queue", "directory", "blobs")
TOKEN = re.compile(rb"^X-Token: (\S+)\r\n", re.MULTILINE)


def message(token: str, sender: str = "s@example.net") -> bytes:
    """Return a message that is known by a token."""
    head = f"From: {sender}\r\nSubject: {token}\r\nX-Token: {token}\r\n"
    return f"{head}\r\ntext of {token}\r\n".encode()


@dataclasses.dataclass
class Ledger:
    """Which attempts were made, and which of them acknowledged."""

    tried: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    done: set[str] = dataclasses.field(default_factory=set)

    async def attempt(self, send: Awaitable[Any], token: str, *to: str) -> bool:
        """Make one attempt; a failure is temporary, whatever fails."""
        self.tried[token] = to
        try:
            await send
        except MailError as error:
            assert error.temporary, error
            return False
        self.done.add(token)
        return True

    async def check(self, host: MailHost) -> None:
        """Compare mailboxes with what was acknowledged."""
        for address in PEOPLE:
            here = await tokens(host, address)
            assert max(here.values(), default=1) == 1, f"twice: {here}"
            for token, to in self.tried.items():
                if token in self.done and address in to:
                    assert token in here, f"{token} is lost for {address}"
                elif address not in to:
                    assert token not in here


async def tokens(host: MailHost, address: str) -> collections.Counter[str]:
    """Return the tokens of an account's inbox."""
    found = [TOKEN.search(raw) for raw in await host.mail(address)]
    return collections.Counter(one[1].decode() for one in found if one)
