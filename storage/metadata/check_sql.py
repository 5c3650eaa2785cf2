"""The rules of ``storage check`` as queries for what breaks them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, exists, func, or_, select

from storage.metadata.sql import Sql, p
from storage.metadata.tables import (
    ACCOUNT,
    BLOB,
    BLOB_OWNER,
    DESTROYED,
    EMAIL,
    EMAIL_STATE,
    EXPUNGED,
    IDENTITY,
    MAILBOX,
    MAILBOX_EMAIL,
    MAILBOX_THREAD,
    SHARD,
    SUBMISSION,
    THREAD_KEY,
    TYPE_EMAIL,
    TYPE_IDENTITY,
    TYPE_MAILBOX,
    TYPE_ROW,
    TYPE_SUBMISSION,
)
from storage.model import SEEN

MAX_FINDINGS = 20  # shown of one kind

_a, _b, _e, _es = ACCOUNT.c, MAILBOX.c, EMAIL.c, EMAIL_STATE.c
_me, _o, _bl = MAILBOX_EMAIL.c, BLOB_OWNER.c, BLOB.c
_x, _d, _i, _s = EXPUNGED.c, DESTROYED.c, IDENTITY.c, SUBMISSION.c
_mt, _k = MAILBOX_THREAD.c, THREAD_KEY.c
_parent = MAILBOX.alias("parent")
_rival = MAILBOX.alias("rival")
_twin = MAILBOX_EMAIL.alias("twin")


def _rule(*columns: Any, where: Any, start: Any = None) -> Sql:
    found = select(*columns)
    if start is not None:
        found = found.select_from(start)
    return Sql(found.where(where).limit(MAX_FINDINGS + 1))


def _member_rule(broken: Any, start: Any = None) -> Sql:
    """Return a rule that shows (mailbox, uid) of the account's memberships."""
    return _rule(
        _me.mailbox_id,
        _me.uid,
        where=and_(_me.account_id == p("a"), broken),
        start=start,
    )


def _same_email(left: Any, right: Any) -> Any:
    return and_(left.account_id == right.account_id, left.email_id == right.email_id)


def _same_box(left: Any, right: Any) -> Any:
    return and_(
        left.account_id == right.account_id, left.mailbox_id == right.mailbox_id
    )


def _none(condition: Any, of: Any) -> Any:
    return ~exists().where(condition).correlate(of)


TYPES = (
    _a.mailbox_modseq,
    _a.email_modseq,
    _a.thread_modseq,
    _a.identity_modseq,
    _a.submission_modseq,
    _a.tombstone_floor,
)
_mine = _a.account_id == p("a")
_visible = (
    exists().where(_same_email(_me, _es), _me.deleted == 0).correlate(EMAIL_STATE)
)
_members = MAILBOX_EMAIL.join(EMAIL_STATE, _same_email(_es, _me))


def _bound(column: Any, table: Any, limit: Any) -> Sql:
    """Return a rule: the greatest ``column`` of a table is above a limit."""
    greatest = (
        select(func.max(column)).where(table.c.account_id == p("a")).scalar_subquery()
    )
    return Sql(select(greatest, limit).where(_mine, greatest > limit))


LIVING = (  # what has tombstones: its name, their type, table and key
    ("mailbox", TYPE_MAILBOX, MAILBOX, _b.mailbox_id),
    ("email", TYPE_ROW, EMAIL_STATE, _es.email_id),
    ("identity", TYPE_IDENTITY, IDENTITY, _i.identity_id),
    ("submission", TYPE_SUBMISSION, SUBMISSION, _s.submission_id),
)
LAST_OF = {
    TYPE_MAILBOX: _a.last_mailbox,
    TYPE_ROW: _a.last_email,
    TYPE_IDENTITY: _a.last_identity,
    TYPE_SUBMISSION: _a.last_submission,
}


def _undead(kind: int, table: Any, key: Any) -> Sql:
    """Return a rule: an object is there although its end was noted."""
    return _rule(
        _d.object_id,
        start=DESTROYED.join(
            table, and_(table.c.account_id == _d.account_id, key == _d.object_id)
        ),
        where=and_(_d.account_id == p("a"), _d.type == kind),
    )


