"""Error kinds: one vocabulary, mapped once by each protocol.

A service raises ``MailError(Kind.OVER_QUOTA, "mailbox is full")``; SMTP answers
``552 5.2.2``, IMAP ``NO [OVERQUOTA]``, JMAP ``overQuota``.  The text is public
and may reach a peer; the cause (``raise ... from``) is for the log alone.
"""

from __future__ import annotations

import enum


class Kind(enum.Enum):
    """What went wrong, in terms that every protocol can express."""

    NOT_FOUND = "not found"
    ALREADY_EXISTS = "already exists"
    INVALID = "invalid"  # the request itself can never succeed
    TOO_LARGE = "too large"
    OVER_QUOTA = "over quota"
    LIMIT = "limit reached"  # too many of something; may succeed later
    RATE_LIMITED = "rate limited"
    AUTH_FAILED = "authentication failed"
    AUTH_REQUIRED = "authentication required"
    TLS_REQUIRED = "TLS required"
    FORBIDDEN = "forbidden"
    SENDER_REFUSED = "sender refused"  # envelope or header From is not theirs
    NO_SUCH_USER = "no such user"
    RELAY_DENIED = "relay denied"
    POLICY = "refused by policy"
    TEMPORARY_POLICY = "policy could not be decided"  # e.g. DNS failure: 451
    MAIL_LOOP = "mail loop"
    HAS_CHILDREN = "mailbox has children"
    NOT_EMPTY = "mailbox is not empty"
    STATE_MISMATCH = "state mismatch"  # ifInState
    CANNOT_CALCULATE_CHANGES = "cannot calculate changes"
    ANCHOR_NOT_FOUND = "anchor not found"
    CONFLICT = "conflict"  # e.g. UNCHANGEDSINCE, EXPUNGEISSUED
    UNAVAILABLE = "temporarily unavailable"  # a store, index or peer is down
    STORAGE_FULL = "storage full"
    UNSUPPORTED = "unsupported"
    INTERNAL = "internal error"  # a bug: logged with its cause, never shown


TEMPORARY = frozenset(
    {
        Kind.LIMIT,
        Kind.RATE_LIMITED,
        Kind.TEMPORARY_POLICY,
        Kind.UNAVAILABLE,
        Kind.STORAGE_FULL,
        Kind.INTERNAL,
    }
)


class MailError(Exception):
    """A refusal that a peer may be told of.

    ``kind`` selects the reply, ``text`` is one line of public explanation, and
    ``details`` carries plain data for protocols that can say more (JMAP lists
    of bad properties, ids that were not found).
    """

    def __init__(self, kind: Kind, text: str = "", **details: object) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text or kind.value
        self.details = details

    def __str__(self) -> str:
        return f"{self.kind.name}: {self.text}"

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling: units of work may run in another process."""
        return (_rebuild, (self.kind, self.text, self.details))

    @property
    def temporary(self) -> bool:
        """True when the same request may succeed later."""
        return self.kind in TEMPORARY


def _rebuild(kind: Kind, text: str, details: dict[str, object]) -> MailError:
    return MailError(kind, text, **details)
