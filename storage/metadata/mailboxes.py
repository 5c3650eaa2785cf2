"""Mailboxes: list, create, change; destroying one is in ``copies``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sqlalchemy import case, func, insert, select, update

from mailserverd.core.errors import Kind, MailError
from storage.metadata import boxes
from storage.metadata.accounts import (
    STATE,
    STATE_COLUMNS,
    found,
    read_state,
    release,
    take,
)
from storage.metadata.boxes import MAX_DEPTH, MAX_MAILBOXES, ROLES, SEPARATOR
from storage.metadata.sql import Sql, inline, p
from storage.metadata.tables import ACCOUNT, MAILBOX, SUBSCRIPTION
from storage.model import (
    AccountState,
    Mailbox,
    MailboxList,
    MailboxPatch,
    NewMailbox,
)

if TYPE_CHECKING:
    from storage.api import Tx

_c, _s = MAILBOX.c, SUBSCRIPTION.c
_one = (_c.account_id == p("a"), _c.mailbox_id == p("box"))
CHANGE = Sql(
    update(MAILBOX)
    .where(*_one)
    .values(
        name=p("new_name"),
        parent_id=p("new_parent"),
        role=p("new_role"),
        subscribed=p("new_subscribed"),
        sort_order=p("new_order"),
        modseq=p("m"),
        properties_modseq=p("m"),
    )
)
STATE_AND_COUNT = Sql(
    select(
        *STATE_COLUMNS,
        case(
            (
                ACCOUNT.c.modseq > p("since"),
                select(func.count())
                .select_from(MAILBOX)
                .where(_c.account_id == p("a"))
                .scalar_subquery(),
            ),
            else_=-1,  # nothing changed
        ),
    ).where(ACCOUNT.c.account_id == p("a"))
)
SUBSCRIPTIONS = Sql(select(_s.path).where(_s.account_id == p("a")))
SUBSCRIBE = Sql(insert(SUBSCRIPTION), ("account_id", "path"))


def list_all(tx: Tx, account: int, _: None) -> MailboxList:
    """Return all mailboxes at one modseq, in path order."""
    state = read_state(tx, account)
    return MailboxList(state, boxes.ordered(boxes.load(tx, account)))


@inline
def list_few(tx: Tx, account: int, most: int) -> MailboxList | None:
    """Do as ``list_all``, on the loop; None when there are more than ``most``."""
    params = {"a": account, "n": most + 1}
    state, rows = tx.each((STATE, params), (boxes.SOME, params))
    if len(rows) > most:
        return None
    known = boxes.joined(rows)
    return MailboxList(
        AccountState(*found(state[0] if state else None)), boxes.ordered(known)
    )


@inline
def list_again(tx: Tx, account: int, before: MailboxList) -> MailboxList | None:
    """Do as ``list_all``, on the loop, from what is known; None when that is little.

    Only mailboxes whose counters changed are read: of hundreds of them usually one.
    ``before`` itself is returned when nothing changed.
    """
    since = before.state.modseq
    params = {"a": account, "since": since}
    head, rows = tx.each((STATE_AND_COUNT, params), (boxes.CHANGED, params))
    *columns, count = found(head[0] if head else None)
    state = AccountState(*columns)
    if state == before.state:
        return before
    if state.epoch != before.state.epoch or state.modseq < since:
        return None
    if state.modseq == since:  # a quota
        return MailboxList(state, before.mailboxes)
    known = {box.mailbox_id: box for box in before.mailboxes}
    if count != len(known):  # some were destroyed, or made
        return None
    fresh = boxes.changed(rows, known, since)
    if fresh is None:
        return None
    known |= fresh
    return MailboxList(state, tuple(known.values()))


def create(tx: Tx, account: int, new: NewMailbox) -> tuple[Mailbox, int]:
    """Create a mailbox: ALREADY_EXISTS, NOT_FOUND (parent), INVALID, LIMIT.

    Returns it and the modseq, as every writing unit here does.
    """
    modseq = take(tx, account)
    existing = boxes.load(tx, account)
    new = dataclasses.replace(new, name=boxes.check_name(new.name))
    made = _create(tx, account, modseq, existing, new)
    return made, modseq


def _create(
    tx: Tx, account: int, modseq: int, existing: dict[int, Mailbox], new: NewMailbox
) -> Mailbox:
    if len(existing) >= MAX_MAILBOXES:
        raise MailError(Kind.LIMIT, "too many mailboxes")
    _check_place(existing, new.name, new.parent_id, 0)
    _check_role(existing, new.role, 0)
    mailbox_id, validity = boxes.insert_box(tx, account, modseq, new)
    parent = existing[new.parent_id] if new.parent_id is not None else None
    made = Mailbox(
        mailbox_id,
        new.name,
        new.parent_id,
        f"{parent.path}{SEPARATOR}{new.name}" if parent else new.name,
        new.role,
        new.subscribed,
        new.sort_order,
        validity,
        uidnext=1,
        highestmodseq=modseq,
        modseq=modseq,
        created_modseq=modseq,
        properties_modseq=modseq,
        messages=0,
        unseen=0,
        deleted=0,
        size=0,
        total_emails=0,
        unread_emails=0,
        total_threads=0,
        unread_threads=0,
    )
    tx.run(boxes.UNSUBSCRIBE, {"a": account, "wanted": made.path})
    existing[mailbox_id] = made
    return made


def _check_place(
    existing: dict[int, Mailbox], name: str, parent_id: int | None, but: int
) -> None:
    """Refuse a parent that does not exist or is too deep, and a name that is taken."""
    depth = 1
    if parent_id is not None:
        parent = existing.get(parent_id)
        if parent is None:
            raise MailError(Kind.NOT_FOUND, "no such parent mailbox")
        depth += parent.path.count(SEPARATOR) + 1
    if depth > MAX_DEPTH:
        raise MailError(Kind.INVALID, "mailboxes are nested too deeply")
    for box in existing.values():
        if box.parent_id == parent_id and box.mailbox_id != but:
            same_inbox = box.name == "INBOX" and name.upper() == "INBOX"
            if box.name == name or (parent_id is None and same_inbox):
                raise MailError(
                    Kind.ALREADY_EXISTS, "mailbox exists", mailbox_id=box.mailbox_id
                )
    if parent_id is None and name != "INBOX" and name.upper() == "INBOX":
        raise MailError(Kind.INVALID, "INBOX has one spelling")


def _check_role(existing: dict[int, Mailbox], role: str, but: int) -> None:
    if not role:
        return
    if role not in ROLES:
        raise MailError(Kind.INVALID, "unknown mailbox role", properties=["role"])
    for box in existing.values():
        if box.role == role and box.mailbox_id != but:
            raise MailError(
                Kind.INVALID, "another mailbox has this role", properties=["role"]
            )


def create_path(tx: Tx, account: int, args: tuple[str, str]) -> tuple[Mailbox, int]:
    """IMAP CREATE (RFC 9051 section 6.3.4): (path, role), missing parents too."""
    path, role = args
    parts = boxes.split_path(path)
    modseq = take(tx, account)
    existing = boxes.load(tx, account)
    found = boxes.find_path(existing.values(), parts)
    if found is not None:
        raise MailError(
            Kind.ALREADY_EXISTS, "mailbox exists", mailbox_id=found.mailbox_id
        )
    wanted = {row[0] for row in tx.all(SUBSCRIPTIONS, {"a": account})}
    made = make_path(tx, account, modseq, existing, (parts, role, wanted))
    return made, modseq


def make_path(
    tx: Tx,
    account: int,
    modseq: int,
    existing: dict[int, Mailbox],
    what: tuple[list[str], str, set[str]],
) -> Mailbox:
    """Make the mailbox with these components, and the parents it lacks.

    ``what`` is (components, role, paths subscribed in advance).
    """
    parts, role, wanted = what
    parent: Mailbox | None = None
    for depth in range(1, len(parts) + 1):
        box = boxes.find_path(existing.values(), parts[:depth])
        if box is None:
            last = depth == len(parts)
            new = NewMailbox(
                parts[depth - 1],
                parent.mailbox_id if parent else None,
                role if last else "",
                subscribed=SEPARATOR.join(parts[:depth]) in wanted,
            )
            box = _create(tx, account, modseq, existing, new)
        parent = box
    if parent is None:
        raise MailError(Kind.INVALID, "mailbox name is empty")
    return parent


def change(tx: Tx, account: int, patch: MailboxPatch) -> tuple[Mailbox, int, bool]:
    """Change properties; returns (mailbox, modseq, whether anything changed).

    NOT_FOUND, ALREADY_EXISTS, FORBIDDEN (INBOX keeps name, place and role), INVALID.
    """
    modseq = take(tx, account)
    existing = boxes.load(tx, account)
    box = existing.get(patch.mailbox_id)
    if box is None:
        raise boxes.no_mailbox()
    new = _patched(box, patch)
    if new == box:
        return box, release(tx, account), False
    check_change(existing, box, new)
    apply(tx, account, modseq, new)
    return boxes.load(tx, account)[box.mailbox_id], modseq, True


def _patched(box: Mailbox, patch: MailboxPatch) -> Mailbox:
    parent = box.parent_id
    if patch.parent_id is not None:
        parent = None if patch.parent_id == -1 else patch.parent_id
    return dataclasses.replace(
        box,
        name=box.name if patch.name is None else boxes.check_name(patch.name),
        parent_id=parent,
        role=box.role if patch.role is None else patch.role,
        subscribed=box.subscribed if patch.subscribed is None else patch.subscribed,
        sort_order=box.sort_order if patch.sort_order is None else patch.sort_order,
    )


def check_change(existing: dict[int, Mailbox], box: Mailbox, new: Mailbox) -> None:
    """Refuse a change of name, place or role that breaks a rule."""
    moved = (new.name, new.parent_id) != (box.name, box.parent_id)
    if new.role != box.role:
        if "inbox" in {new.role, box.role}:
            raise MailError(Kind.FORBIDDEN, "INBOX keeps its role", properties=["role"])
        _check_role(existing, new.role, box.mailbox_id)
    if not moved:
        return
    if box.role == "inbox":
        raise MailError(
            Kind.FORBIDDEN, "INBOX keeps its name and place", properties=["name"]
        )
    _check_place(existing, new.name, new.parent_id, box.mailbox_id)
    above = new.parent_id
    while above is not None:
        if above == box.mailbox_id:
            raise MailError(
                Kind.INVALID,
                "a mailbox cannot be inside itself",
                properties=["parentId"],
            )
        above = existing[above].parent_id
    _check_depth(existing, box, new)


def _check_depth(existing: dict[int, Mailbox], box: Mailbox, new: Mailbox) -> None:
    """Refuse a move that takes what is below the mailbox too deep."""
    below = max(
        other.path.count(SEPARATOR)
        for other in existing.values()
        if other is box or other.path.startswith(box.path + SEPARATOR)
    ) - box.path.count(SEPARATOR)
    parent = existing[new.parent_id] if new.parent_id is not None else None
    above = parent.path.count(SEPARATOR) + 1 if parent else 0
    if above + 1 + below > MAX_DEPTH:
        raise MailError(Kind.INVALID, "mailboxes are nested too deeply")


def apply(tx: Tx, account: int, modseq: int, new: Mailbox) -> None:
    """Write a mailbox's properties; the account is taken, the change checked."""
    tx.run(
        CHANGE,
        {
            "a": account,
            "box": new.mailbox_id,
            "new_name": new.name,
            "new_parent": new.parent_id or 0,
            "new_role": new.role,
            "new_subscribed": int(new.subscribed),
            "new_order": new.sort_order,
            "m": modseq,
        },
    )
    tx.run(boxes.TOUCHED, {"a": account})