ACCOUNT_RULES: tuple[tuple[str, Sql], ...] = (
    (
        "modseq of an email above the account's",
        _bound(_es.modseq, EMAIL_STATE, _a.modseq),
    ),
    ("modseq of a mailbox above the account's", _bound(_b.modseq, MAILBOX, _a.modseq)),
    (
        "highestmodseq of a mailbox above the account's",
        _bound(_b.highestmodseq, MAILBOX, _a.modseq),
    ),
    (
        "modseq of an expunge above the account's",
        _bound(_x.modseq, EXPUNGED, _a.modseq),
    ),
    ("modseq of an end above the account's", _bound(_d.modseq, DESTROYED, _a.modseq)),
    (
        "modseq of an identity above its type's",
        _bound(_i.modseq, IDENTITY, _a.identity_modseq),
    ),
    (
        "modseq of a submission above its type's",
        _bound(_s.modseq, SUBMISSION, _a.submission_modseq),
    ),
    (
        "modseq of an email above its type's",
        _bound(_es.modseq, EMAIL_STATE, _a.email_modseq),
    ),
    (
        "modseq of a mailbox above its type's",
        _bound(_b.modseq, MAILBOX, _a.mailbox_modseq),
    ),
    ("email id above the last", _bound(_es.email_id, EMAIL_STATE, _a.last_email)),
    ("thread id above the last", _bound(_es.thread_id, EMAIL_STATE, _a.last_thread)),
    ("mailbox id above the last", _bound(_b.mailbox_id, MAILBOX, _a.last_mailbox)),
    ("identity id above the last", _bound(_i.identity_id, IDENTITY, _a.last_identity)),
    (
        "submission id above the last",
        _bound(_s.submission_id, SUBMISSION, _a.last_submission),
    ),
    (
        "thread of a key above the last",
        _bound(_k.thread_id, THREAD_KEY, _a.last_thread),
    ),
    (
        "uidvalidity above the last",
        _bound(_b.uidvalidity, MAILBOX, _a.last_uidvalidity),
    ),
    (
        "modseq of a type, or the tombstones' floor, above the account's",
        _rule(_a.modseq, where=and_(_mine, or_(*(one > _a.modseq for one in TYPES)))),
    ),
    (
        "account without INBOX",
        _rule(
            _a.inbox_id,
            where=and_(
                _mine,
                _none(
                    and_(
                        _b.account_id == _a.account_id,
                        _b.mailbox_id == _a.inbox_id,
                        _b.role == "inbox",
                    ),
                    ACCOUNT,
                ),
            ),
        ),
    ),
)

