"""The account's row: taken first by every writing unit, and held to the commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select, update

from mailserverd.core.errors import Kind, MailError
from storage.metadata.sql import Sql, inline, p
from storage.metadata.tables import ACCOUNT
from storage.model import AccountState

if TYPE_CHECKING:
    from storage.api import Row, Tx

_c = ACCOUNT.c
_mine = _c.account_id == p("a")
STATE_COLUMNS = (
    _c.epoch,
    _c.modseq,
    _c.mailbox_modseq,
    _c.email_modseq,
    _c.thread_modseq,
    _c.identity_modseq,
    _c.submission_modseq,
    _c.quota_limit,
    _c.quota_used,
    _c.message_count,
    _c.last_email,
)
STATE = Sql(select(*STATE_COLUMNS).where(_mine))
FLOOR = Sql(select(_c.tombstone_floor, *STATE_COLUMNS).where(_mine))
TAKE = Sql(
    update(ACCOUNT).where(_mine).values(modseq=_c.modseq + 1).returning(_c.modseq)
)
RELEASE = Sql(update(ACCOUNT).where(_mine).values(modseq=_c.modseq - 1))
QUOTA = Sql(select(_c.quota_limit, _c.quota_used).where(_mine))
SET_QUOTA = Sql(update(ACCOUNT).where(_mine).values(quota_limit=p("quota")))


def no_account() -> MailError:
    """Return the error for an account that this shard does not hold."""
    return MailError(Kind.NOT_FOUND, "no such account")


def found(row: Row | None) -> Row:
    """Return the account's row, or raise NOT_FOUND."""
    if row is None:
        raise no_account()
    return row


def take(tx: Tx, account: int) -> int:
    """Take the account for writing and return the modseq of what follows."""
    modseq: int = found(tx.one(TAKE, {"a": account}))[0]
    return modseq


def release(tx: Tx, account: int) -> int:
    """Undo ``take`` when nothing changed; returns the modseq that stays."""
    tx.run(RELEASE, {"a": account})
    return read_state(tx, account).modseq


def read_state(tx: Tx, account: int) -> AccountState:
    """Return the account's change counters."""
    return AccountState(*found(tx.one(STATE, {"a": account})))


def read_floor(tx: Tx, account: int) -> tuple[int, AccountState]:
    """Return the modseq below which tombstones were pruned, and the counters."""
    row = found(tx.one(FLOOR, {"a": account}))
    return row[0], AccountState(*row[1:])


@inline
def state(tx: Tx, account: int, _: None) -> AccountState:
    """Return the account's change counters (a reading unit)."""
    return read_state(tx, account)


@inline
def exists(tx: Tx, account: int, _: None) -> bool:
    """Return whether the shard has an account (a reading unit)."""
    return tx.one(STATE, {"a": account}) is not None


def set_quota(tx: Tx, account: int, octets: int) -> int:
    """Set the quota in octets (0: unlimited); returns the modseq."""
    if not tx.run(SET_QUOTA, {"a": account, "quota": octets}):
        raise no_account()
    return read_state(tx, account).modseq


@inline
def quota(tx: Tx, account: int, _: None) -> tuple[int, int]:
    """Return (limit, used) in octets; limit 0 is unlimited."""
    row = found(tx.one(QUOTA, {"a": account}))
    return row[0], row[1]
