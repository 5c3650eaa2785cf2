"""``storage check --repair``: mending of an account what its other rows say.

Each step is a unit of its own, does nothing where nothing is wrong, and says what it
did.  Nothing that a user could still read is thrown away: what lost its place comes
into INBOX.  Where clients may have seen another past than the rows now tell, the
account gets a new epoch and its mailboxes new UIDVALIDITYs.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from storage.metadata import boxes, check
from storage.metadata import repair_sql as sql
from storage.metadata.accounts import read_state, take
from storage.metadata.check_sql import PARENTS
from storage.metadata.deliver import (
    ADD_MEMBER,
    ADD_STATE,
    HAS_ACCOUNT,
    NEW_ACCOUNT,
    prepare_account,
)
from storage.metadata.epochs import raise_epoch
from storage.metadata.sql import heavy

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.api import Tx
    from storage.metadata.sql import Sql
    from storage.model import NewAccount

PIECE = 5000  # emails that one unit gives a new place or state


@dataclasses.dataclass(frozen=True, slots=True)
class Mended:
    """What a step did, one line each.

    ``distrust``: clients may know better than to believe what the rows say now, so
    the account needs a new epoch.  ``more``: the step is to be run again.
    """

    lines: tuple[str, ...] = ()
    distrust: bool = False
    more: bool = False


def steps(_tx: Tx, _account: int, _: None) -> int:
    """Return how many steps there are, to be run in order."""
    return len(STEPS)


@heavy
def mend(tx: Tx, account: int, step: int) -> Mended:
    """Run one step of the repair; NOT_FOUND for an account without its row."""
    read_state(tx, account)
    return STEPS[step](tx, account)


@heavy
def restore(tx: Tx, account: int, new: NewAccount) -> Mended:
    """Make an account's row anew, with the counters that its other rows show."""
    if tx.one(HAS_ACCOUNT, {"a": account}) is not None:
        return Mended()
    epoch = int(tx.now)  # greater than any that clients know
    if tx.one(sql.IDENTITIES, {"a": account}) is None:
        prepare_account(tx, account, dataclasses.replace(new, epoch=epoch))
    else:
        tx.run(
            NEW_ACCOUNT,
            {
                "account_id": account,
                "epoch": epoch,
                "modseq": 0,
                "quota_limit": new.quota_limit,
                "identity_modseq": 0,
            },
        )
    _counters_above(tx, account)
    return Mended(("row of the account made anew",), distrust=True)


@heavy
def renew(tx: Tx, account: int, _: None) -> str:
    """Give the account a new epoch and UIDVALIDITYs; returns what to say of it."""
    tx.run(sql.FORGET_ENDS, {"a": account})
    tx.run(sql.FORGET_EXPUNGED, {"a": account})
    state = raise_epoch(tx, account, None)
    return f"epoch raised to {state.epoch}, every UIDVALIDITY renewed"


@heavy
def rehearse(tx: Tx, account: int, _: None) -> None:
    """Do all steps and undo them: raises CONFLICT with ``lines`` and ``distrust``."""
    lines: list[str] = []
    distrust = False
    for step in STEPS:
        done = step(tx, account)
        lines += done.lines
        distrust = distrust or done.distrust
    raise MailError(Kind.CONFLICT, "rehearsed", lines=lines, distrust=distrust)


# --- steps ---------------------------------------------------------------------------


def _counters_above(tx: Tx, account: int) -> Mended:
    """Change counter and last ids are at least what the rows show."""
    params = {"a": account}
    lines: list[str] = []
    behind = False
    for name, (read, write) in sql.LASTS.items():
        kept, *found = tx.one(read, params) or (0, 0)
        seen = max(found)
        if seen > kept:
            tx.run(write, {**params, "value": seen})
            lines.append(f"{name} raised from {kept} to {seen}")
            behind = behind or name == "modseq"
    if tx.run(sql.LIFT_TYPES, params):
        lines.append("change counters of types raised to the account's")
    return Mended(tuple(lines), distrust=behind)


def _inbox(tx: Tx, account: int) -> Mended:
    """There is an INBOX, and the account knows it."""
    params = {"a": account}
    if tx.one(sql.INBOX, params) is not None:
        return Mended()
    modseq = take(tx, account)
    named = tx.one(boxes.NAMED, {**params, "parent": 0, "wanted": "INBOX"})
    if (
        named is not None
        and tx.one(boxes.BY_ROLE, {**params, "wanted": "inbox"}) is None
    ):
        tx.run(sql.GIVE_ROLE, {**params, "box": named[0], "m": modseq})
    box = boxes.by_role(tx, account, modseq, "inbox")
    tx.run(boxes.SET_INBOX, {**params, "box": box})
    tx.run(boxes.TOUCHED, params)
    return Mended((f"INBOX is mailbox {box}",))


def _tree(tx: Tx, account: int) -> Mended:
    """Every mailbox hangs below the top level."""
    params = {"a": account}
    rows = tx.all(PARENTS, params)
    known = {row[0] for row in rows}
    lost = [box for box, parent in rows if parent and parent not in known]
    cut = sorted({*lost, *check.loops(rows)})
    if not cut:
        return Mended()
    modseq = take(tx, account)
    for box in cut:
        name = _free_name(tx, account, box)
        moved = {**params, "box": box, "n_name": name, "m": modseq}
        tx.run(sql.TO_TOP, moved)
    tx.run(boxes.TOUCHED, params)
    return Mended(tuple(f"mailbox {box} moved to the top level" for box in cut))


