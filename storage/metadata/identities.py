"""Identities (RFC 8621 section 6): rows of the shard, one change counter with mail."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select, update

from mailserverd.core.errors import Kind, MailError
from storage.metadata import edit_sql
from storage.metadata.accounts import read_state, release, take
from storage.metadata.sql import Sql, inline, p
from storage.metadata.tables import ACCOUNT, IDENTITY, TYPE_IDENTITY
from storage.model import AccountState, Identity

if TYPE_CHECKING:
    from storage.api import Row, Tx

MAX_IDENTITIES = 500

_i, _a = IDENTITY.c, ACCOUNT.c
_columns = (
    _i.identity_id,
    _i.name,
    _i.email,
    _i.reply_to,
    _i.bcc,
    _i.text_signature,
    _i.html_signature,
    _i.may_delete,
    _i.modseq,
)
_one = (_i.account_id == p("a"), _i.identity_id == p("key"))
ALL = Sql(select(*_columns).where(_i.account_id == p("a")).order_by(_i.identity_id))
ONE = Sql(select(*_columns, _i.created_modseq).where(*_one))
COUNT = Sql(select(func.count()).select_from(IDENTITY).where(_i.account_id == p("a")))
INSERT = Sql(insert(IDENTITY), tuple(IDENTITY.c.keys()))
CHANGE = Sql(
    update(IDENTITY)
    .where(*_one)
    .values(
        name=p("new_name"),
        reply_to=p("new_reply_to"),
        bcc=p("new_bcc"),
        text_signature=p("new_text"),
        html_signature=p("new_html"),
        modseq=p("m"),
    )
)
DELETE = Sql(delete(IDENTITY).where(*_one))
NEXT = Sql(
    update(ACCOUNT)
    .where(_a.account_id == p("a"))
    .values(last_identity=_a.last_identity + 1, identity_modseq=_a.modseq)
    .returning(_a.last_identity)
)
TOUCH = Sql(
    update(ACCOUNT).where(_a.account_id == p("a")).values(identity_modseq=_a.modseq)
)


def _identity(row: Row) -> Identity:
    number, name, email, reply_to, bcc, text, html, may_delete, modseq = row[:9]
    return Identity(
        number, name, email, reply_to, bcc, text, html, bool(may_delete), modseq
    )


def _get(tx: Tx, account: int, identity_id: int) -> Row:
    row = tx.one(ONE, {"a": account, "key": identity_id})
    if row is None:
        raise MailError(Kind.NOT_FOUND, "no such identity")
    return row


@inline
def list_all(
    tx: Tx, account: int, _: None
) -> tuple[AccountState, tuple[Identity, ...]]:
    """Return the account's identities in order of their ids."""
    state = read_state(tx, account)
    return state, tuple(_identity(row) for row in tx.all(ALL, {"a": account}))


def create(tx: Tx, account: int, new: Identity) -> Identity:
    """Add an identity; ``identity_id`` and ``modseq`` are set here.  LIMIT."""
    modseq = take(tx, account)
    count = tx.one(COUNT, {"a": account})
    if count and count[0] >= MAX_IDENTITIES:
        raise MailError(Kind.LIMIT, "too many identities")
    row = tx.one(NEXT, {"a": account})
    made = dataclasses.replace(new, identity_id=row[0] if row else 0, modseq=modseq)
    tx.run(
        INSERT,
        {
            "account_id": account,
            "identity_id": made.identity_id,
            "name": made.name,
            "email": made.email,
            "reply_to": made.reply_to,
            "bcc": made.bcc,
            "text_signature": made.text_signature,
            "html_signature": made.html_signature,
            "may_delete": int(made.may_delete),
            "created_modseq": modseq,
            "modseq": modseq,
        },
    )
    return made


def change(tx: Tx, account: int, new: Identity) -> Identity:
    """Replace what may change (all but the address).  NOT_FOUND."""
    modseq = take(tx, account)
    old = _identity(_get(tx, account, new.identity_id))
    same = dataclasses.replace(
        new, email=old.email, may_delete=old.may_delete, modseq=old.modseq
    )
    if same == old:
        release(tx, account)
        return old
    tx.run(
        CHANGE,
        {
            "a": account,
            "key": new.identity_id,
            "new_name": new.name,
            "new_reply_to": new.reply_to,
            "new_bcc": new.bcc,
            "new_text": new.text_signature,
            "new_html": new.html_signature,
            "m": modseq,
        },
    )
    tx.run(TOUCH, {"a": account})
    return dataclasses.replace(same, modseq=modseq)


def destroy(tx: Tx, account: int, identity_id: int) -> int:
    """Remove an identity; returns the modseq.  NOT_FOUND, FORBIDDEN."""
    modseq = take(tx, account)
    row = _get(tx, account, identity_id)
    if not row[7]:
        raise MailError(Kind.FORBIDDEN, "this identity cannot be deleted")
    tx.run(DELETE, {"a": account, "key": identity_id})
    tx.run(
        edit_sql.BURY,
        (account, TYPE_IDENTITY, modseq, identity_id, row[9], 0, int(tx.now)),
    )
    tx.run(TOUCH, {"a": account})
    return modseq