RULES: tuple[tuple[str, Sql], ...] = (
    (
        "mailbox without its parent",
        _rule(
            _b.mailbox_id,
            _b.parent_id,
            where=and_(
                _b.account_id == p("a"),
                _b.parent_id != 0,
                _none(
                    and_(
                        _parent.c.account_id == _b.account_id,
                        _parent.c.mailbox_id == _b.parent_id,
                    ),
                    MAILBOX,
                ),
            ),
        ),
    ),
    (
        "uid not below uidnext (mailbox, uid)",
        _member_rule(
            _me.uid >= _b.uidnext,
            MAILBOX_EMAIL.join(MAILBOX, _same_box(_b, _me)),
        ),
    ),
    (
        "change above highestmodseq (mailbox, uid)",
        _member_rule(
            or_(_me.modseq > _b.highestmodseq, _es.flags_modseq > _b.highestmodseq),
            _members.join(MAILBOX, _same_box(_b, _me)),
        ),
    ),
    (
        "expunge above highestmodseq (mailbox, uid)",
        _rule(
            _x.mailbox_id,
            _x.uid,
            start=EXPUNGED.join(MAILBOX, _same_box(_b, _x)),
            where=and_(_x.account_id == p("a"), _x.modseq > _b.highestmodseq),
        ),
    ),
    (
        "membership newer than its email (mailbox, uid)",
        _member_rule(
            or_(_me.modseq > _es.modseq, _es.flags_modseq > _es.modseq), _members
        ),
    ),
    (
        "membership without a mailbox (mailbox, uid)",
        _member_rule(_none(_same_box(_b, _me), MAILBOX_EMAIL)),
    ),
    (
        "membership without an email (mailbox, uid)",
        _member_rule(_none(_same_email(_es, _me), MAILBOX_EMAIL)),
    ),
    (
        "membership that repeats its email wrongly (mailbox, uid)",
        _member_rule(
            or_(
                _me.thread_id != _es.thread_id,
                _me.received_at != _es.received_at,
                _me.unseen != 1 - _es.system.op("&")(SEEN),
            ),
            _members,
        ),
    ),
    (
        "email twice in one mailbox (mailbox, uid)",
        _member_rule(
            and_(_twin.c.mailbox_id == _me.mailbox_id, _twin.c.uid > _me.uid),
            MAILBOX_EMAIL.join(_twin, _same_email(_twin.c, _me)),
        ),
    ),
    (
        "email in no mailbox",
        _rule(
            _es.email_id,
            where=and_(
                _es.account_id == p("a"), _none(_same_email(_me, _es), EMAIL_STATE)
            ),
        ),
    ),
    (
        "email whose showing is wrong",
        _rule(
            _es.email_id,
            where=and_(
                _es.account_id == p("a"),
                or_(and_(_es.shown > 0, ~_visible), and_(_es.shown == 0, _visible)),
            ),
        ),
    ),
    (
        "email without its facts",
        _rule(
            _es.email_id,
            where=and_(
                _es.account_id == p("a"), _none(_same_email(_e, _es), EMAIL_STATE)
            ),
        ),
    ),
    (
        "email without its state",
        _rule(
            _e.email_id,
            where=and_(_e.account_id == p("a"), _none(_same_email(_es, _e), EMAIL)),
        ),
    ),
    (
        "email without its blob",
        _rule(
            _e.email_id,
            where=and_(_e.account_id == p("a"), _none(_bl.hash == _e.hash, EMAIL)),
        ),
    ),
    (
        "deleted mark out of range (mailbox, uid)",
        _member_rule(_me.deleted.not_in((0, 1))),
    ),
    ("uid below 1 (mailbox, uid)", _member_rule(_me.uid < 1)),
    (
        "email that was made or shown after its last change",
        _rule(
            _es.email_id,
            where=and_(
                _es.account_id == p("a"),
                or_(_es.created_modseq > _es.modseq, _es.shown > _es.modseq),
            ),
        ),
    ),
    (
        "role that an older mailbox has",
        _rule(
            _b.mailbox_id,
            _b.role,
            start=MAILBOX.join(_rival, _rival.c.account_id == _b.account_id),
            where=and_(
                _b.account_id == p("a"),
                _b.role != "",
                _rival.c.role == _b.role,
                _rival.c.mailbox_id < _b.mailbox_id,
            ),
        ),
    ),
    (
        "count of threads of a mailbox that is not there",
        _rule(
            _mt.mailbox_id,
            _mt.thread_id,
            where=and_(
                _mt.account_id == p("a"), _none(_same_box(_b, _mt), MAILBOX_THREAD)
            ),
        ),
    ),
    (
        "expunge of a uid that is there (mailbox, uid)",
        _rule(
            _x.mailbox_id,
            _x.uid,
            start=EXPUNGED.join(
                MAILBOX_EMAIL, and_(_same_box(_me, _x), _me.uid == _x.uid)
            ),
            where=_x.account_id == p("a"),
        ),
    ),
    (
        "expunged uid not below uidnext (mailbox, uid)",
        _rule(
            _x.mailbox_id,
            _x.uid,
            start=EXPUNGED.join(MAILBOX, _same_box(_b, _x)),
            where=and_(_x.account_id == p("a"), _x.uid >= _b.uidnext),
        ),
    ),
    *(
        (f"end of {name} that is there", _undead(kind, table, key))
        for name, kind, table, key in LIVING
    ),
    *(
        (
            f"end of {name} above the last id",
            _rule(
                _d.object_id,
                start=DESTROYED.join(ACCOUNT, _a.account_id == _d.account_id),
                where=and_(
                    _d.account_id == p("a"),
                    _d.type == kind,
                    _d.object_id > LAST_OF[kind],
                ),
            ),
        )
        for name, kind, _, _ in LIVING
    ),
    (
        "disappearance of an email that is shown since before",
        _rule(
            _d.object_id,
            start=DESTROYED.join(
                EMAIL_STATE,
                and_(_es.account_id == _d.account_id, _es.email_id == _d.object_id),
            ),
            where=and_(
                _d.account_id == p("a"),
                _d.type == TYPE_EMAIL,
                _es.shown > 0,
                _es.shown <= _d.modseq,
            ),
        ),
    ),
)

PARENTS = Sql(
    select(_b.mailbox_id, _b.parent_id)
    .where(_b.account_id == p("a"))
    .order_by(_b.mailbox_id)
)

HOMELESS = _rule(
    _o.account_id, _o.owner_id, where=_none(_bl.hash == _o.hash, BLOB_OWNER)
)
SHARD_RULES: tuple[tuple[str, Sql], ...] = (
    ("owner of a blob that is not there (account, owner)", HOMELESS),
)

ORPHANS = {
    table.name: Sql(
        select(table.c.account_id)
        .where(
            table.c.account_id > p("after"),
            _none(_a.account_id == table.c.account_id, table),
        )
        .order_by(table.c.account_id)
        .limit(1)
    )
    for table in SHARD.tables.values()
    if "account_id" in table.c and table is not ACCOUNT
}
"""By table: the next account that has rows there and none of its own."""
