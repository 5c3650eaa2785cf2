"""Adding a message to an account: one pass of about ten statements.

Everything that brings a message in ends here (DESIGN decision 1), so this is the
hottest writing unit: each statement is one call to the driver, nothing is read
back that a RETURNING clause can tell.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sqlalchemy import exists, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from mailserverd.core.errors import Kind, MailError
from storage.metadata import boxes
from storage.metadata.accounts import found, quota, read_state, take
from storage.metadata.keywords import normal_flags
from storage.metadata.retired import gone, insert_open
from storage.metadata.sql import InIds, Insert, Sql, ids, p
from storage.metadata.tables import (
    ACCOUNT,
    BLOB,
    DELIVERED,
    EMAIL,
    EMAIL_STATE,
    IDENTITY,
    MAILBOX,
    MAILBOX_EMAIL,
    MAILBOX_THREAD,
    THREAD_KEY,
)
from storage.model import (
    DELETED_BIT,
    DRAFT,
    SEEN,
    AccountState,
    Added,
    AddEmail,
    BlobRef,
    NewAccount,
    NewEmail,
)

if TYPE_CHECKING:
    from storage.api import Row, Tx

__all__ = ["add_email", "prepare_account", "quota"]

_a = ACCOUNT.c
TAKE = Sql(
    update(ACCOUNT)
    .where(_a.account_id == p("a"))
    .values(
        modseq=_a.modseq + 1,
        mailbox_modseq=_a.modseq + 1,
        email_modseq=_a.modseq + 1,
        thread_modseq=_a.modseq + 1,
        last_email=_a.last_email + 1,
        last_thread=_a.last_thread + 1,
        message_count=_a.message_count + 1,
        quota_used=_a.quota_used + p("size"),
    )
    .returning(
        _a.modseq,
        _a.last_email,
        _a.last_thread,
        _a.inbox_id,
        _a.quota_limit,
        _a.quota_used,
    )
)
_k, _es = THREAD_KEY.c, EMAIL_STATE.c
THREADS = Sql(
    select(
        _k.key,
        _k.thread_id,
        exists()
        .where(_es.account_id == _k.account_id, _es.thread_id == _k.thread_id)
        .correlate(THREAD_KEY),
    ).where(_k.account_id == p("a"), InIds(_k.key, "keys"))
)
_new_key = upsert(THREAD_KEY)
ADD_KEY = Insert(
    _new_key.on_conflict_do_update(
        index_elements=["account_id", "key"],
        set_={"thread_id": _new_key.excluded.thread_id},
    ),
    ("account_id", "key", "thread_id"),
)
CLAIM_KEY = Insert(
    _new_key.on_conflict_do_update(
        index_elements=["account_id", "key"], set_={"thread_id": _k.thread_id}
    ).returning(_k.thread_id),
    ("account_id", "key", "thread_id"),
)
LIVING = Sql(
    select(_es.email_id)
    .where(_es.account_id == p("a"), _es.thread_id == p("thread"))
    .limit(1)
)
ADD_BLOB = Insert(insert_open(BLOB).on_conflict_do_nothing(), tuple(BLOB.c.keys()))
HAS_BLOB = Sql(select(BLOB.c.hash).where(BLOB.c.hash == p("hash")))
ADD_EMAIL = Insert(insert(EMAIL), tuple(EMAIL.c.keys()))
ADD_STATE = Insert(insert(EMAIL_STATE), tuple(EMAIL_STATE.c.keys()))
ADD_MEMBER = Insert(insert(MAILBOX_EMAIL), tuple(MAILBOX_EMAIL.c.keys()))
_new_thread = upsert(MAILBOX_THREAD)
COUNT_THREAD = Insert(
    _new_thread.on_conflict_do_update(
        index_elements=["account_id", "mailbox_id", "thread_id"],
        set_={
            "emails": MAILBOX_THREAD.c.emails + _new_thread.excluded.emails,
            "unread": MAILBOX_THREAD.c.unread + _new_thread.excluded.unread,
        },
    ).returning(MAILBOX_THREAD.c.emails, MAILBOX_THREAD.c.unread),
    tuple(MAILBOX_THREAD.c.keys()),
)
_b = MAILBOX.c
PLACE = Sql(
    update(MAILBOX)
    .where(_b.account_id == p("a"), _b.mailbox_id == p("box"))
    .values(
        uidnext=_b.uidnext + 1,
        highestmodseq=p("m"),
        modseq=p("m"),
        messages=_b.messages + 1,
        unseen=_b.unseen + p("d_unseen"),
        deleted=_b.deleted + p("d_deleted"),
        size=_b.size + p("d_size"),
        total_emails=_b.total_emails + p("d_total"),
        unread_emails=_b.unread_emails + p("d_unread"),
        total_threads=_b.total_threads + p("d_threads"),
        unread_threads=_b.unread_threads + p("d_unread_threads"),
    )
    .returning(_b.uidnext, _b.uidvalidity)
)
_d, _me = DELIVERED.c, MAILBOX_EMAIL.c
SEEN_BEFORE = Sql(
    select(_d.email_id, _d.thread_id, _d.modseq).where(
        _d.account_id == p("a"), _d.acceptance == p("key")
    )
)
PLACES = Sql(
    select(_me.mailbox_id, _b.uidvalidity, _me.uid)
    .join_from(
        MAILBOX_EMAIL,
        MAILBOX,
        (_b.account_id == _me.account_id) & (_b.mailbox_id == _me.mailbox_id),
    )
    .where(_me.account_id == p("a"), _me.email_id == p("email"))
)
REMEMBER = Insert(insert(DELIVERED), tuple(DELIVERED.c.keys()))
NEW_ACCOUNT = Sql(
    insert(ACCOUNT), ("account_id", "epoch", "modseq", "quota_limit", "identity_modseq")
)
HAS_ACCOUNT = Sql(select(_a.account_id).where(_a.account_id == p("a")))
ADD_IDENTITY = Sql(insert(IDENTITY), tuple(IDENTITY.c.keys()))
GAVE_IDENTITY = Sql(
    update(ACCOUNT)
    .where(_a.account_id == p("a"))
    .values(last_identity=1, identity_modseq=_a.modseq)
)


def add_email(tx: Tx, account: int, args: AddEmail) -> Added:
    """Put one message into mailboxes.

    OVER_QUOTA, NOT_FOUND (account, mailbox), INVALID and LIMIT (keywords).
    """
    if args.acceptance:
        before = tx.one(SEEN_BEFORE, {"a": account, "key": args.acceptance})
        if before is not None:
            return _repeat(tx, account, before)
    if args.flags.keywords:
        args = dataclasses.replace(args, flags=normal_flags(args.flags))
    new = args.email
    row = found(tx.one(TAKE, {"a": account, "size": new.size}))
    modseq, email_id, fresh, inbox, limit, used = row
    if args.check_quota and limit and used > limit:
        raise MailError(Kind.OVER_QUOTA, "mailbox is full")
    targets = _targets(tx, account, args, modseq, inbox)
    thread_id = _thread(tx, account, new, fresh)
    _insert(tx, account, args, (email_id, thread_id, modseq))
    placed = tuple(
        _place(tx, account, args, box, (email_id, thread_id, modseq)) for box in targets
    )
    if args.acceptance:
        tx.run(
            REMEMBER,
            (account, args.acceptance, email_id, thread_id, modseq, int(tx.now)),
        )
    return Added(email_id, thread_id, modseq, placed)


def _repeat(tx: Tx, account: int, before: Row) -> Added:
    email_id, thread_id, modseq = before
    placed = tuple(tx.all(PLACES, {"a": account, "email": email_id}))
    return Added(email_id, thread_id, modseq, placed, duplicate=True)


def _targets(
    tx: Tx, account: int, args: AddEmail, modseq: int, inbox: int
) -> list[int]:
    """Return the mailbox ids to file into, each once, roles resolved."""
    targets = list(args.mailboxes)
    for role in args.roles:
        if role == "inbox" and inbox:
            targets.append(inbox)
        else:
            targets.append(boxes.by_role(tx, account, modseq, role))
    if len(targets) > 1:
        targets = list(dict.fromkeys(targets))
    elif not targets:
        raise MailError(Kind.INVALID, "a message needs a mailbox")
    return targets


def thread_keys(new: NewEmail) -> list[int]:
    """Return a message's thread keys as numbers: 64 bits of each digest."""
    return [int.from_bytes(key[:8], "big", signed=True) for key in new.thread_keys]


