"""What the supervisor and its processes say to one another.

At the start: Ready or Failed; then Serve, answered by Serving.  Later Ping (Pong),
Apply (Applied), and at the end Drain (Drained), Close, and the process exits.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailserverd.core.errors import MailError
    from mailserverd.settings import Settings


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """Everything is open; nothing is served yet."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """The process cannot start, and ends."""

    error: MailError


@dataclasses.dataclass(frozen=True, slots=True)
class Serve:
    """Listen."""


@dataclasses.dataclass(frozen=True, slots=True)
class Serving:
    """It does."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ping:
    """Is the loop alive?"""

    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Pong:
    """It is."""

    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Sockets:
    """New listening sockets: the message's descriptors, one address each."""

    addresses: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Apply:
    """Take over new settings, whose sockets came before."""

    settings: Settings


@dataclasses.dataclass(frozen=True, slots=True)
class Applied:
    """Done; or the problem, and nothing was changed."""

    problem: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Died:
    """Another process of the daemon has ended unexpectedly."""


@dataclasses.dataclass(frozen=True, slots=True)
class Drain:
    """Accept nothing new, finish what is under way."""


@dataclasses.dataclass(frozen=True, slots=True)
class Drained:
    """Nothing is under way; the databases are still served to others."""


@dataclasses.dataclass(frozen=True, slots=True)
class Close:
    """Close the databases and exit."""
