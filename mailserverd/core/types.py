"""Vocabulary shared by all layers: ids, access, envelopes, addresses."""

from __future__ import annotations

import dataclasses
import enum


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """The pair that the service layer checked: the only key that a store takes.

    ``principal`` is the account that logged in (0 for the daemon itself, e.g. a
    delivery), ``account`` the one whose data is touched.
    """

    principal: int
    account: int


SYSTEM = 0


def system(account: int) -> Access:
    """Return the daemon's own access to an account (delivery, indexing)."""
    return Access(SYSTEM, account)


class BodyType(enum.Enum):
    """BODY= of MAIL FROM (RFC 6152, RFC 3030)."""

    SEVEN_BIT = "7BIT"
    EIGHT_BIT = "8BITMIME"


@dataclasses.dataclass(frozen=True, slots=True)
class Recipient:
    """One envelope recipient with its DSN parameters (RFC 3461)."""

    address: str  # local-part as given, domain lower case (U-label or ASCII)
    notify: tuple[str, ...] = ()  # NEVER or of SUCCESS, FAILURE, DELAY
    orcpt: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection."""

    address: str = ""  # IP address without port; "" when not from the network
    port: int = 0
    helo: str = ""
    tls: str = ""  # "TLSv1.3 TLS_AES_256_GCM_SHA384", or "" without TLS
    protocol: str = "SMTP"  # with-protocol-type of Received (RFC 3848): ESMTPS ...


@dataclasses.dataclass(frozen=True, slots=True)
class Envelope:
    """What a message travels in: never inside its bytes."""

    reverse_path: str  # "" is the null sender
    recipients: tuple[Recipient, ...]
    smtputf8: bool = False
    body: BodyType = BodyType.SEVEN_BIT
    ret: str = ""  # FULL or HDRS (RFC 3461)
    envid: str = ""
