"""What JMAP needs of the rest of the daemon: services, limits and a few switches."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auth.people.authenticate import Authenticator
    from auth.people.directory import Directory
    from mailserverd.core.ports import Clock, Offload
    from mailserverd.services.changes import Changes
    from mailserverd.services.identities import Identities
    from mailserverd.services.mailboxes import Mailboxes
    from mailserverd.services.messages import Messages
    from mailserverd.services.receive import Receive
    from mailserverd.services.search import Search
    from mailserverd.services.submission import Submission
    from mailserverd.services.submissions import Submissions
    from storage.api import Cache

CORE = "urn:ietf:params:jmap:core"
MAIL = "urn:ietf:params:jmap:mail"
SUBMISSION = "urn:ietf:params:jmap:submission"
WEBSOCKET = "urn:ietf:params:jmap:websocket"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of the core and mail capabilities (RFC 8620 section 2)."""

    max_size_upload: int = 50_000_000
    max_concurrent_upload: int = 4
    max_size_request: int = 10_000_000
    max_concurrent_requests: int = 8
    max_calls_in_request: int = 64
    max_objects_in_get: int = 1000
    max_objects_in_set: int = 1000
    max_size_message: int = 70_000_000
    max_size_submission: int = 50 * 1024 * 1024
    max_size_attachments: int = 50_000_000
    max_size_mailbox_name: int = 255
    max_mailbox_depth: int = 20
    max_keywords: int = 100
    max_recipients: int = 1000
    max_response: int = 64_000_000  # octets read for and put into one response
    max_responses: int = 192_000_000  # the same for all that are not sent yet


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``public_url`` is the base of the session's URLs, "" to take the request's."""

    public_url: str = ""
    hostname: str = "localhost"  # ends the Message-IDs of drafts
    plaintext_auth: bool = False  # Basic without TLS
    allowed_origins: tuple[str, ...] = ()  # of WebSockets, beside the own host
    limits: Limits = Limits()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that JMAP calls; each is the concrete service of its name."""

    mailboxes: Mailboxes
    messages: Messages
    search: Search
    identities: Identities
    submissions: Submissions
    receive: Receive
    submission: Submission
    authenticator: Authenticator
    directory: Directory
    changes: Changes
    offload: Offload
    clock: Clock
    cache: Cache
    settings: Settings = Settings()