def octets(text: str) -> bytes:
    """Encode text that came out of a message, whatever it holds."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def _thread(tx: Tx, account: int, new: NewEmail, fresh: int) -> int:
    """Return the oldest living thread that shares a key, or the fresh one."""
    keys = thread_keys(new)
    if not keys:
        return fresh
    if len(keys) == 1:
        return _thread_of(tx, account, keys[0], fresh)
    known = tx.all(THREADS, {"a": account, "keys": ids(keys)})
    alive = {key: thread for key, thread, living in known if living}
    thread_id = min(alive.values(), default=fresh)
    missing = [(account, key, thread_id) for key in keys if key not in alive]
    if missing:
        tx.many(ADD_KEY, missing)
    return thread_id


def _thread_of(tx: Tx, account: int, key: int, fresh: int) -> int:
    """Do as ``_thread`` for a message that names no other: one statement."""
    row = (account, key, fresh)
    found = tx.one(CLAIM_KEY, row)
    thread_id: int = found[0] if found else fresh
    if thread_id == fresh or tx.one(LIVING, {"a": account, "thread": thread_id}):
        return thread_id
    tx.run(ADD_KEY, row)
    return fresh


def add_blob(tx: Tx, blob: BlobRef) -> None:
    """Note where a blob lies, unless its content is known by another place.

    UNAVAILABLE when its segment was retired before this came.
    """
    row = (
        blob.hash,
        blob.store,
        blob.segment,
        blob.offset,
        blob.length,
        blob.size,
        blob.codec,
        blob.key,
    )
    if not tx.run(ADD_BLOB, row) and tx.one(HAS_BLOB, {"hash": blob.hash}) is None:
        raise gone()


def _insert(
    tx: Tx, account: int, args: AddEmail, numbers: tuple[int, int, int]
) -> None:
    new = args.email
    email_id, thread_id, modseq = numbers
    add_blob(tx, new.blob)
    tx.run(
        ADD_EMAIL,
        (
            account,
            email_id,
            new.blob.hash,
            new.header_size,
            octets(new.message_id),
            octets(new.base_subject),
            octets(new.sort_from),
            octets(new.sort_to),
            args.recipient,
            new.list_json,
            new.envelope,
            new.bodystructure,
            new.part_table,
            new.search_text,
        ),
    )
    flags = args.flags
    tx.run(
        ADD_STATE,
        (
            account,
            email_id,
            modseq,
            modseq,
            modseq,
            0 if flags.system & DELETED_BIT else modseq,
            flags.system & ~DELETED_BIT,
            " ".join(flags.keywords),
            thread_id,
            args.received_at,
            new.sent_at,
            new.size,
            int(new.has_attachment),
        ),
    )


def _place(
    tx: Tx, account: int, args: AddEmail, box: int, numbers: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Add a membership and count it; returns (mailbox, uidvalidity, uid)."""
    email_id, thread_id, modseq = numbers
    system = args.flags.system
    deleted = 1 if system & DELETED_BIT else 0
    unseen = 0 if system & SEEN else 1
    unread = 0 if deleted or system & (SEEN | DRAFT) else 1
    threads = unread_threads = 0
    if not deleted:
        counts = tx.one(
            COUNT_THREAD,
            (account, box, thread_id, 1, unread),
        )
        emails, now_unread = counts if counts else (0, 0)
        threads = int(emails == 1)
        unread_threads = int(unread and now_unread == 1)
    place = tx.one(
        PLACE,
        {
            "a": account,
            "box": box,
            "m": modseq,
            "d_unseen": unseen,
            "d_deleted": deleted,
            "d_size": args.email.size,
            "d_total": 1 - deleted,
            "d_unread": unread,
            "d_threads": threads,
            "d_unread_threads": unread_threads,
        },
    )
    if place is None:
        raise boxes.no_mailbox()
    uid = place[0] - 1
    tx.run(
        ADD_MEMBER,
        (
            account,
            box,
            uid,
            email_id,
            modseq,
            deleted,
            unseen,
            args.received_at,
            thread_id,
            int(tx.now),
        ),
    )
    return box, place[1], uid


