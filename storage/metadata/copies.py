"""COPY, MOVE, EXPUNGE, and mailboxes that go with what they hold."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sqlalchemy import delete

from mailserverd.core.errors import Kind, MailError
from storage.metadata import boxes
from storage.metadata import edit_sql as sql
from storage.metadata.accounts import read_state
from storage.metadata.edit import Edit, Placed
from storage.metadata.mailboxes import (
    SUBSCRIBE,
    SUBSCRIPTIONS,
    apply,
    check_change,
    make_path,
)
from storage.metadata.sql import Sql, heavy, inline, p
from storage.metadata.tables import (
    EXPUNGED,
    MAILBOX,
    MAILBOX_THREAD,
    TYPE_MAILBOX,
)
from storage.model import CopyResult, Mailbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.api import Tx

CopyArgs = tuple[int, "Sequence[int]", int]  # source mailbox, uids, target mailbox

_gone = (
    Sql(
        delete(table).where(
            table.c.account_id == p("a"), table.c.mailbox_id == p("box")
        )
    )
    for table in (MAILBOX, MAILBOX_THREAD, EXPUNGED)
)
DROP_BOX, DROP_THREADS, DROP_EXPUNGED = _gone


def copy(tx: Tx, account: int, args: CopyArgs) -> CopyResult:
    """Copy messages (RFC 9051 section 6.4.7): NOT_FOUND (mailbox), OVER_QUOTA.

    An email that the target lacks gets a membership there and keeps its id; one
    that it holds becomes a new email with the same content and thread.
    """
    source, uids, target = args
    edit = Edit(tx, account)
    edit.box(target)
    placed = []
    for uid, email, _ in edit.in_box(source, uids):
        deleted = email.members[source].deleted
        new = edit.duplicate(email) if target in email.members else email
        placed.append((uid, edit.place(new, target, deleted=deleted)))
    _check_quota(edit)
    return _result(edit, target, placed)


@heavy
def copy_many(tx: Tx, account: int, args: CopyArgs) -> CopyResult:
    """Do as ``copy``, in the writer's thread: for hundreds of messages."""
    return copy(tx, account, args)


def move(tx: Tx, account: int, args: CopyArgs) -> CopyResult:
    """Move messages (RFC 6851): NOT_FOUND (mailbox).

    The email keeps its id; in the target it has a new uid.
    """
    source, uids, target = args
    edit = Edit(tx, account)
    edit.box(target)
    found = edit.in_box(source, uids)
    return _result(edit, target, _move(edit, found, source, target))


@heavy
def move_many(tx: Tx, account: int, args: CopyArgs) -> CopyResult:
    """Do as ``move``, in the writer's thread: for hundreds of messages."""
    return move(tx, account, args)


def _move(
    edit: Edit, found: Sequence[Placed], source: int, target: int
) -> list[tuple[int, int]]:
    placed = []
    for uid, email, _ in found:
        deleted = email.members.pop(source).deleted
        new = edit.duplicate(email) if target in email.members else email
        placed.append((uid, edit.place(new, target, deleted=deleted)))
    return placed


@heavy
def take_back(tx: Tx, account: int, args: tuple[int, Sequence[int]]) -> int:
    """Undo a part of a COPY that failed later: (mailbox, uids) -> modseq."""
    mailbox_id, uids = args
    edit = Edit(tx, account)
    for placed in edit.in_box(mailbox_id, uids):
        del placed.email.members[mailbox_id]
    return edit.finish()[0]


def _check_quota(edit: Edit) -> None:
    more = sum(email.size for email in edit.emails.values() if email.source)
    state = read_state(edit.tx, edit.account)
    if more and state.quota_limit and state.quota_used + more > state.quota_limit:
        raise MailError(Kind.OVER_QUOTA, "mailbox is full")


def _result(edit: Edit, target: int, placed: Sequence[tuple[int, int]]) -> CopyResult:
    modseq, _ = edit.finish()
    return CopyResult(
        edit.box(target)[6],
        tuple(uid for uid, _ in placed),
        tuple(uid for _, uid in placed),
        modseq,
    )


# --- EXPUNGE --------------------------------------------------------------------


def deleted_uids(tx: Tx, account: int, mailbox_id: int) -> tuple[int, ...]:
    """Return the uids of a mailbox that are marked ``\\Deleted``, in order."""
    boxes.get(tx, account, mailbox_id)
    params = {"a": account, "box": mailbox_id}
    return tuple(row[0] for row in tx.all(sql.DELETED_UIDS, params))


@inline
def has_deleted(tx: Tx, account: int, mailbox_id: int) -> int:
    """Return how many memberships are marked ``\\Deleted``; NOT_FOUND."""
    count: int = boxes.get(tx, account, mailbox_id)[14]
    return count


def expunge(
    tx: Tx, account: int, args: tuple[int, Sequence[int]]
) -> tuple[tuple[int, ...], int]:
    """Remove those of (mailbox, uids) that are ``\\Deleted``; returns (uids, modseq).

    An email whose last membership goes is destroyed, with its content's owner.
    """
    mailbox_id, uids = args
    edit = Edit(tx, account)
    removed = []
    for uid, email, _ in edit.in_box(mailbox_id, uids):
        if email.members[mailbox_id].deleted:
            del email.members[mailbox_id]
            removed.append(uid)
    modseq, _ = edit.finish()
    return tuple(removed), modseq


