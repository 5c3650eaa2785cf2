"""Keywords and memberships as protocols change them: STORE, Email/set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from storage.metadata.accounts import read_state
from storage.metadata.edit import Edit, Edited, Placed
from storage.metadata.keywords import join_keywords, split_keywords
from storage.metadata.sql import heavy
from storage.model import (
    DELETED_BIT,
    BatchResult,
    EmailPatch,
    FlagChange,
    StoreFlags,
    StoreResult,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.api import Tx


class _Combine:
    """A flag change of STORE as a function of an email's flags."""

    def __init__(self, args: StoreFlags) -> None:
        bits, words = split_keywords(args.flags.keywords)
        self._bits = bits | args.flags.system & ~DELETED_BIT
        self._words = words
        self._how = args.change
        self._deleted = args.deleted
        self._known: dict[str, str] = {}

    def system(self, before: int) -> int:
        """Return the system bits afterwards."""
        match self._how:
            case FlagChange.ADD:
                return before | self._bits
            case FlagChange.REMOVE:
                return before & ~self._bits
            case _:
                return self._bits

    def keywords(self, before: str) -> str:
        """Return the joined keywords afterwards."""
        after = self._known.get(before)
        if after is None:
            after = self._known[before] = self._combined(before)
        return after

    def _combined(self, before: str) -> str:
        match self._how:
            case FlagChange.ADD:
                return join_keywords(self._words.union(before.split()))
            case FlagChange.REMOVE:
                return join_keywords(set(before.split()) - self._words)
            case _:
                return join_keywords(self._words)

    def deleted(self, before: int) -> int:
        """Return whether the membership is ``\\Deleted`` afterwards."""
        if self._how is FlagChange.SET:
            return int(self._deleted)
        if not self._deleted:
            return before
        return int(self._how is FlagChange.ADD)


def store_flags(tx: Tx, account: int, args: StoreFlags) -> StoreResult:
    """Change flags of the messages with these uids; unknown uids are left out.

    A keyword belongs to the email and changes in all its mailboxes, ``\\Deleted``
    to the membership.  NOT_FOUND (mailbox), INVALID, LIMIT (keywords).
    """
    combine = _Combine(args)
    edit = Edit(tx, account)
    box, since = args.mailbox_id, args.unchanged_since
    modified = []
    touched: list[Placed] = []
    for placed in edit.in_box(box, args.uids):
        if since is not None and placed.modseq > since:
            modified.append(placed.uid)
            continue
        email = placed.email
        email.system = combine.system(email.system)
        email.keywords = combine.keywords(email.keywords)
        member = email.members[box]
        deleted = combine.deleted(member.deleted)
        if deleted != member.deleted:
            email.members[box] = member._replace(deleted=deleted)
        if email.changed:
            touched.append(placed)
    modseq, _ = edit.finish()
    changed = tuple(_row(uid, email, box, modseq) for uid, email, _ in touched)
    previous = tuple(placed.modseq for placed in touched)
    return StoreResult(modseq, changed, previous, tuple(modified))


def _row(
    uid: int, email: Edited, box: int, modseq: int
) -> tuple[int, int, int, int, tuple[str, ...]]:
    bits = email.system | (DELETED_BIT if email.members[box].deleted else 0)
    return uid, email.email_id, modseq, bits, tuple(email.keywords.split())


@heavy
def store_many(tx: Tx, account: int, args: StoreFlags) -> StoreResult:
    """Do as ``store_flags``, in the writer's thread: for hundreds of messages."""
    return store_flags(tx, account, args)


# --- Email/set ------------------------------------------------------------------