def prepare_account(tx: Tx, account: int, args: NewAccount) -> AccountState:
    """Make the account's row, its standard mailboxes and its first identity.

    Idempotent: an account that exists keeps what it has, and gets the standard
    mailboxes that it lacks.
    """
    if tx.one(HAS_ACCOUNT, {"a": account}) is None:
        _new_account(tx, account, args)
    if any(
        tx.one(boxes.BY_ROLE, {"a": account, "wanted": role}) is None
        for role in boxes.STANDARD
    ):
        modseq = take(tx, account)
        for role in boxes.STANDARD:
            boxes.by_role(tx, account, modseq, role)
    return read_state(tx, account)


def _new_account(tx: Tx, account: int, args: NewAccount) -> None:
    tx.run(
        NEW_ACCOUNT,
        {
            "account_id": account,
            "epoch": args.epoch,
            "modseq": 0,
            "quota_limit": args.quota_limit,
            "identity_modseq": 0,
        },
    )
    if args.address:
        modseq = take(tx, account)
        tx.run(GAVE_IDENTITY, {"a": account})
        tx.run(
            ADD_IDENTITY,
            {
                "account_id": account,
                "identity_id": 1,
                "name": args.name,
                "email": args.address,
                "reply_to": b"null",
                "bcc": b"null",
                "text_signature": "",
                "html_signature": "",
                "may_delete": 0,
                "created_modseq": modseq,
                "modseq": modseq,
            },
        )
