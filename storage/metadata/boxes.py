"""Mailbox rows: reading them with their paths, checking names, making new ones."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from sqlalchemy import insert, or_, select, update

from mailserverd.core.errors import Kind, MailError
from storage.metadata.sql import Sql, p
from storage.metadata.tables import ACCOUNT, MAILBOX, SUBSCRIPTION
from storage.model import Mailbox, NewMailbox

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from storage.api import Row, Tx

ROLES = {  # role -> name when the daemon makes it (RFC 6154, RFC 8621 section 2)
    "inbox": "INBOX",
    "drafts": "Drafts",
    "sent": "Sent",
    "trash": "Trash",
    "junk": "Junk",
    "archive": "Archive",
    "important": "Important",
    "all": "All Mail",
    "flagged": "Flagged",
}
STANDARD = ("inbox", "drafts", "sent", "trash", "junk", "archive")
MAX_NAME = 255  # octets of UTF-8
MAX_MAILBOXES = 5000
MAX_DEPTH = 20
SEPARATOR = "/"

_a, _c = ACCOUNT.c, MAILBOX.c
_mine = _c.account_id == p("a")
COLUMNS = (
    _c.mailbox_id,
    _c.name,
    _c.parent_id,
    _c.role,
    _c.subscribed,
    _c.sort_order,
    _c.uidvalidity,
    _c.uidnext,
    _c.highestmodseq,
    _c.modseq,
    _c.created_modseq,
    _c.properties_modseq,
    _c.messages,
    _c.unseen,
    _c.deleted,
    _c.size,
    _c.total_emails,
    _c.unread_emails,
    _c.total_threads,
    _c.unread_threads,
)
ALL = Sql(select(*COLUMNS).where(_mine))
SOME = Sql(select(*COLUMNS).where(_mine).limit(p("n")))
CHANGED = Sql(
    select(*COLUMNS).where(
        _mine,
        p("since") < select(_a.modseq).where(_a.account_id == p("a")).scalar_subquery(),
        or_(_c.modseq > p("since"), _c.highestmodseq > p("since")),
    )
)
ONE = Sql(select(*COLUMNS).where(_mine, _c.mailbox_id == p("box")))
BY_ROLE = Sql(select(_c.mailbox_id).where(_mine, _c.role == p("wanted")))
NAMED = Sql(
    select(_c.mailbox_id).where(
        _mine, _c.parent_id == p("parent"), _c.name == p("wanted")
    )
)
INSERT = Sql(
    insert(MAILBOX),
    (
        "account_id",
        "mailbox_id",
        "parent_id",
        "name",
        "role",
        "subscribed",
        "sort_order",
        "uidvalidity",
        "uidnext",
        "highestmodseq",
        "modseq",
        "created_modseq",
        "properties_modseq",
    ),
)
NEXT_IDS = Sql(
    update(ACCOUNT)
    .where(_a.account_id == p("a"))
    .values(
        last_mailbox=_a.last_mailbox + 1,
        last_uidvalidity=p("validity"),
        mailbox_modseq=_a.modseq,
    )
    .returning(_a.last_mailbox)
)
LAST_UIDVALIDITY = Sql(select(_a.last_uidvalidity).where(_a.account_id == p("a")))
SET_INBOX = Sql(
    update(ACCOUNT).where(_a.account_id == p("a")).values(inbox_id=p("box"))
)
TOUCHED = Sql(
    update(ACCOUNT).where(_a.account_id == p("a")).values(mailbox_modseq=_a.modseq)
)
_s = SUBSCRIPTION.c
UNSUBSCRIBE = Sql(
    SUBSCRIPTION.delete().where(_s.account_id == p("a"), _s.path == p("wanted"))
)


def load(tx: Tx, account: int) -> dict[int, Mailbox]:
    """Return all mailboxes of an account by id, parents' paths joined in."""
    return joined(tx.all(ALL, {"a": account}))


def joined(all_rows: Iterable[Row]) -> dict[int, Mailbox]:
    """Return mailboxes by id from all rows of an account."""
    rows = {row[0]: row for row in all_rows}
    paths: dict[int, str] = {}
    return {key: _mailbox(row, _path(key, rows, paths)) for key, row in rows.items()}


def changed(
    rows: Iterable[Row], known: Mapping[int, Mailbox], since: int
) -> dict[int, Mailbox] | None:
    """Return the mailboxes whose counters changed, from what ``CHANGED`` found.

    None when more than counters changed since ``known`` was read: then paths or the
    order may be others.
    """
    found: dict[int, Mailbox] = {}
    for row in rows:
        if row[11] > since or row[0] not in known:  # its properties
            return None
        found[row[0]] = _mailbox(row, known[row[0]].path)
    return found


