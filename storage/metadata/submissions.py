"""EmailSubmissions (RFC 8621 section 7): what was sent, as JMAP shows it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from mailserverd.core.errors import Kind, MailError
from storage.metadata import edit_sql
from storage.metadata.accounts import read_state, release, take
from storage.metadata.query import window
from storage.metadata.query_filter import combine, unknown
from storage.metadata.sql import InIds, Sql, ids, p
from storage.metadata.tables import ACCOUNT, SUBMISSION, TYPE_SUBMISSION
from storage.model import (
    AccountState,
    Condition,
    EmailQuery,
    QueryResult,
    Sort,
    SubmissionRow,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from storage.api import Row, Tx

    Test = Callable[[Row], bool]

_s, _a = SUBMISSION.c, ACCOUNT.c
_columns = (
    _s.submission_id,
    _s.identity_id,
    _s.email_id,
    _s.thread_id,
    _s.envelope,
    _s.send_at,
    _s.undo_status,
    _s.queue_id,
    _s.delivery_status,
    _s.modseq,
)
_one = (_s.account_id == p("a"), _s.submission_id == p("key"))
ALL = Sql(select(*_columns).where(_s.account_id == p("a")))
SOME = Sql(
    select(*_columns).where(
        _s.account_id == p("a"), InIds(_s.submission_id, "submissions")
    )
)
ONE = Sql(select(*_columns, _s.created_modseq).where(*_one))
FACTS = Sql(
    select(
        _s.submission_id,
        _s.identity_id,
        _s.email_id,
        _s.thread_id,
        _s.send_at,
        _s.undo_status,
    ).where(_s.account_id == p("a"))
)
INSERT = Sql(insert(SUBMISSION), tuple(SUBMISSION.c.keys()))
CHANGE = Sql(
    update(SUBMISSION)
    .where(*_one)
    .values(
        undo_status=p("new_undo"),
        queue_id=p("new_queue"),
        send_at=p("new_send_at"),
        delivery_status=p("new_delivery"),
        modseq=p("m"),
    )
)
DELETE = Sql(delete(SUBMISSION).where(*_one))
NEXT = Sql(
    update(ACCOUNT)
    .where(_a.account_id == p("a"))
    .values(last_submission=_a.last_submission + 1, submission_modseq=_a.modseq)
    .returning(_a.last_submission)
)
TOUCH = Sql(
    update(ACCOUNT).where(_a.account_id == p("a")).values(submission_modseq=_a.modseq)
)


def _get(tx: Tx, account: int, submission_id: int) -> Row:
    row = tx.one(ONE, {"a": account, "key": submission_id})
    if row is None:
        raise MailError(Kind.NOT_FOUND, "no such submission")
    return row


def read(
    tx: Tx, account: int, wanted: Sequence[int] | None
) -> tuple[AccountState, tuple[SubmissionRow, ...]]:
    """Return submissions by id, or all; unknown ids are left out."""
    if wanted is None:
        rows = tx.all(ALL, {"a": account})
    else:
        rows = tx.all(SOME, {"a": account, "submissions": ids(wanted)})
    found = tuple(SubmissionRow(*row) for row in sorted(rows))
    return read_state(tx, account), found


def create(tx: Tx, account: int, new: SubmissionRow) -> SubmissionRow:
    """Add a submission; ``submission_id`` and ``modseq`` are set here."""
    modseq = take(tx, account)
    row = tx.one(NEXT, {"a": account})
    made = dataclasses.replace(new, submission_id=row[0] if row else 0, modseq=modseq)
    values = dataclasses.asdict(made)
    tx.run(INSERT, {"account_id": account, "created_modseq": modseq, **values})
    return made


def change(tx: Tx, account: int, new: SubmissionRow) -> SubmissionRow:
    """Replace undo status, queue id, send time and delivery status.  NOT_FOUND."""
    modseq = take(tx, account)
    old = SubmissionRow(*_get(tx, account, new.submission_id)[:10])
    made = dataclasses.replace(
        old,
        undo_status=new.undo_status,
        queue_id=new.queue_id,
        send_at=new.send_at,
        delivery_status=new.delivery_status,
    )
    if made == old:
        release(tx, account)
        return old
    tx.run(
        CHANGE,
        {
            "a": account,
            "key": new.submission_id,
            "new_undo": new.undo_status,
            "new_queue": new.queue_id,
            "new_send_at": new.send_at,
            "new_delivery": new.delivery_status,
            "m": modseq,
        },
    )
    tx.run(TOUCH, {"a": account})
    return dataclasses.replace(made, modseq=modseq)


def destroy(tx: Tx, account: int, submission_id: int) -> int:
    """Remove a submission's record (not the mail); returns the modseq.  NOT_FOUND."""
    modseq = take(tx, account)
    row = _get(tx, account, submission_id)
    tx.run(DELETE, {"a": account, "key": submission_id})
    tx.run(
        edit_sql.BURY,
        (account, TYPE_SUBMISSION, modseq, submission_id, row[10], 0, int(tx.now)),
    )
    tx.run(TOUCH, {"a": account})
    return modseq


# --- EmailSubmission/query --------------------------------------------------------

_KEYS = {"emailId": 2, "threadId": 3, "sentAt": 4}


def query(tx: Tx, account: int, args: EmailQuery) -> QueryResult:
    """EmailSubmission/query (RFC 8621 section 7.3); UNSUPPORTED, ANCHOR_NOT_FOUND.

    Conditions: identity_ids email_ids thread_ids (tuples), undo_status(str),
    before after (send_at < / >=).  Comparators: emailId threadId sentAt.
    """
    test = combine(args.filter, _leaf) if args.filter is not None else None
    rows = [row for row in tx.all(FACTS, {"a": account}) if test is None or test(row)]
    order: Sequence[Sort] = args.sort
    rows.sort(reverse=bool(order) and not order[0].ascending)
    for comparator in reversed(order):
        if comparator.by not in _KEYS:
            raise MailError(Kind.UNSUPPORTED, "unknown sort")
        place = _KEYS[comparator.by]
        rows.sort(key=lambda row: row[place], reverse=not comparator.ascending)
    return window(args, [row[0] for row in rows], read_state(tx, account))


def _leaf(leaf: Condition) -> Test:
    if leaf.op not in _TESTS:
        raise unknown(leaf)
    return _TESTS[leaf.op](leaf.value)


_TESTS: dict[str, Callable[[Any], Test]] = {
    "identity_ids": lambda value: lambda row: row[1] in value,
    "email_ids": lambda value: lambda row: row[2] in value,
    "thread_ids": lambda value: lambda row: row[3] in value,
    "before": lambda value: lambda row: row[4] < value,
    "after": lambda value: lambda row: row[4] >= value,
    "undo_status": lambda value: lambda row: row[5] == value,
}
