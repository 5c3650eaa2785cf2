"""Plain data of the queue database: outbound messages, attempts, acceptances.

Times are whole seconds since the epoch.  A queue id is ten characters of base32
that sort by time; inside the database it is an integer.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import BodyType

if TYPE_CHECKING:
    from mailserverd.core.types import Recipient
    from storage.model import BlobRef

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
ID_LENGTH = 10


class State(enum.IntEnum):
    """Where a recipient of a queued message stands."""

    QUEUED = 1
    LEASED = 2  # an attempt is in flight
    HELD = 3
    DELIVERED = 4
    FAILED = 5
    CANCELLED = 6


FINAL = (State.DELIVERED, State.FAILED, State.CANCELLED)


class Notice(enum.IntEnum):
    """What the sender is to be told of (RFC 3464), and has not yet been."""

    NONE = 0
    FAILED = 1
    DELAYED = 2
    DELIVERED = 3
    RELAYED = 4


@dataclasses.dataclass(frozen=True, slots=True)
class NewQueued:
    """A message to queue.  With a ``key`` it is queued once: a second run returns
    the first one's id."""

    reverse_path: str
    recipients: tuple[Recipient, ...]
    blob: BlobRef
    expires: int  # give up then
    key: bytes = b""
    account: int = 0  # who submitted it; 0 the daemon itself
    send_at: int = 0  # not before; 0 at once
    smtputf8: bool = False
    body: BodyType = BodyType.SEVEN_BIT
    ret: str = ""
    envid: str = ""
    message_id: str = ""  # of the header, for trace
    origin: str = ""  # submission dsn forward


@dataclasses.dataclass(frozen=True, slots=True)
class QueuedRecipient:
    """One recipient and what is known of it."""

    position: int
    address: str
    notify: tuple[str, ...]
    orcpt: str
    state: State
    attempts: int  # begun before this one
    due: int  # next attempt, or when the lease lapses; 0 when neither
    updated: int
    reply: str  # last SMTP reply or error
    status: str  # enhanced status code of it, "" before any
    mta: str  # who gave it
    notice: Notice
    delay_sent: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """Recipients of one message in one domain, leased for one attempt.

    ``token`` fences: results under an older one are refused.
    """

    queue_id: str
    token: int
    domain: str
    message: QueuedMessage
    recipients: tuple[QueuedRecipient, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class QueuedMessage:
    """A queued message without its recipients."""

    queue_id: str
    reverse_path: str
    blob: BlobRef
    created: int
    expires: int
    account: int
    smtputf8: bool
    body: BodyType
    ret: str
    envid: str
    message_id: str
    origin: str


@dataclasses.dataclass(frozen=True, slots=True)
class ClaimLimits:
    """How much to claim: messages in all, messages per domain, no ``busy`` domain."""

    limit: int = 50
    per_domain: int = 20
    busy: tuple[str, ...] = ()
    lease: int = 600  # seconds without heartbeat until others may try
    recipients: int = 100  # per claim


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended for one recipient.

    ``state`` is DELIVERED, FAILED, or QUEUED (again at ``due``).  With a ``notice``
    the recipient stays listed by ``notices`` until ``noticed``.
    """

    position: int
    state: State
    reply: str = ""
    status: str = ""
    mta: str = ""
    due: int = 0
    notice: Notice = Notice.NONE


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """What ``finish`` kept: ``fenced`` positions had been taken over by others;
    ``open`` recipients of the message still need something."""

    fenced: tuple[int, ...]
    open: int


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A message with all its recipients, as list and show return it."""

    message: QueuedMessage
    recipients: tuple[QueuedRecipient, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """What a command is about: one id, or a domain, or (neither) everything."""

    queue_id: str = ""
    domain: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A page of the queue: unfinished messages in order of arrival."""

    after: str = ""  # queue id
    limit: int = 100
    domain: str = ""
    sender: str = ""
    finished: bool = False  # list what is done instead


@dataclasses.dataclass(frozen=True, slots=True)
class Stats:
    """Depth in recipients by state, and times (0: none)."""

    queued: int
    leased: int
    held: int
    notices: int
    oldest: int  # created of the oldest unfinished message
    next_due: int
    acceptances: int  # not yet applied everywhere


@dataclasses.dataclass(frozen=True, slots=True)
class TargetPart:
    """One target's part of an acceptance: opaque to the queue."""

    target: str  # "shard:0", ...
    payload: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Acceptance:
    """A message that several targets get: committing this is what 250 stands for.

    ``queued`` is the queue's own part, enqueued in the same transaction.
    """

    acceptance_id: bytes
    blob: BlobRef
    payload: bytes  # what all targets share
    parts: tuple[TargetPart, ...]
    queued: NewQueued | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Pending:
    """Which parts to list: accepted until ``before``, of one target or ("") of all,
    behind ``after`` (created, acceptance)."""

    before: int
    limit: int
    target: str = ""
    after: tuple[int, bytes] = (0, b"")


@dataclasses.dataclass(frozen=True, slots=True)
class PendingPart:
    """A target's part that has not been applied."""

    acceptance_id: bytes
    blob: BlobRef
    payload: bytes
    part: TargetPart
    created: int


def queue_id(number: int) -> str:
    """Return the text form of a queue id."""
    out = ""
    for _ in range(ID_LENGTH):
        number, digit = divmod(number, 32)
        out = ALPHABET[digit] + out
    return out


def queue_number(text: str) -> int:
    """Return the integer form of a queue id; NOT_FOUND when it is none."""
    number = 0
    try:
        for character in text.lower():
            number = number * 32 + ALPHABET.index(character)
    except ValueError:
        number = -1
    if len(text) != ID_LENGTH or number < 0:
        raise MailError(Kind.NOT_FOUND, "no such queue id")
    return number
