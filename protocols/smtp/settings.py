"""What a listener of the receiving side may be told."""

from __future__ import annotations

import dataclasses
import enum


class Kind(enum.Enum):
    """What a listener is for."""

    MX = "smtp"  # port 25: mail from other servers for our users
    SUBMISSION = "submission"  # ports 587 and 465: mail from our users for anyone
    LMTP = "lmtp"  # a trusted relay in front of us (RFC 2033)


@dataclasses.dataclass(frozen=True, slots=True)
class SmtpSettings:
    """Options of the SMTP server; times in seconds, sizes in octets.

    ``command_timeout`` is for one command, ``data_idle_timeout`` for a silence within
    the data, ``data_timeout`` for the data as a whole.  0 is no limit for
    ``max_connections_per_address`` and ``max_commands_per_minute``.
    """

    hostname: str
    max_message_size: int = 50 * 1024 * 1024
    max_recipients: int = 200
    max_errors: int = 20
    max_connections: int = 2000
    max_connections_per_address: int = 50
    max_commands_per_minute: int = 6000
    command_timeout: float = 300.0  # RFC 5321 section 4.5.3.2.7
    data_idle_timeout: float = 180.0
    data_timeout: float = 3600.0
    drain_timeout: float = 30.0