@heavy
def expunge_many(
    tx: Tx, account: int, args: tuple[int, Sequence[int]]
) -> tuple[tuple[int, ...], int]:
    """Do as ``expunge``, in the writer's thread: for hundreds of messages."""
    return expunge(tx, account, args)


# --- mailboxes that go ------------------------------------------------------------


@heavy
def empty_some(tx: Tx, account: int, args: tuple[int, int]) -> tuple[int, int]:
    """Remove up to ``limit`` messages: (mailbox, limit) -> (removed, modseq)."""
    mailbox_id, limit = args
    edit = Edit(tx, account)
    _deletable(tx, account, mailbox_id)
    rows = _take_out(edit, mailbox_id, limit)
    modseq, _ = edit.finish()
    return rows, modseq


def _take_out(edit: Edit, mailbox_id: int, limit: int) -> int:
    found = edit.first(mailbox_id, limit)
    for placed in found:
        del placed.email.members[mailbox_id]
    return len(found)


def _deletable(tx: Tx, account: int, mailbox_id: int) -> Mailbox:
    existing = boxes.load(tx, account)
    box = existing.get(mailbox_id)
    if box is None:
        raise boxes.no_mailbox()
    if box.role == "inbox":
        raise MailError(Kind.FORBIDDEN, "INBOX cannot be deleted")
    if any(other.parent_id == mailbox_id for other in existing.values()):
        raise MailError(Kind.HAS_CHILDREN)
    return box


@heavy
def destroy_mailbox(tx: Tx, account: int, args: tuple[int, bool]) -> int:
    """Destroy a mailbox: (id, remove_emails); returns the modseq.

    NOT_FOUND, FORBIDDEN (INBOX), HAS_CHILDREN; NOT_EMPTY when it shows emails and
    they are not to be removed.  Emails that lie elsewhere too stay there.  A
    subscription outlives the mailbox (RFC 9051 section 6.3.7).
    """
    mailbox_id, remove_emails = args
    edit = Edit(tx, account)
    box = _deletable(tx, account, mailbox_id)
    if box.total_emails and not remove_emails:
        raise MailError(Kind.NOT_EMPTY)
    _take_out(edit, mailbox_id, box.messages)
    edit.keep = True
    modseq, _ = edit.finish()
    params = {"a": account, "box": mailbox_id}
    for statement in (DROP_BOX, DROP_THREADS, DROP_EXPUNGED):
        tx.run(statement, params)
    tx.run(
        sql.BURY,
        (account, TYPE_MAILBOX, modseq, mailbox_id, box.created_modseq, 0, int(tx.now)),
    )
    tx.run(boxes.TOUCHED, params)
    if box.subscribed:
        tx.run(boxes.UNSUBSCRIBE, {"a": account, "wanted": box.path})
        tx.run(SUBSCRIBE, {"account_id": account, "path": box.path})
    return modseq


@heavy
def rename_path(tx: Tx, account: int, args: tuple[str, str]) -> tuple[Mailbox, int]:
    """IMAP RENAME (RFC 9051 section 6.3.6): (old path, new path), parents are made.

    Renaming INBOX moves its messages to a new mailbox and leaves INBOX empty.
    NOT_FOUND, ALREADY_EXISTS, INVALID (into itself, name).
    """
    old, new = map(boxes.split_path, args)
    edit = Edit(tx, account)
    edit.keep = True
    existing = boxes.load(tx, account)
    box = boxes.find_path(existing.values(), old)
    if box is None:
        raise boxes.no_mailbox()
    if boxes.find_path(existing.values(), new) is not None:
        raise MailError(Kind.ALREADY_EXISTS, "mailbox exists")
    if new[: len(old)] == old and box.role != "inbox":
        raise MailError(Kind.INVALID, "a mailbox cannot be inside itself")
    if box.role == "inbox":
        made = _new_box(edit, existing, new)
        found = edit.first(box.mailbox_id, box.messages)
        _move(edit, found, box.mailbox_id, made.mailbox_id)
        edit.finish()
        return boxes.load(tx, account)[made.mailbox_id], edit.modseq
    return _rename(edit, existing, box, new), edit.modseq


def _new_box(edit: Edit, existing: dict[int, Mailbox], parts: list[str]) -> Mailbox:
    paths = {row[0] for row in edit.tx.all(SUBSCRIPTIONS, {"a": edit.account})}
    what = (parts, "", paths)
    return make_path(edit.tx, edit.account, edit.modseq, existing, what)


def _rename(
    edit: Edit, existing: dict[int, Mailbox], box: Mailbox, parts: list[str]
) -> Mailbox:
    parent = _new_box(edit, existing, parts[:-1]) if len(parts) > 1 else None
    parent_id = parent.mailbox_id if parent else None
    new = dataclasses.replace(box, name=parts[-1], parent_id=parent_id)
    check_change(existing, box, new)
    apply(edit.tx, edit.account, edit.modseq, new)
    return boxes.load(edit.tx, edit.account)[box.mailbox_id]
