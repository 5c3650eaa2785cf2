"""After a restore: no client may trust what it remembers (DESIGN decision 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select, update

from storage.metadata.accounts import found, read_state, take
from storage.metadata.sql import Sql, p
from storage.metadata.tables import ACCOUNT, MAILBOX

if TYPE_CHECKING:
    from storage.api import Tx
    from storage.model import AccountState

_a, _b = ACCOUNT.c, MAILBOX.c
_mine = _a.account_id == p("a")
KINDS = ("mailbox", "email", "thread", "identity", "submission")  # that have states
LAST = Sql(select(_a.last_uidvalidity, _a.last_mailbox).where(_mine))
RAISE = Sql(
    update(ACCOUNT)
    .where(_mine)
    .values(
        epoch=_a.epoch + 1,
        last_uidvalidity=p("last"),
        tombstone_floor=_a.modseq,
        **{f"{kind}_modseq": _a.modseq for kind in KINDS},
    )
)
RENEW = Sql(
    update(MAILBOX)
    .where(_b.account_id == p("a"))
    .values(uidvalidity=_b.mailbox_id + p("base"), highestmodseq=p("m"), modseq=p("m"))
)


def raise_epoch(tx: Tx, account: int, _: None) -> AccountState:
    """Give the account a new epoch and every mailbox a new, greater UIDVALIDITY.

    For an account whose rows went back in time: JMAP states of the old epoch are
    refused, IMAP clients load their mailboxes anew.  The account's search index is
    to be dropped with it.
    """
    modseq = take(tx, account)
    last, boxes = found(tx.one(LAST, {"a": account}))
    base = max(int(tx.now), last)
    tx.run(RENEW, {"a": account, "base": base, "m": modseq})
    tx.run(RAISE, {"a": account, "last": base + boxes})
    return read_state(tx, account)
