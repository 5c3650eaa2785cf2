"""The statements of ``edit`` and ``counts``."""

from __future__ import annotations

from sqlalchemy import case, delete, insert, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from storage.metadata.sql import InIds, Insert, Sql, p
from storage.metadata.tables import (
    ACCOUNT,
    DESTROYED,
    EMAIL,
    EMAIL_STATE,
    EXPUNGED,
    MAILBOX,
    MAILBOX_EMAIL,
    MAILBOX_THREAD,
)

_a, _b, _e = ACCOUNT.c, MAILBOX.c, EMAIL.c
_es, _me, _mt = EMAIL_STATE.c, MAILBOX_EMAIL.c, MAILBOX_THREAD.c
_states = (_es.account_id == p("a"), InIds(_es.email_id, "emails"))
_members = (_me.account_id == p("a"), InIds(_me.email_id, "emails"))
_in_box = (
    _me.account_id == p("a"),
    _me.mailbox_id == p("box"),
    InIds(_me.uid, "uids"),
)
_box_threads = (
    _mt.account_id == p("a"),
    _mt.mailbox_id == p("box"),
    InIds(_mt.thread_id, "threads"),
)

STATES = Sql(
    select(
        _es.email_id,
        _es.shown,
        _es.system,
        _es.keywords,
        _es.thread_id,
        _es.received_at,
        _es.size,
        _es.flags_modseq,
    ).where(*_states)
)
MEMBERS = Sql(
    select(_me.email_id, _me.mailbox_id, _me.uid, _me.deleted, _me.save_date).where(
        *_members
    )
)
BY_UIDS = Sql(select(_me.uid, _me.email_id, _me.modseq).where(*_in_box))
IN_BOX = Sql(
    select(_me.uid, _me.email_id, _me.modseq)
    .where(_me.account_id == p("a"), _me.mailbox_id == p("box"))
    .order_by(_me.uid)
    .limit(p("n"))
)
DELETED_UIDS = Sql(
    select(_me.uid)
    .where(_me.account_id == p("a"), _me.mailbox_id == p("box"), _me.deleted == 1)
    .order_by(_me.uid)
)

SET_FLAGS = Sql(
    update(EMAIL_STATE)
    .where(*_states)
    .values(
        system=p("system_bits"), keywords=p("words"), modseq=p("m"), flags_modseq=p("m")
    )
)
TOUCH = Sql(update(EMAIL_STATE).where(*_states).values(modseq=p("m")))
SET_SHOWN = Sql(update(EMAIL_STATE).where(*_states).values(shown=p("since")))
SET_UNSEEN = Sql(update(MAILBOX_EMAIL).where(*_members).values(unseen=p("on")))
SET_DELETED = Sql(
    update(MAILBOX_EMAIL).where(*_in_box).values(deleted=p("on"), modseq=p("m"))
)
REMOVE_MEMBERS = Sql(delete(MAILBOX_EMAIL).where(*_in_box))
ADD_MEMBER = Insert(insert(MAILBOX_EMAIL), tuple(MAILBOX_EMAIL.c.keys()))
EXPUNGE = Insert(insert(EXPUNGED), tuple(EXPUNGED.c.keys()))
BURY = Insert(insert(DESTROYED), tuple(DESTROYED.c.keys()))

_row = (_e.account_id == p("a"), InIds(_e.email_id, "emails"))
DROP_EMAILS = Sql(delete(EMAIL).where(*_row))
DROP_STATES = Sql(delete(EMAIL_STATE).where(*_states))

NEXT_EMAILS = Sql(
    update(ACCOUNT)
    .where(_a.account_id == p("a"))
    .values(last_email=_a.last_email + p("n"))
    .returning(_a.last_email)
)
_source = (_e.account_id == p("a"), _e.email_id == p("source"))
_same = [column for column in EMAIL.c if column.name not in {"account_id", "email_id"}]
COPY_EMAIL = Sql(
    insert(EMAIL).from_select(
        ["account_id", "email_id", *(column.name for column in _same)],
        select(_e.account_id, p("key"), *_same).where(*_source),
    )
)
COPY_STATE = Sql(
    insert(EMAIL_STATE).from_select(
        [column.name for column in EMAIL_STATE.c],
        select(
            _es.account_id,
            p("key"),
            p("m"),
            p("m"),
            p("m"),
            literal(0),
            p("system_bits"),
            p("words"),
            _es.thread_id,
            _es.received_at,
            _es.sent_at,
            _es.size,
            _es.has_attachment,
        ).where(_es.account_id == p("a"), _es.email_id == p("source")),
    )
)
COUNT_BOX = Sql(
    update(MAILBOX)
    .where(_b.account_id == p("a"), _b.mailbox_id == p("box"))
    .values(
        uidnext=case((_b.uidnext < p("next"), p("next")), else_=_b.uidnext),
        highestmodseq=p("m"),
        modseq=case((_b.modseq < p("object_m"), p("object_m")), else_=_b.modseq),
        messages=_b.messages + p("d_messages"),
        unseen=_b.unseen + p("d_unseen"),
        deleted=_b.deleted + p("d_deleted"),
        size=_b.size + p("d_size"),
        total_emails=_b.total_emails + p("d_total"),
        unread_emails=_b.unread_emails + p("d_unread"),
        total_threads=_b.total_threads + p("d_threads"),
        unread_threads=_b.unread_threads + p("d_unread_threads"),
    )
)
THREADS = Sql(select(_mt.thread_id, _mt.emails, _mt.unread).where(*_box_threads))
_thread = upsert(MAILBOX_THREAD)
SET_THREAD = Insert(
    _thread.on_conflict_do_update(
        index_elements=["account_id", "mailbox_id", "thread_id"],
        set_={"emails": _thread.excluded.emails, "unread": _thread.excluded.unread},
    ),
    tuple(MAILBOX_THREAD.c.keys()),
)
DROP_THREADS = Sql(delete(MAILBOX_THREAD).where(*_box_threads))
ACCOUNT_CHANGED = Sql(
    update(ACCOUNT)
    .where(_a.account_id == p("a"))
    .values(
        email_modseq=_a.modseq,
        mailbox_modseq=case((p("boxes") > 0, _a.modseq), else_=_a.mailbox_modseq),
        thread_modseq=case((p("threads") > 0, _a.modseq), else_=_a.thread_modseq),
        message_count=_a.message_count + p("d_count"),
        quota_used=_a.quota_used + p("d_size"),
    )
)
