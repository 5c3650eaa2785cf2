"""``storage check``: what must be true of the rows of an account, and of a shard.

Each rule is a query for what breaks it; an intact account has no findings.  A rule
looks at one snapshot, so that nothing that is just being changed is a finding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, case, except_, func, select

from storage.metadata.accounts import read_state
from storage.metadata.check_sql import (
    ACCOUNT_RULES,
    MAX_FINDINGS,
    ORPHANS,
    PARENTS,
    RULES,
    SHARD_RULES,
)
from storage.metadata.sql import Sql, p, total
from storage.metadata.tables import (
    EMAIL,
    EMAIL_STATE,
    IDENTITY,
    MAILBOX,
    MAILBOX_EMAIL,
    MAILBOX_THREAD,
)
from storage.model import DRAFT, SEEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from storage.api import Row, Tx

SMALL = 20_000  # emails of an account that is checked on one snapshot
_b, _es = MAILBOX.c, EMAIL_STATE.c
_me, _mt = MAILBOX_EMAIL.c, MAILBOX_THREAD.c
_states = MAILBOX_EMAIL.join(
    EMAIL_STATE,
    and_(_es.account_id == _me.account_id, _es.email_id == _me.email_id),
)
_unread = and_(_me.deleted == 0, _es.system.op("&")(SEEN | DRAFT) == 0)
_in_box = and_(_me.account_id == p("a"), _me.mailbox_id == p("box"))


def _count(condition: Any) -> Any:
    return total(case((condition, 1), else_=0))


NAMES = (  # of the counters, in the order of ``recount``
    "messages",
    "unseen",
    "deleted",
    "size",
    "total_emails",
    "unread_emails",
    "total_threads",
    "unread_threads",
)
KEPT = Sql(
    select(*(_b[name] for name in NAMES)).where(
        _b.account_id == p("a"), _b.mailbox_id == p("box")
    )
)
COUNTED = Sql(
    select(
        func.count(),
        _count(_es.system.op("&")(SEEN) == 0),
        _count(_me.deleted == 1),
        total(_es.size),
        _count(_me.deleted == 0),
        _count(_unread),
    )
    .select_from(_states)
    .where(_in_box)
)
PER_THREAD = (
    select(
        _me.account_id,
        _me.mailbox_id,
        _me.thread_id,
        func.count().label("emails"),
        _count(_unread).label("unread"),
    )
    .select_from(_states)
    .where(_in_box, _me.deleted == 0)
    .group_by(_me.account_id, _me.mailbox_id, _me.thread_id)
)
_threads = PER_THREAD.subquery("threads")
THREADS_COUNTED = Sql(
    select(func.count(), _count(_threads.c.unread > 0)).select_from(_threads)
)
_kept = select(
    _mt.account_id, _mt.mailbox_id, _mt.thread_id, _mt.emails, _mt.unread
).where(_mt.account_id == p("a"), _mt.mailbox_id == p("box"))
WRONG_THREADS = tuple(
    Sql(select(found.c.thread_id).limit(MAX_FINDINGS + 1))
    for found in (
        except_(_kept, PER_THREAD).subquery("found"),
        except_(PER_THREAD, _kept).subquery("found"),
    )
)
USED = Sql(select(func.count(), total(_es.size)).where(_es.account_id == p("a")))

EMAILS = Sql(select(func.count()).where(EMAIL.c.account_id == p("a")))
ADDRESS = Sql(
    select(IDENTITY.c.email)
    .where(IDENTITY.c.account_id == p("a"), IDENTITY.c.may_delete == 0)
    .order_by(IDENTITY.c.identity_id)
    .limit(1)
)


def check_account(tx: Tx, account: int, _: None) -> tuple[str, ...]:
    """Return what is wrong, one line each; at most ``MAX_FINDINGS`` of a kind."""
    findings: list[str] = []
    for part in parts(tx, account, None):
        findings += check_part(tx, account, part)
    return tuple(findings)


def parts(tx: Tx, account: int, _: None) -> tuple[tuple[str, int], ...]:
    """Return what a large account is checked in, each on its own snapshot.

    As ("rule", number), ("boxes", 0), ("box", mailbox) and ("used", 0).
    """
    read_state(tx, account)
    boxes = [row[0] for row in tx.all(PARENTS, {"a": account})]
    return (
        *(("rule", number) for number in range(len(ACCOUNT_RULES) + len(RULES))),
        ("boxes", 0),
        *(("box", box) for box in boxes),
        ("used", 0),
    )


def check_part(tx: Tx, account: int, part: tuple[str, int]) -> tuple[str, ...]:
    """Return what is wrong with one of ``parts``."""
    kind, number = part
    if kind == "rule":
        rule = (*ACCOUNT_RULES, *RULES)[number]
        return tuple(_broken(tx, account, (rule,)))
    if kind == "boxes":
        rows = tx.all(PARENTS, {"a": account})
        return tuple(f"mailbox within itself: {box}" for box in loops(rows))
    if kind == "box":
        return tuple(_box(tx, account, number))
    return tuple(_used(tx, account))


def check_shard(tx: Tx, _: int, __: None) -> tuple[str, ...]:
    """Return what is wrong with the owners of blobs, all accounts in one scan."""
    return tuple(_broken(tx, 0, SHARD_RULES))


def orphans(tx: Tx, after: int, table: str) -> int | None:
    """Return the next account (after an id) that has rows in a table and no row of
    its own: it is being removed, or it lost that row."""
    row = tx.one(ORPHANS[table], {"after": after})
    return row[0] if row else None


def who(tx: Tx, account: int, _: None) -> tuple[str, int]:
    """Return the address that an account was made with ("": unknown), and how many
    emails it has, whether it has a row of its own or not."""
    row = tx.one(ADDRESS, {"a": account})
    emails = tx.one(EMAILS, {"a": account})
    return (row[0] if row else ""), (emails[0] if emails else 0)


def loops(rows: Sequence[Row]) -> list[int]:
    """Return the mailboxes, given as (id, parent), to cut off from their parent so
    that none is within itself: the least of each loop."""
    above = {row[0]: row[1] for row in rows}
    found: set[int] = set()
    safe: set[int] = set()
    for start in above:
        path: list[int] = []
        here = start
        while here in above and here not in safe and here not in path:
            path.append(here)
            here = above[here]
        if here in path:
            found.add(min(path[path.index(here) :]))
        safe.update(path)
    return sorted(found)


def _broken(tx: Tx, account: int, rules: Iterable[tuple[str, Sql]]) -> list[str]:
    return [
        f"{name}: {_show(row)}"
        for name, statement in rules
        for row in tx.all(statement, {"a": account})[:MAX_FINDINGS]
    ]


def _show(row: Row) -> str:
    return ", ".join(str(value) for value in row)


def recount(tx: Tx, account: int, box: int) -> tuple[int, ...]:
    """Return all eight counters of a mailbox as they should be."""
    params = {"a": account, "box": box}
    counted = tx.one(COUNTED, params) or (0,) * 6
    threads = tx.one(THREADS_COUNTED, params) or (0, 0)
    return (*counted, *threads)


def _box(tx: Tx, account: int, box: int) -> list[str]:
    params = {"a": account, "box": box}
    kept = tx.one(KEPT, params)
    if kept is None:  # it was removed since
        return []
    findings = [
        f"mailbox {box}: {name} is {is_now}, not {right}"
        for name, is_now, right in zip(
            NAMES, kept, recount(tx, account, box), strict=True
        )
        if is_now != right
    ]
    wrong = {row[0] for one in WRONG_THREADS for row in tx.all(one, params)}
    findings += [
        f"mailbox {box}: count of thread {thread} is wrong"
        for thread in sorted(wrong)[:MAX_FINDINGS]
    ]
    return findings


def _used(tx: Tx, account: int) -> list[str]:
    used = tx.one(USED, {"a": account}) or (0, 0)
    state = read_state(tx, account)
    if tuple(used) == (state.message_count, state.quota_used):
        return []
    return [
        f"account: has {used[0]} messages of {used[1]} octets, counters say "
        f"{state.message_count} of {state.quota_used}"
    ]