def subscribe(tx: Tx, account: int, args: tuple[str, bool]) -> tuple[int, bool]:
    """SUBSCRIBE and UNSUBSCRIBE (RFC 9051 section 6.3.7): (path, on).

    A name without a mailbox is remembered too.  Returns (modseq, changed).
    """
    path, on = args
    parts = boxes.split_path(path)
    box = boxes.find_path(boxes.load(tx, account).values(), parts)
    if box is not None:
        patch = MailboxPatch(box.mailbox_id, subscribed=on)
        _, modseq, changed = change(tx, account, patch)
        return modseq, changed
    name = SEPARATOR.join(parts)
    modseq = take(tx, account)
    removed = tx.run(boxes.UNSUBSCRIBE, {"a": account, "wanted": name})
    if on:
        tx.run(SUBSCRIBE, {"account_id": account, "path": name})
    if removed == int(on):
        return release(tx, account), False
    return modseq, True


def subscriptions(tx: Tx, account: int, _: None) -> tuple[str, ...]:
    """Return subscribed paths, of mailboxes that exist or not."""
    paths = {row[0] for row in tx.all(SUBSCRIPTIONS, {"a": account})}
    existing = boxes.load(tx, account).values()
    return tuple(sorted(paths | {box.path for box in existing if box.subscribed}))
