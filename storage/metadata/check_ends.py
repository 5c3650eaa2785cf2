"""``storage check`` of the directory and the queue: rules, and what mends them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import and_, case, delete, exists, func, or_, select, update

from storage.directory import LIVE
from storage.metadata.check_sql import MAX_FINDINGS
from storage.metadata.directory import bump
from storage.metadata.directory_tables import (
    ACCOUNT,
    ADDRESS,
    ALIAS_TARGET,
    CREDENTIAL,
    DKIM_KEY,
    DOMAIN,
)
from storage.metadata.queue_tables import (
    ACCEPTANCE,
    ACCEPTANCE_TARGET,
    BLOB,
    MESSAGE,
    RECIPIENT,
)
from storage.metadata.sql import Sql, heavy
from storage.queue import FINAL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Table

    from storage.api import Tx

A, D, T, C = ADDRESS.c, DOMAIN.c, ALIAS_TARGET.c, CREDENTIAL.c
P, K = ACCOUNT.c, DKIM_KEY.c
M, R, B = MESSAGE.c, RECIPIENT.c, BLOB.c
X, XT = ACCEPTANCE.c, ACCEPTANCE_TARGET.c


class Rule(NamedTuple):
    """What breaks a rule, and the statement that mends it (None: nothing can)."""

    name: str
    broken: Sql
    mend: Sql | None


def _dangling(name: str, shown: Any, target: Any, *, mend: bool = True) -> Rule:
    """Return the rule that ``target`` exists for each row; others are dropped."""
    table: Table = shown.table
    lost = ~exists().where(target).correlate(table)
    return Rule(
        name,
        Sql(select(shown).where(lost).limit(MAX_FINDINGS + 1)),
        Sql(delete(table).where(lost)) if mend else None,
    )


def _count(table: Table, column: Any, right: Any, name: str, shown: Any) -> Rule:
    """Return the rule that a column holds what a query says it must."""
    wrong = column != right
    return Rule(
        name,
        Sql(select(shown).where(wrong).limit(MAX_FINDINGS + 1)),
        Sql(update(table).where(wrong).values({column.name: right})),
    )


_owner = and_(P.account_id == A.account_id, P.state.in_(LIVE))
DIRECTORY_RULES = (
    _dangling("address without its domain", A.local, D.domain_id == A.domain_id),
    Rule(
        "address of an account that is not there",
        Sql(
            select(A.local, A.account_id)
            .where(
                A.account_id.is_not(None), ~exists().where(_owner).correlate(ADDRESS)
            )
            .limit(MAX_FINDINGS + 1)
        ),
        Sql(
            delete(ADDRESS).where(
                A.account_id.is_not(None), ~exists().where(_owner).correlate(ADDRESS)
            )
        ),
    ),
    _dangling(
        "target of an alias that is not there",
        T.target,
        and_(A.domain_id == T.domain_id, A.local == T.local, A.account_id.is_(None)),
    ),
    _dangling(
        "credential of an account that is not there",
        C.credential_id,
        and_(P.account_id == C.account_id, P.state.in_(LIVE)),
    ),
    _dangling("DKIM key without its domain", K.selector, D.domain_id == K.domain_id),
    Rule(
        "account without an address of its own",
        Sql(
            select(P.account_id, P.address)
            .where(
                P.state.in_(LIVE),
                ~exists().where(A.account_id == P.account_id).correlate(ACCOUNT),
            )
            .limit(MAX_FINDINGS + 1)
        ),
        None,
    ),
)
_needs = or_(R.state.not_in([int(one) for one in FINAL]), R.notice > 0)
_open = (
    select(func.coalesce(func.sum(case((_needs, 1), else_=0)), 0))
    .where(R.message == M.message)
    .correlate(MESSAGE)
    .scalar_subquery()
)
_left = (
    select(func.count())
    .select_from(ACCEPTANCE_TARGET)
    .where(XT.acceptance == X.acceptance, XT.applied == 0)
    .correlate(ACCEPTANCE)
    .scalar_subquery()
)
QUEUE_RULES = (
    _dangling("recipient without its message", R.address, M.message == R.message),
    _dangling("part without its acceptance", XT.target, X.acceptance == XT.acceptance),
    _count(MESSAGE, M.open, _open, "count of what a message waits for", M.message),
    _count(ACCEPTANCE, X.open, _left, "count of an acceptance's parts", X.created),
    Rule(
        "queued message without its blob",
        Sql(
            select(M.message)
            .where(M.open > 0, ~exists().where(B.hash == M.hash).correlate(MESSAGE))
            .limit(MAX_FINDINGS + 1)
        ),
        None,
    ),
    Rule(
        "acceptance without its blob",
        Sql(
            select(X.created)
            .where(X.open > 0, ~exists().where(B.hash == X.hash).correlate(ACCEPTANCE))
            .limit(MAX_FINDINGS + 1)
        ),
        None,
    ),
)


def check_directory(tx: Tx, _: int, __: None) -> tuple[str, ...]:
    """Return what is wrong with references inside the directory."""
    return _broken(tx, DIRECTORY_RULES)


def check_queue(tx: Tx, _: int, __: None) -> tuple[str, ...]:
    """Return what is wrong with references and counts inside the queue."""
    return _broken(tx, QUEUE_RULES)


def mend_directory(tx: Tx, _: int, __: None) -> tuple[str, ...]:
    """Drop what leads nowhere; returns what was done."""
    lines = _mend(tx, DIRECTORY_RULES)
    if lines:
        bump(tx)
    return lines


@heavy
def mend_queue(tx: Tx, _: int, __: None) -> tuple[str, ...]:
    """Drop what leads nowhere and count anew; returns what was done."""
    return _mend(tx, QUEUE_RULES)


def _broken(tx: Tx, rules: Iterable[Rule]) -> tuple[str, ...]:
    return tuple(
        f"{rule.name}: {', '.join(map(str, row))}"
        for rule in rules
        for row in tx.all(rule.broken)[:MAX_FINDINGS]
    )


def _mend(tx: Tx, rules: Iterable[Rule]) -> tuple[str, ...]:
    return tuple(
        f"mended {rows}: {rule.name}"
        for rule in rules
        if rule.mend is not None and (rows := tx.run(rule.mend))
    )