def ordered(boxes: Mapping[int, Mailbox]) -> tuple[Mailbox, ...]:
    """Return mailboxes in path order, INBOX and what is below it first."""
    return tuple(sorted(boxes.values(), key=_order))


def get(tx: Tx, account: int, mailbox_id: int) -> Row:
    """Return one row (``COLUMNS``), or raise NOT_FOUND."""
    row = tx.one(ONE, {"a": account, "box": mailbox_id})
    if row is None:
        raise no_mailbox()
    return row


def existing(rows: Sequence[Row]) -> Row:
    """Return the row that ``ONE`` found, or raise NOT_FOUND."""
    if not rows:
        raise no_mailbox()
    return rows[0]


def no_mailbox() -> MailError:
    """Return the error for a mailbox that the account does not have."""
    return MailError(Kind.NOT_FOUND, "no such mailbox")


def _order(box: Mailbox) -> tuple[bool, list[str]]:
    parts = box.path.split(SEPARATOR)
    return parts[0] != "INBOX", parts


def _path(key: int, rows: Mapping[int, Row], paths: dict[int, str]) -> str:
    known = paths.get(key)
    if known is None:
        row = rows[key]
        above = row[2]
        known = row[1]
        if above in rows:
            known = f"{_path(above, rows, paths)}{SEPARATOR}{known}"
        paths[key] = known
    return known


def _mailbox(row: Row, path: str) -> Mailbox:
    key, name, parent, role, subscribed, *rest = row
    return Mailbox(key, name, parent or None, path, role, bool(subscribed), *rest)


def check_name(name: str) -> str:
    """Return the name in NFC (RFC 5198); INVALID when no mailbox may be called so."""
    name = unicodedata.normalize("NFC", name)
    try:
        octets = len(name.encode())
    except UnicodeEncodeError:
        raise MailError(Kind.INVALID, "mailbox name is not valid Unicode") from None
    if not name or octets > MAX_NAME:
        raise MailError(Kind.INVALID, f"mailbox name must have 1 to {MAX_NAME} octets")
    if SEPARATOR in name or any(map(_forbidden, name)):
        raise MailError(Kind.INVALID, "mailbox name holds a forbidden character")
    return name


def _forbidden(char: str) -> bool:
    return unicodedata.category(char) in {"Cc", "Zl", "Zp", "Cs"}


def split_path(path: str) -> list[str]:
    """Return the checked components of an IMAP mailbox name; INBOX in any case."""
    parts = [check_name(part) for part in path.removesuffix(SEPARATOR).split(SEPARATOR)]
    if parts[0].upper() == "INBOX":
        parts[0] = "INBOX"
    return parts


def find_path(boxes: Iterable[Mailbox], parts: list[str]) -> Mailbox | None:
    """Return the mailbox with this path, or None."""
    path = SEPARATOR.join(parts)
    return next((box for box in boxes if box.path == path), None)


def insert_box(tx: Tx, account: int, modseq: int, new: NewMailbox) -> tuple[int, int]:
    """Insert a checked mailbox; the account is taken.  Returns (id, uidvalidity)."""
    last = tx.one(LAST_UIDVALIDITY, {"a": account})
    validity = max(int(tx.now), last[0] + 1 if last else 1)
    ids = tx.one(NEXT_IDS, {"a": account, "validity": validity})
    mailbox_id: int = ids[0] if ids else 0
    tx.run(
        INSERT,
        {
            "account_id": account,
            "mailbox_id": mailbox_id,
            "parent_id": new.parent_id or 0,
            "name": new.name,
            "role": new.role,
            "subscribed": int(new.subscribed),
            "sort_order": new.sort_order,
            "uidvalidity": validity,
            "uidnext": 1,
            "highestmodseq": modseq,
            "modseq": modseq,
            "created_modseq": modseq,
            "properties_modseq": modseq,
        },
    )
    if new.role == "inbox":
        tx.run(SET_INBOX, {"a": account, "box": mailbox_id})
    return mailbox_id, validity


def by_role(tx: Tx, account: int, modseq: int, role: str) -> int:
    """Return the mailbox that has a role, making it when there is none."""
    if role not in ROLES:
        raise MailError(Kind.INVALID, "unknown mailbox role")
    row = tx.one(BY_ROLE, {"a": account, "wanted": role})
    if row is not None:
        found: int = row[0]
        return found
    name, number = ROLES[role], 2
    while tx.one(NAMED, {"a": account, "parent": 0, "wanted": name}):
        name, number = f"{ROLES[role]} {number}", number + 1
    tx.run(UNSUBSCRIBE, {"a": account, "wanted": name})
    order = STANDARD.index(role) + 1 if role in STANDARD else 10
    new = NewMailbox(name, role=role, sort_order=order)
    return insert_box(tx, account, modseq, new)[0]
