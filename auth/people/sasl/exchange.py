"""The shape of a SASL mechanism (RFC 4422): octets in, challenge or credentials out.

The protocol layer does the base64, the "*" that cancels, and the limits on lines.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

MAX_RESPONSE = 4096  # octets of one response
MAX_IDENTITY = 255  # octets of a user name or authorization identity


class SaslError(Exception):
    """The client's response breaks the mechanism's grammar."""


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """What the client sent, not yet checked."""

    authzid: str  # who to act as; "" is ``user``
    user: str
    password: bytes

    def __repr__(self) -> str:
        """Show no password: this may end in a log."""
        return f"Credentials(authzid={self.authzid!r}, user={self.user!r})"


@dataclasses.dataclass(frozen=True, slots=True)
class Challenge:
    """Octets to send to the client, which answers them."""

    data: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """The exchange is over: check these."""

    credentials: Credentials


class Exchange(Protocol):
    """One attempt to authenticate by one mechanism."""

    def step(self, data: bytes | None) -> Challenge | Done:
        """Take the client's response, None when there is no initial one.

        Raises SaslError; the exchange is then over.
        """


def identity(data: bytes) -> str:
    """Return a user name or authorization identity; SaslError for a bad one."""
    if len(data) > MAX_IDENTITY:
        raise SaslError("identity too long")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise SaslError("identity is not UTF-8") from error
    if any(c < " " or c == "\x7f" for c in text):
        raise SaslError("control character in identity")
    return text
