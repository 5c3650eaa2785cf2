"""What the checks at arrival look at, and what they say (see ``policy``)."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from auth.mail.canonical import Octets
    from auth.mail.dkim import DkimResult
    from auth.mail.dmarc import DmarcResult
    from auth.mail.results import MethodResult
    from auth.mail.spf import SpfResult
    from mailserverd.core.errors import Kind
    from mailserverd.core.ports import Offload, Resolver
    from mailserverd.core.types import Envelope, Peer


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """A message from the network whose data has come, before it is stored.

    ``message`` is as it arrived (CRLF line ends, dots unstuffed).  ``from_addresses``
    are the addresses of all From fields.  ``now`` is seconds since the epoch.
    """

    peer: Peer
    envelope: Envelope
    message: Octets
    from_addresses: tuple[str, ...]
    now: float
    hostname: str
    authserv_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class InboundPolicy:
    """Which checks run, and what they may do.

    ``spf_fail`` "reject" refuses an SPF fail where no DMARC record speaks; "mark" only
    notes it.
    ``dnsbl`` are zones; a listed client is refused.  ``accept_temperror`` accepts and
    marks what would be deferred because DNS failed (loopback instances).
    """

    spf: bool = True
    dkim: bool = True
    dmarc: bool = True
    iprev: bool = False
    dnsbl: tuple[str, ...] = ()
    spf_fail: str = "mark"  # mark reject
    accept_temperror: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """What the checks work with."""

    resolver: Resolver
    offload: Offload
    settings: InboundPolicy


@dataclasses.dataclass(slots=True)
class Evidence:
    """What earlier checks established for later ones."""

    spf: SpfResult | None = None
    dkim: tuple[DkimResult, ...] = ()
    dmarc: DmarcResult | None = None


class Action(enum.IntEnum):
    """What is to be done with the message; the highest of all findings counts."""

    ACCEPT = 0
    JUNK = 1
    DEFER = 2
    REJECT = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What one check says; ``reason`` is public, one line of printable ASCII."""

    results: tuple[MethodResult, ...] = ()
    action: Action = Action.ACCEPT
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What all checks together say.

    ``kind`` is None for ACCEPT and JUNK, POLICY for REJECT (550 5.7.1) and
    TEMPORARY_POLICY for DEFER (451 4.7.x).  ``header`` is our Authentication-Results
    field with its CRLF, to be put on top of the message.
    """

    action: Action
    kind: Kind | None
    reason: str
    results: tuple[MethodResult, ...]
    header: bytes

    @property
    def junk(self) -> bool:
        """True when the message goes to Junk instead of the inbox."""
        return self.action is Action.JUNK


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """A check: its name, when it runs, and what it does."""

    name: str
    enabled: Callable[[InboundPolicy], bool]
    run: Callable[[Arrival, Context, Evidence], Awaitable[Finding]]