def update(
    tx: Tx, account: int, args: tuple[Sequence[EmailPatch], int | None]
) -> BatchResult:
    """Apply patches (RFC 8621 section 4.6): (patches, if_modseq).

    STATE_MISMATCH when ``if_modseq`` is not the Email state; what fails alone is
    in ``errors`` and leaves its email as it is.
    """
    patches, if_modseq = args
    check_state(tx, account, if_modseq)
    edit = Edit(tx, account)
    edit.load([patch.email_id for patch in patches])
    known = set[int]()
    errors = []
    for patch in patches:
        try:
            _patch(edit, patch, known)
        except MailError as error:
            errors.append((patch.email_id, (error.kind.name, error.text)))
    modseq, _ = edit.finish()
    failed = {email_id for email_id, _ in errors}
    done = tuple(p.email_id for p in patches if p.email_id not in failed)
    return BatchResult(modseq, tuple(errors), updated=done)


@heavy
def update_many(
    tx: Tx, account: int, args: tuple[Sequence[EmailPatch], int | None]
) -> BatchResult:
    """Do as ``update``, in the writer's thread: for hundreds of emails."""
    return update(tx, account, args)


def check_state(tx: Tx, account: int, if_modseq: int | None) -> None:
    """Raise STATE_MISMATCH unless the Email state is ``if_modseq`` (or None)."""
    if if_modseq is not None and read_state(tx, account).email != if_modseq:
        raise MailError(Kind.STATE_MISMATCH)


def _shown(edit: Edit, email_id: int) -> Edited:
    email = edit.emails.get(email_id)
    if email is None or not email.shown:
        raise MailError(Kind.NOT_FOUND, "no such email")
    return email


def _patch(edit: Edit, patch: EmailPatch, known: set[int]) -> None:
    email = _shown(edit, patch.email_id)
    system, words = _patched_keywords(email, patch)
    joined = join_keywords(words)
    wanted = _patched_mailboxes(email, patch)
    current = {box for box, member in email.members.items() if not member.deleted}
    if not wanted:
        raise MailError(
            Kind.INVALID, "an email needs a mailbox", properties=["mailboxIds"]
        )
    for box in wanted - known - current:
        edit.box(box)
        known.add(box)
    email.system, email.keywords = system, joined
    for box in current - wanted:
        del email.members[box]
    for box in sorted(wanted - current):
        member = email.members.get(box)
        if member is None:
            edit.place(email, box)
        else:
            email.members[box] = member._replace(deleted=0)


def _patched_keywords(email: Edited, patch: EmailPatch) -> tuple[int, set[str]]:
    system, words = email.system, set(email.keywords.split())
    if patch.set_keywords is not None:
        system, only = split_keywords(patch.set_keywords)
        words = set(only)
    bits, more = split_keywords(patch.add_keywords)
    system, words = system | bits, words | more
    bits, less = split_keywords(patch.remove_keywords)
    return system & ~bits, words - less


def _patched_mailboxes(email: Edited, patch: EmailPatch) -> set[int]:
    if patch.set_mailboxes is not None:
        boxes = set(patch.set_mailboxes)
    else:
        boxes = {box for box, member in email.members.items() if not member.deleted}
    return (boxes | set(patch.add_mailboxes)) - set(patch.remove_mailboxes)


def destroy(
    tx: Tx, account: int, args: tuple[Sequence[int], int | None]
) -> BatchResult:
    """Destroy emails, wherever they lie: (email ids, if_modseq).

    STATE_MISMATCH; NOT_FOUND per email in ``errors``.
    """
    wanted, if_modseq = args
    check_state(tx, account, if_modseq)
    edit = Edit(tx, account)
    edit.load(wanted)
    errors = []
    done = []
    for email_id in wanted:
        try:
            _shown(edit, email_id).members.clear()
            done.append(email_id)
        except MailError as error:
            errors.append((email_id, (error.kind.name, error.text)))
    modseq, _ = edit.finish()
    return BatchResult(modseq, tuple(errors), destroyed=tuple(done))


@heavy
def destroy_many(
    tx: Tx, account: int, args: tuple[Sequence[int], int | None]
) -> BatchResult:
    """Do as ``destroy``, in the writer's thread: for hundreds of emails."""
    return destroy(tx, account, args)