def _free_name(tx: Tx, account: int, box: int) -> str:
    """Return a mailbox's name, or one like it that is free at the top level."""
    name: str = boxes.get(tx, account, box)[1]
    row = tx.one(boxes.NAMED, {"a": account, "parent": 0, "wanted": name})
    return name if row is None or row[0] == box else f"{name} ({box})"


def _states(tx: Tx, account: int) -> Mended:
    """Emails whose state is lost get one, without keywords."""
    rows = tx.all(sql.STATELESS, {"a": account, "n": PIECE})
    if not rows:
        return Mended()
    modseq = take(tx, account)
    last = tx.one(sql.LASTS["last_thread"][0], {"a": account})
    thread = max(last) if last else 0
    for email, size, thread_id, received_at, unseen, deleted in rows:
        if thread_id is None:
            thread += 1
        shown = 0 if deleted == 1 else modseq
        tx.run(
            ADD_STATE,
            (
                account,
                email,
                modseq,
                modseq,
                modseq,
                shown,
                0 if unseen is None else 1 - unseen,
                "",
                thread if thread_id is None else thread_id,
                int(tx.now) if received_at is None else received_at,
                None,
                size or 0,
                0,
            ),
        )
    tx.run(sql.LASTS["last_thread"][1], {"a": account, "value": thread})
    return Mended(
        tuple(f"email {row[0]}: state made anew, without keywords" for row in rows),
        distrust=True,
        more=len(rows) == PIECE,
    )


def _homeless(tx: Tx, account: int) -> Mended:
    """Emails in no mailbox come into INBOX."""
    params = {"a": account}
    rows = tx.all(sql.HOMELESS, {**params, "n": PIECE})
    if not rows:
        return Mended()
    modseq = take(tx, account)
    row = tx.one(sql.INBOX, params)
    box, uid = row if row else (0, 0)
    used = tx.one(sql.LAST_UID, {**params, "box": box})
    uid = max(uid, ((used[0] if used else 0) or 0) + 1)
    for email, thread, received_at, bits in rows:
        unseen = 1 - (bits & 1)
        tx.run(
            ADD_MEMBER,
            (account, box, uid, email, modseq, 0, unseen, received_at, thread,
             int(tx.now)),
        )  # fmt: skip
        uid += 1
    tx.run(sql.SET_UIDNEXT, {**params, "box": box, "value": uid, "m": modseq})
    return Mended(
        tuple(f"email {row[0]} put into INBOX" for row in rows),
        distrust=True,
        more=len(rows) == PIECE,
    )


def _statement(
    text: str, statement: Sql, *, distrust: bool = True
) -> Callable[[Tx, int], Mended]:
    """Return a step that is one statement; ``text`` is told with the rows' number."""

    def step(tx: Tx, account: int) -> Mended:
        params = {"a": account, "m": read_state(tx, account).modseq + 1}
        rows = tx.run(statement, params)
        if not rows:
            return Mended()
        take(tx, account)
        tx.run(sql.TOUCHED, params)
        return Mended((f"{rows} {text}",), distrust=distrust)

    return step


def _counters(tx: Tx, account: int) -> Mended:
    """Every counter is what the memberships show."""
    wrong = [
        line
        for part in check.parts(tx, account, None)
        if part[0] in {"box", "used"}
        for line in check.check_part(tx, account, part)
    ]
    if not wrong:
        return Mended()
    modseq = take(tx, account)
    params = {"a": account}
    for box, _ in tx.all(PARENTS, params):
        here = {**params, "box": box}
        right = check.recount(tx, account, box)
        tx.run(sql.DROP_THREADS, here)
        tx.run(sql.ADD_THREADS, here)
        values = {f"n_{n}": v for n, v in zip(check.NAMES, right, strict=True)}
        tx.run(sql.SET_COUNTS, {**here, "m": modseq, **values})
    used = tx.one(check.USED, params) or (0, 0)
    tx.run(sql.SET_USED, {**params, "n_count": used[0], "n_size": used[1]})
    return Mended(tuple(f"counted anew: {line}" for line in wrong))


STEPS: tuple[Callable[[Tx, int], Mended], ...] = (
    _counters_above,
    _statement(
        "mailboxes without a role that an older one has", sql.DROP_ROLES, distrust=False
    ),
    _inbox,
    _tree,
    _states,
    _statement("emails removed whose facts are lost", sql.DROP_FACTLESS),
    _statement("memberships without an email removed", sql.DROP_EMPTY),
    _statement("memberships without a mailbox removed", sql.DROP_ROOMLESS),
    _statement("memberships removed that another one repeats", sql.DROP_TWINS),
    _statement("memberships without a valid uid removed", sql.DROP_UIDLESS),
    _statement("deleted marks mended", sql.MEND_DELETED),
    _homeless,
    _statement("memberships made like their emails", sql.MEND_MEMBERS),
    _statement("emails that JMAP shows again", sql.SHOW),
    _statement("emails that JMAP shows no longer", sql.HIDE),
    _statement("emails that are as new as their memberships now", sql.LIFT_EMAILS),
    _statement("mailboxes with a greater uidnext", sql.MEND_UIDNEXT),
    _statement("mailboxes that are as new as what they hold now", sql.MEND_BOXES),
    _statement("expunges of uids that are there forgotten", sql.DROP_UNEXPUNGED),
    *(
        _statement(f"noted ends of a living {name} forgotten", statement)
        for name, statement in sql.DROP_UNDEAD.items()
    ),
    _statement("disappearances of shown emails forgotten", sql.DROP_UNHIDDEN),
    _statement(
        "counts of threads in lost mailboxes removed",
        sql.DROP_THREADS_OF_NOTHING,
        distrust=False,
    ),
    _counters,
)
