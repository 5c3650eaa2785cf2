"""What IMAP needs of the daemon: the services, and its settings."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auth.people.authenticate import Authenticator
    from mailserverd.core.ports import Clock
    from mailserverd.services.changes import Changes
    from mailserverd.services.mailboxes import Mailboxes
    from mailserverd.services.messages import Messages
    from mailserverd.services.receive import Receive
    from mailserverd.services.search import Search


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImapSettings:
    """Limits of the IMAP server; times in seconds."""

    plaintext_auth: bool = False  # LOGIN and AUTHENTICATE without TLS (loopback)
    max_message_size: int = 50_000_000  # APPEND; told as APPENDLIMIT (RFC 7889)
    login_time: float = 60  # from the first octet to LOGIN's success
    idle_time: float = 1860  # without a command (RFC 9051 section 5.4: >= 30 min)
    login_failures: int = 3  # per connection
    pre_auth_errors: int = 5
    errors: int = 50  # BAD answers in a row
    connections: int = 10_000
    connections_per_address: int = 0  # before login; 0 is no limit
    connections_per_account: int = 1000
    view_messages: int = 1_100_000  # in mailbox views that nobody looks at


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImapServices:
    """Everything a connection works with."""

    mailboxes: Mailboxes
    messages: Messages
    search: Search
    receive: Receive
    authenticator: Authenticator
    changes: Changes
    clock: Clock
    settings: ImapSettings = ImapSettings()
