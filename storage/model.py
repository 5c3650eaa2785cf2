"""Plain data that crosses the storage boundary: arguments and results of units.

Everything here can be pickled and compared; nothing here knows SQL or wire formats.
Ids are integers inside one account; protocols render them (``e12``, ``m3``, ``t9``).
Times are whole seconds since the epoch, UTC.  Keywords are lower case; the four
system flags travel in a bit mask, everything else as keywords.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from array import array

SEEN, ANSWERED, FLAGGED, DRAFT = 1, 2, 4, 8
SYSTEM_KEYWORDS = {"$seen": 1, "$answered": 2, "$flagged": 4, "$draft": 8}


@dataclasses.dataclass(frozen=True, slots=True)
class BlobRef:
    """Where a blob lies: enough to read it without asking the database again."""

    hash: bytes  # SHA-256 of the content, 32 bytes
    store: bytes  # UUID of the blob store, 16 bytes
    segment: int
    offset: int  # of the record in the segment
    length: int  # stored payload octets
    size: int  # content octets
    codec: int = 0  # 0 raw, 1 zstd
    key: int = 0  # 0 not encrypted


@dataclasses.dataclass(frozen=True, slots=True)
class Flags:
    """System flags (bit mask) and other keywords (sorted, lower case)."""

    system: int = 0
    keywords: tuple[str, ...] = ()


class FlagChange(enum.Enum):
    """How STORE or a patch combines flags."""

    SET = "set"
    ADD = "add"
    REMOVE = "remove"


# --- mailboxes ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Mailbox:
    """One mailbox with both sets of counters (DESIGN section 4).

    ``path`` is the full name, components joined by "/" (a name never holds one),
    INBOX spelt so.  IMAP's counters count memberships; JMAP's leave out what is
    ``\\Deleted`` and, for unread, drafts (RFC 8621 section 2).
    """

    mailbox_id: int
    name: str
    parent_id: int | None
    path: str
    role: str  # inbox drafts sent trash junk archive important all flagged, or ""
    subscribed: bool
    sort_order: int
    uidvalidity: int
    uidnext: int
    highestmodseq: int
    modseq: int  # of the last change to the mailbox object, counts included
    created_modseq: int
    properties_modseq: int  # of the last change other than counts
    messages: int  # IMAP MESSAGES
    unseen: int  # IMAP UNSEEN
    deleted: int  # IMAP DELETED (RFC 9051 section 6.3.11)
    size: int  # octets, IMAP STATUS=SIZE (RFC 8438)
    total_emails: int
    unread_emails: int
    total_threads: int
    unread_threads: int


@dataclasses.dataclass(frozen=True, slots=True)
class AccountState:
    """The change counter of an account and what each object type last saw."""

    epoch: int
    modseq: int
    mailbox: int
    email: int
    thread: int
    identity: int
    submission: int
    quota_limit: int  # octets; 0 is unlimited
    quota_used: int  # octets
    message_count: int
    last_email: int = 0  # grows with every email added (JMAP's EmailDelivery)


@dataclasses.dataclass(frozen=True, slots=True)
class NewAccount:
    """What a shard needs to know of a new account; ``address`` makes an identity."""

    address: str = ""
    name: str = ""
    quota_limit: int = 0  # octets; 0 is unlimited
    epoch: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class MailboxList:
    """All mailboxes of an account at one modseq, in path order."""

    state: AccountState
    mailboxes: tuple[Mailbox, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class NewMailbox:
    """A mailbox to create."""

    name: str
    parent_id: int | None = None
    role: str = ""
    subscribed: bool = True
    sort_order: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class MailboxPatch:
    """What to change; ``None`` leaves as it is (``parent`` -1 is top level)."""

    mailbox_id: int
    name: str | None = None
    parent_id: int | None = None
    role: str | None = None
    subscribed: bool | None = None
    sort_order: int | None = None


# --- emails ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class NewEmail:
    """The immutable facts of a message, parsed once, shared by all recipients."""

    blob: BlobRef
    size: int
    header_size: int
    sent_at: int | None
    envelope: bytes
    bodystructure: bytes
    list_json: bytes
    part_table: bytes
    thread_keys: tuple[bytes, ...]  # digests of (message id, base subject)
    message_id: str
    base_subject: str
    sort_from: str
    sort_to: str
    has_attachment: bool
    search_headers: bytes  # UTF-8 (surrogateescape), zstd-compressed with the text
    search_text: bytes  # zstd of "headers\0body", UTF-8 (surrogateescape)


@dataclasses.dataclass(frozen=True, slots=True)
class AddEmail:
    """Put one message into mailboxes of one account: delivery, APPEND, import.

    ``mailboxes`` are ids; ``roles`` are found by role, and made when missing
    (delivery names ``inbox`` or ``junk``).  With an ``acceptance`` the unit is
    idempotent: a second run returns the first result with ``duplicate`` true.
    ``check_quota`` raises OVER_QUOTA when the message would not fit.  The system
    flags may hold ``DELETED_BIT`` (APPEND with ``\\Deleted``).
    """

    email: NewEmail
    received_at: int
    mailboxes: tuple[int, ...] = ()
    roles: tuple[str, ...] = ()
    flags: Flags = Flags()
    acceptance: bytes = b""
    recipient: str = ""  # envelope recipient, "" for APPEND
    check_quota: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Added:
    """Where the message now lives."""

    email_id: int
    thread_id: int
    modseq: int
    placed: tuple[tuple[int, int, int], ...]  # (mailbox_id, uidvalidity, uid)
    duplicate: bool = False


@dataclasses.dataclass(slots=True)
class View:
    """State of one mailbox as parallel arrays in uid order (IMAP's sequence).

    ``flags[i]`` holds the system bits, bit 4 ``\\Deleted``, and from bit 8 up the
    index + 1 of the keyword set in ``keyword_sets`` (0 is the empty set).
    """

    mailbox_id: int
    uidvalidity: int
    uidnext: int
    highestmodseq: int
    uids: array[int]  # "I"
    email_ids: array[int]  # "Q"
    modseqs: array[int]  # "Q"
    flags: array[int]  # "I"
    keyword_sets: list[tuple[str, ...]]


DELETED_BIT = 16
KEYWORD_SHIFT = 8


@dataclasses.dataclass(frozen=True, slots=True)
class ViewDelta:
    """What changed in a mailbox since a modseq.

    ``complete`` is False when tombstones no longer reach back that far: the
    caller must load the view anew.  ``changed`` rows are in uid order:
    (uid, email_id, modseq, system bits | DELETED_BIT, keywords), new ones included.
    """

    highestmodseq: int
    uidnext: int
    changed: tuple[tuple[int, int, int, int, tuple[str, ...]], ...]
    vanished: tuple[int, ...]
    complete: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class StoreFlags:
    """IMAP STORE by uid (RFC 9051 section 6.4.6, RFC 7162 section 3.1.3)."""

    mailbox_id: int
    uids: array[int]
    change: FlagChange
    flags: Flags
    deleted: bool = False  # whether the flag list names \Deleted
    unchanged_since: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class StoreResult:
    """Rows as in ``ViewDelta.changed``, and uids that failed UNCHANGEDSINCE.

    ``previous`` has the modseq that each row of ``changed`` had before.
    """

    modseq: int
    changed: tuple[tuple[int, int, int, int, tuple[str, ...]], ...]
    previous: tuple[int, ...]
    modified: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class CopyResult:
    """COPYUID: parallel tuples (RFC 4315 section 3)."""

    uidvalidity: int
    source_uids: tuple[int, ...]
    target_uids: tuple[int, ...]
    modseq: int


@dataclasses.dataclass(slots=True)  # not frozen: that costs 3 us per row
class EmailRow:
    """What FETCH and Email/get read: one row per email, in the order asked for.

    Columns not asked for are empty.  ``mailboxes`` lists memberships that are
    not ``\\Deleted`` (what JMAP shows).
    """

    email_id: int
    thread_id: int = 0
    blob: BlobRef | None = None
    size: int = 0
    header_size: int = 0
    received_at: int = 0
    sent_at: int | None = None
    modseq: int = 0
    created_modseq: int = 0
    flags: Flags = Flags()
    mailboxes: tuple[int, ...] = ()
    envelope: bytes = b""
    bodystructure: bytes = b""
    list_json: bytes = b""
    part_table: bytes = b""
    save_date: int = 0  # only when asked for by mailbox (RFC 8514)


class Column(enum.Flag):
    """Groups of columns of ``EmailRow`` that cost something to read."""

    BASIC = 1  # thread, size, dates, blob, flags
    ENVELOPE = 2
    BODYSTRUCTURE = 4
    LIST = 8
    PARTS = 16
    MAILBOXES = 32


# --- queries -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Condition:
    """One leaf of a filter; ``op`` names it, ``value`` is plain data.

    in_mailbox(int) in_mailbox_other_than(tuple[int]) before(int) after(int)
    [received_at < / >=] sent_before(int) sent_after(int) min_size(int) max_size(int)
    [size >= / <] has_keyword(str) not_keyword(str) all_in_thread_have_keyword(str)
    some_in_thread_have_keyword(str) none_in_thread_have_keyword(str)
    has_attachment(bool) ids(frozenset[int]) [already resolved by search]
    """

    op: str
    value: object


@dataclasses.dataclass(frozen=True, slots=True)
class Operator:
    """AND, OR or NOT over conditions (RFC 8620 section 5.5)."""

    op: str  # "AND" "OR" "NOT"
    conditions: tuple[Filter, ...]


Filter = Condition | Operator


@dataclasses.dataclass(frozen=True, slots=True)
class Sort:
    """One comparator: receivedAt sentAt size from to subject hasKeyword
    allInThreadHaveKeyword someInThreadHaveKeyword (RFC 8621 section 4.4.2)."""

    by: str
    ascending: bool = True
    keyword: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class EmailQuery:
    """Email/query in storage terms; ``position`` may be negative, anchor by id."""

    filter: Filter | None = None
    sort: tuple[Sort, ...] = (Sort("receivedAt", ascending=False),)
    position: int = 0
    anchor: int | None = None
    anchor_offset: int = 0
    limit: int | None = None
    collapse_threads: bool = False
    total: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class QueryResult:
    """Ids in order, where the first one stands, and the state they are true at."""

    ids: tuple[int, ...]
    position: int
    total: int | None
    state: AccountState


@dataclasses.dataclass(frozen=True, slots=True)
class ObjectChanges:
    """Foo/changes (RFC 8620 section 5.2): ids by fate, and the modseq reached.

    ``only_counts`` is true when every updated mailbox changed in counts alone.
    ``after`` is set while there is more: the state reached is "before
    ``new_modseq``, and of it the ids up to ``after``".
    """

    created: tuple[int, ...]
    updated: tuple[int, ...]
    destroyed: tuple[int, ...]
    new_modseq: int
    has_more: bool
    only_counts: bool = False
    after: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Since:
    """From where changes are asked for: a modseq, or a state inside one.

    With ``after`` (of an earlier ``ObjectChanges``) the client knows what was
    before ``modseq`` and, of ``modseq`` itself, the ids up to ``after``.  ``split``
    allows an answer that ends inside a modseq; without it a modseq that holds more
    than ``limit`` changes raises CANNOT_CALCULATE_CHANGES.
    """

    modseq: int
    limit: int | None = None
    after: int | None = None
    split: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class EmailPatch:
    """Email/set update: what to add and remove, or to set outright (not None)."""

    email_id: int
    add_keywords: tuple[str, ...] = ()
    remove_keywords: tuple[str, ...] = ()
    set_keywords: tuple[str, ...] | None = None
    add_mailboxes: tuple[int, ...] = ()
    remove_mailboxes: tuple[int, ...] = ()
    set_mailboxes: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class BatchResult:
    """Ids that are done, and (id, (Kind name, text)) of each that failed."""

    modseq: int
    errors: tuple[tuple[int, tuple[str, str]], ...]
    updated: tuple[int, ...] = ()
    destroyed: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """An identity (RFC 8621 section 6)."""

    identity_id: int
    name: str
    email: str
    reply_to: bytes = b"null"  # JSON of EmailAddress[] or null
    bcc: bytes = b"null"
    text_signature: str = ""
    html_signature: str = ""
    may_delete: bool = True
    modseq: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class SubmissionRow:
    """An EmailSubmission (RFC 8621 section 7); the queue knows its fate."""

    submission_id: int
    identity_id: int
    email_id: int
    thread_id: int
    envelope: bytes  # JSON {mailFrom, rcptTo}
    send_at: int
    undo_status: str  # pending final canceled
    queue_id: str
    delivery_status: bytes  # JSON as last known
    modseq: int = 0
