"""``storage check``: what must be true of an account's rows, and mending counters.

Each rule is a query for what breaks it; an intact account has no findings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, case, delete, func, insert, select

from storage.metadata import boxes
from storage.metadata.accounts import read_state, take
from storage.metadata.check_sql import (
    ACCOUNT_RULES,
    MAX_FINDINGS,
    RULES,
    SHARD_RULES,
)
from storage.metadata.sql import Sql, heavy, p, total
from storage.metadata.tables import (
    ACCOUNT,
    EMAIL_STATE,
    MAILBOX,
    MAILBOX_EMAIL,
    MAILBOX_THREAD,
)
from storage.model import DRAFT, SEEN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from storage.api import Tx

_a, _b, _es = ACCOUNT.c, MAILBOX.c, EMAIL_STATE.c
_me, _mt = MAILBOX_EMAIL.c, MAILBOX_THREAD.c
_states = MAILBOX_EMAIL.join(
    EMAIL_STATE,
    and_(_es.account_id == _me.account_id, _es.email_id == _me.email_id),
)
_unread = and_(_me.deleted == 0, _es.system.op("&")(SEEN | DRAFT) == 0)


def _count(condition: Any) -> Any:
    return total(case((condition, 1), else_=0))


_counts = (
    func.count(),
    _count(_es.system.op("&")(SEEN) == 0),
    _count(_me.deleted == 1),
    total(_es.size),
    _count(_me.deleted == 0),
    _count(_unread),
)
RECOUNT = Sql(
    select(_me.mailbox_id, *_counts)
    .select_from(_states)
    .where(_me.account_id == p("a"))
    .group_by(_me.mailbox_id)
)
_per_thread = (
    select(
        _me.account_id,
        _me.mailbox_id,
        _me.thread_id,
        func.count().label("emails"),
        _count(_unread).label("unread"),
    )
    .select_from(_states)
    .where(_me.account_id == p("a"), _me.deleted == 0)
    .group_by(_me.account_id, _me.mailbox_id, _me.thread_id)
)
THREADS_COUNTED = Sql(_per_thread)
THREADS_KEPT = Sql(
    select(_mt.account_id, _mt.mailbox_id, _mt.thread_id, _mt.emails, _mt.unread).where(
        _mt.account_id == p("a")
    )
)
USED = Sql(select(func.count(), total(_es.size)).where(_es.account_id == p("a")))
DROP_THREADS = Sql(delete(MAILBOX_THREAD).where(_mt.account_id == p("a")))
ADD_THREADS = Sql(
    insert(MAILBOX_THREAD).from_select(
        ["account_id", "mailbox_id", "thread_id", "emails", "unread"], _per_thread
    )
)
_NAMES = (  # of the counters, in the order of ``_recount``
    "messages",
    "unseen",
    "deleted",
    "size",
    "total_emails",
    "unread_emails",
    "total_threads",
    "unread_threads",
)
SET_COUNTS = Sql(
    MAILBOX.update()
    .where(_b.account_id == p("a"), _b.mailbox_id == p("box"))
    .values(modseq=p("m"), **{name: p(f"n_{name}") for name in _NAMES})
)
SET_USED = Sql(
    ACCOUNT.update()
    .where(_a.account_id == p("a"))
    .values(
        message_count=p("n_count"), quota_used=p("n_size"), mailbox_modseq=_a.modseq
    )
)


def check_account(tx: Tx, account: int, _: None) -> tuple[str, ...]:
    """Return what is wrong, one line each; at most ``MAX_FINDINGS`` of a kind."""
    read_state(tx, account)
    findings = _broken(tx, account, (*ACCOUNT_RULES, *RULES))
    return (*findings, *_counters(tx, account))


def check_shard(tx: Tx, _: int, __: None) -> tuple[str, ...]:
    """Return what is wrong with the owners of blobs, all accounts in one scan."""
    return tuple(_broken(tx, 0, SHARD_RULES))


def _broken(tx: Tx, account: int, rules: Iterable[tuple[str, Sql]]) -> list[str]:
    return [
        f"{name}: {_show(row)}"
        for name, statement in rules
        for row in tx.all(statement, {"a": account})[:MAX_FINDINGS]
    ]


def _show(row: Any) -> str:
    return ", ".join(str(value) for value in row)


def _recount(tx: Tx, account: int) -> dict[int, tuple[int, ...]]:
    """Return all eight counters of each mailbox as they should be."""
    threads: dict[int, list[int]] = {}
    for _, box, _, _, unread in tx.all(THREADS_COUNTED, {"a": account}):
        pair = threads.setdefault(box, [0, 0])
        pair[0] += 1
        pair[1] += unread > 0
    counted = {row[0]: row[1:] for row in tx.all(RECOUNT, {"a": account})}
    return {
        box: (*counted.get(box, (0,) * 6), *threads.get(box, (0, 0)))
        for box in boxes.load(tx, account)
    }


def _counters(tx: Tx, account: int) -> list[str]:
    findings = []
    known = boxes.load(tx, account)
    for box, right in _recount(tx, account).items():
        for name, value in zip(_NAMES, right, strict=True):
            kept = getattr(known[box], name)
            if kept != value:
                findings.append(f"mailbox {box}: {name} is {kept}, not {value}")
    kept_threads = set(tx.all(THREADS_KEPT, {"a": account}))
    wrong = kept_threads.symmetric_difference(tx.all(THREADS_COUNTED, {"a": account}))
    findings += [
        f"mailbox {row[1]}: count of thread {row[2]} is wrong"
        for row in sorted(wrong)[:MAX_FINDINGS]
    ]
    used = tx.one(USED, {"a": account})
    state = read_state(tx, account)
    if used is not None and used != (state.message_count, state.quota_used):
        findings.append(
            f"account: has {used[0]} messages of {used[1]} octets, counters say "
            f"{state.message_count} of {state.quota_used}"
        )
    return findings


@heavy
def repair_counters(tx: Tx, account: int, _: None) -> int:
    """Write every counter anew from the memberships; returns the modseq."""
    modseq = take(tx, account)
    params = {"a": account}
    tx.run(DROP_THREADS, params)
    tx.run(ADD_THREADS, params)
    for box, right in _recount(tx, account).items():
        values = {f"n_{n}": v for n, v in zip(_NAMES, right, strict=True)}
        tx.run(SET_COUNTS, {**params, "box": box, "m": modseq, **values})
    used = tx.one(USED, params) or (0, 0)
    tx.run(SET_USED, {**params, "n_count": used[0], "n_size": used[1]})
    return modseq
