"""The statements of ``repair``: each touches what is wrong, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, case, delete, exists, func, insert, or_, select, update

from storage.metadata.check import NAMES, PER_THREAD
from storage.metadata.check_sql import LIVING, TYPES
from storage.metadata.sql import Sql, p
from storage.metadata.tables import (
    ACCOUNT,
    BLOB,
    DESTROYED,
    EMAIL,
    EMAIL_STATE,
    EXPUNGED,
    IDENTITY,
    MAILBOX,
    MAILBOX_EMAIL,
    MAILBOX_THREAD,
    SUBMISSION,
    THREAD_KEY,
    TYPE_EMAIL,
    TYPE_IDENTITY,
    TYPE_MAILBOX,
    TYPE_ROW,
    TYPE_SUBMISSION,
)
from storage.model import SEEN

if TYPE_CHECKING:
    from sqlalchemy import Column, Table

_a, _b, _e, _es = ACCOUNT.c, MAILBOX.c, EMAIL.c, EMAIL_STATE.c
_me, _mt, _k = MAILBOX_EMAIL.c, MAILBOX_THREAD.c, THREAD_KEY.c
_x, _d, _i, _s = EXPUNGED.c, DESTROYED.c, IDENTITY.c, SUBMISSION.c
_mine = _a.account_id == p("a")
_twin = MAILBOX_EMAIL.alias("twin")
_older = MAILBOX.alias("older")


def _mine_in(table: Table) -> Any:
    return table.c.account_id == p("a")


def _max(column: Column[Any]) -> Any:
    greatest = select(func.max(column)).where(_mine_in(column.table))
    return func.coalesce(greatest.scalar_subquery(), 0)


def _ended(kind: int) -> Any:
    """Return the greatest id of an object whose end is noted: it is used up."""
    greatest = select(func.max(_d.object_id)).where(
        _mine_in(DESTROYED), _d.type == kind
    )
    return func.coalesce(greatest.scalar_subquery(), 0)


def _last(kept: Column[Any], *seen: Any) -> tuple[Sql, Sql]:
    """Return how to read a counter, with what must not be above it, and to set it."""
    return (
        Sql(select(kept, *seen).where(_mine)),
        Sql(update(ACCOUNT).where(_mine).values({kept.name: p("value")})),
    )


def _same_email(left: Any, right: Any) -> Any:
    return and_(left.account_id == right.account_id, left.email_id == right.email_id)


def _same_box(left: Any, right: Any) -> Any:
    return and_(
        left.account_id == right.account_id, left.mailbox_id == right.mailbox_id
    )


LASTS: dict[str, tuple[Sql, Sql]] = {
    "modseq": _last(
        _a.modseq,
        *(
            _max(column)
            for table, names in (
                (EMAIL_STATE, ("modseq", "flags_modseq", "created_modseq", "shown")),
                (MAILBOX_EMAIL, ("modseq",)),
                (MAILBOX, ("modseq", "highestmodseq", "created_modseq")),
                (MAILBOX, ("properties_modseq",)),
                (EXPUNGED, ("modseq",)),
                (DESTROYED, ("modseq",)),
                (IDENTITY, ("modseq",)),
                (SUBMISSION, ("modseq",)),
            )
            for column in (table.c[name] for name in names)
        ),
        *TYPES,
    ),
    "last_mailbox": _last(_a.last_mailbox, _max(_b.mailbox_id), _ended(TYPE_MAILBOX)),
    "last_email": _last(
        _a.last_email, _max(_es.email_id), _max(_e.email_id), _ended(TYPE_ROW)
    ),
    "last_thread": _last(_a.last_thread, _max(_es.thread_id), _max(_k.thread_id)),
    "last_identity": _last(
        _a.last_identity, _max(_i.identity_id), _ended(TYPE_IDENTITY)
    ),
    "last_submission": _last(
        _a.last_submission, _max(_s.submission_id), _ended(TYPE_SUBMISSION)
    ),
    "last_uidvalidity": _last(_a.last_uidvalidity, _max(_b.uidvalidity)),
}
IDENTITIES = Sql(select(_i.identity_id).where(_mine_in(IDENTITY)).limit(1))
LIFT_TYPES = Sql(
    update(ACCOUNT)
    .where(
        _mine,
        or_(
            _max(_b.modseq) > _a.mailbox_modseq,
            _max(_es.modseq) > _a.email_modseq,
            _max(_i.modseq) > _a.identity_modseq,
            _max(_s.modseq) > _a.submission_modseq,
        ),
    )
    .values({column.name: _a.modseq for column in TYPES[:-1]})
)
TOUCHED = Sql(
    update(ACCOUNT)
    .where(_mine)
    .values({column.name: _a.modseq for column in TYPES[:3]})
)

# --- mailboxes -----------------------------------------------------------------------

INBOX = Sql(
    select(_a.inbox_id, _b.uidnext)
    .join_from(
        ACCOUNT,
        MAILBOX,
        and_(_b.account_id == _a.account_id, _b.mailbox_id == _a.inbox_id),
    )
    .where(_mine, _b.role == "inbox")
)
_changed = {"modseq": p("m"), "properties_modseq": p("m")}
DROP_ROLES = Sql(
    update(MAILBOX)
    .where(
        _mine_in(MAILBOX),
        _b.role != "",
        exists().where(
            _older.c.account_id == _b.account_id,
            _older.c.role == _b.role,
            _older.c.mailbox_id < _b.mailbox_id,
        ),
    )
    .values(role="", **_changed)
)
_box = (_b.account_id == p("a"), _b.mailbox_id == p("box"))
TO_TOP = Sql(
    update(MAILBOX).where(*_box).values(parent_id=0, name=p("n_name"), **_changed)
)
GIVE_ROLE = Sql(
    update(MAILBOX).where(*_box, _b.role == "").values(role="inbox", **_changed)
)
SET_UIDNEXT = Sql(
    update(MAILBOX)
    .where(*_box)
    .values(uidnext=p("value"), highestmodseq=p("m"), modseq=p("m"))
)


def _last_uid(table: Table) -> Any:
    greatest = select(func.max(table.c.uid)).where(_same_box(table.c, _b))
    return func.coalesce(greatest.correlate(MAILBOX).scalar_subquery(), 0)


_in_use, _was_used = _last_uid(MAILBOX_EMAIL), _last_uid(EXPUNGED)
MEND_UIDNEXT = Sql(
    update(MAILBOX)
    .where(_mine_in(MAILBOX), or_(_in_use >= _b.uidnext, _was_used >= _b.uidnext))
    .values(uidnext=case((_in_use > _was_used, _in_use), else_=_was_used) + 1)
)
MEND_BOXES = Sql(
    update(MAILBOX)
    .where(
        _mine_in(MAILBOX),
        or_(
            exists()
            .where(_same_box(_me, _b), _me.modseq > _b.highestmodseq)
            .correlate(MAILBOX),
            exists(
                select(_es.email_id)
                .join_from(EMAIL_STATE, MAILBOX_EMAIL, _same_email(_es, _me))
                .where(_same_box(_me, _b), _es.flags_modseq > _b.highestmodseq)
                .correlate(MAILBOX)
            ),
            exists()
            .where(_same_box(_x, _b), _x.modseq > _b.highestmodseq)
            .correlate(MAILBOX),
        ),
    )
    .values(highestmodseq=p("m"), modseq=p("m"))
)

# --- emails --------------------------------------------------------------------------

_no_state = ~exists().where(_same_email(_es, _e)).correlate(EMAIL)
STATELESS = Sql(
    select(
        _e.email_id,
        func.max(BLOB.c.size),
        func.max(_me.thread_id),
        func.max(_me.received_at),
        func.min(_me.unseen),
        func.min(_me.deleted),
    )
    .select_from(
        EMAIL.outerjoin(BLOB, BLOB.c.hash == _e.hash).outerjoin(
            MAILBOX_EMAIL, _same_email(_me, _e)
        )
    )
    .where(_mine_in(EMAIL), _no_state)
    .group_by(_e.email_id)
    .order_by(_e.email_id)
    .limit(p("n"))
)
_placed = exists().where(_same_email(_me, _es)).correlate(EMAIL_STATE)
_visible = (
    exists().where(_same_email(_me, _es), _me.deleted == 0).correlate(EMAIL_STATE)
)
HOMELESS = Sql(
    select(_es.email_id, _es.thread_id, _es.received_at, _es.system)
    .where(_mine_in(EMAIL_STATE), ~_placed)
    .order_by(_es.email_id)
    .limit(p("n"))
)
LAST_UID = Sql(
    select(func.max(_me.uid)).where(_mine_in(MAILBOX_EMAIL), _me.mailbox_id == p("box"))
)
DROP_FACTLESS = Sql(
    delete(EMAIL_STATE).where(
        _mine_in(EMAIL_STATE),
        ~exists().where(_same_email(_e, _es)).correlate(EMAIL_STATE),
    )
)
SHOW = Sql(
    update(EMAIL_STATE)
    .where(_mine_in(EMAIL_STATE), _es.shown == 0, _visible)
    .values(shown=p("m"), modseq=p("m"))
)
HIDE = Sql(
    update(EMAIL_STATE)
    .where(_mine_in(EMAIL_STATE), _es.shown > 0, ~_visible)
    .values(shown=0, modseq=p("m"))
)
LIFT_EMAILS = Sql(
    update(EMAIL_STATE)
    .where(
        _mine_in(EMAIL_STATE),
        or_(
            _es.flags_modseq > _es.modseq,
            _es.created_modseq > _es.modseq,
            _es.shown > _es.modseq,
            exists()
            .where(_same_email(_me, _es), _me.modseq > _es.modseq)
            .correlate(EMAIL_STATE),
        ),
    )
    .values(modseq=p("m"))
)

# --- memberships ---------------------------------------------------------------------


def _drop_members(broken: Any) -> Sql:
    return Sql(delete(MAILBOX_EMAIL).where(_mine_in(MAILBOX_EMAIL), broken))


def _of_email(column: Any) -> Any:
    found = select(column).where(_same_email(_es, _me)).correlate(MAILBOX_EMAIL)
    return found.scalar_subquery()


_unseen = 1 - _es.system.op("&")(SEEN)
DROP_EMPTY = _drop_members(
    ~exists().where(_same_email(_es, _me)).correlate(MAILBOX_EMAIL)
)
DROP_ROOMLESS = _drop_members(
    ~exists().where(_same_box(_b, _me)).correlate(MAILBOX_EMAIL)
)
DROP_TWINS = _drop_members(
    exists()
    .where(
        _same_email(_twin.c, _me),
        _twin.c.mailbox_id == _me.mailbox_id,
        _twin.c.uid < _me.uid,
    )
    .correlate(MAILBOX_EMAIL)
)
DROP_UIDLESS = _drop_members(_me.uid < 1)
MEND_DELETED = Sql(
    update(MAILBOX_EMAIL)
    .where(_mine_in(MAILBOX_EMAIL), _me.deleted.not_in((0, 1)))
    .values(deleted=1, modseq=p("m"))
)
MEND_MEMBERS = Sql(
    update(MAILBOX_EMAIL)
    .where(
        _mine_in(MAILBOX_EMAIL),
        exists()
        .where(
            _same_email(_es, _me),
            or_(
                _me.thread_id != _es.thread_id,
                _me.received_at != _es.received_at,
                _me.unseen != _unseen,
            ),
        )
        .correlate(MAILBOX_EMAIL),
    )
    .values(
        thread_id=_of_email(_es.thread_id),
        received_at=_of_email(_es.received_at),
        unseen=_of_email(_unseen),
        modseq=p("m"),
    )
)

# --- tombstones ----------------------------------------------------------------------

FORGET_ENDS = Sql(delete(DESTROYED).where(_mine_in(DESTROYED)))
FORGET_EXPUNGED = Sql(delete(EXPUNGED).where(_mine_in(EXPUNGED)))
DROP_UNEXPUNGED = Sql(
    delete(EXPUNGED).where(
        _mine_in(EXPUNGED),
        exists().where(_same_box(_me, _x), _me.uid == _x.uid).correlate(EXPUNGED),
    )
)


def _drop_ends(kind: int, table: Table, found: Any) -> Sql:
    living = exists().where(table.c.account_id == _d.account_id, found)
    return Sql(
        delete(DESTROYED).where(
            _mine_in(DESTROYED), _d.type == kind, living.correlate(DESTROYED)
        )
    )


DROP_UNDEAD = {
    name: _drop_ends(kind, table, key == _d.object_id)
    for name, kind, table, key in LIVING
}
DROP_UNHIDDEN = _drop_ends(
    TYPE_EMAIL,
    EMAIL_STATE,
    and_(_es.email_id == _d.object_id, _es.shown > 0, _es.shown <= _d.modseq),
)

# --- counters ------------------------------------------------------------------------

_in_box = (_mt.account_id == p("a"), _mt.mailbox_id == p("box"))
DROP_THREADS = Sql(delete(MAILBOX_THREAD).where(*_in_box))
ADD_THREADS = Sql(
    insert(MAILBOX_THREAD).from_select(
        ["account_id", "mailbox_id", "thread_id", "emails", "unread"], PER_THREAD
    )
)
DROP_THREADS_OF_NOTHING = Sql(
    delete(MAILBOX_THREAD).where(
        _mine_in(MAILBOX_THREAD),
        ~exists().where(_same_box(_b, _mt)).correlate(MAILBOX_THREAD),
    )
)
SET_COUNTS = Sql(
    update(MAILBOX)
    .where(*_box)
    .values(modseq=p("m"), **{name: p(f"n_{name}") for name in NAMES})
)
SET_USED = Sql(
    update(ACCOUNT)
    .where(_mine)
    .values(
        message_count=p("n_count"), quota_used=p("n_size"), mailbox_modseq=_a.modseq
    )
)
