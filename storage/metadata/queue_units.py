"""Units of the outbound queue: enqueue, claim, finish, notices (DESIGN section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from mailserverd.core.names import a_labels
from storage.metadata import queue_rows as rows
from storage.metadata.queue_tables import MESSAGE, QUEUE_STATE, RECIPIENT
from storage.metadata.sql import InIds, Sql, ids, inline, p
from storage.queue import (
    FINAL,
    Claim,
    ClaimLimits,
    Entry,
    Finished,
    NewQueued,
    Notice,
    Outcome,
    State,
    queue_id,
    queue_number,
)

if TYPE_CHECKING:
    from storage.api import Tx

SHIFT = 16  # ids: seconds, then a count within the second
ROUNDS = 16  # look-ups of one claim
MAX_REPLY = 1000  # characters kept of a peer's reply

M, R = MESSAGE.c, RECIPIENT.c
BY_KEY = Sql(select(M.message).where(M.key == p("key")))
LAST = Sql(select(func.max(M.message)))
INSERT_MESSAGE = Sql(insert(MESSAGE))
INSERT_RECIPIENT = Sql(insert(RECIPIENT))
_state = upsert(QUEUE_STATE).values(id=1, token=1)
NEXT_TOKEN = Sql(
    _state.on_conflict_do_update(
        index_elements=["id"], set_={"token": QUEUE_STATE.c.token + 1}
    ).returning(QUEUE_STATE.c.token)
)
CANDIDATES = Sql(
    select(R.message, R.domain)
    .where(R.due <= p("now"), ~InIds(R.domain, "busy"), ~InIds(R.message, "seen"))
    .order_by(R.due)
    .limit(p("count"))
)
DUE_OF = Sql(
    select(*rows.RECIPIENT_COLUMNS)
    .where(R.message == p("message"), R.domain == p("domain"), R.due <= p("now"))
    .order_by(R.position)
    .limit(p("count"))
)
LEASE = Sql(
    update(RECIPIENT)
    .where(R.message == p("which"), InIds(R.position, "positions"))
    .values(
        state=int(State.LEASED),
        due=p("until"),
        token=p("new_token"),
        attempts=R.attempts + 1,
    )
)
EXTEND = Sql(
    update(RECIPIENT)
    .where(
        R.message == p("which"),
        R.token == p("of_token"),
        R.state == int(State.LEASED),
    )
    .values(due=p("until"))
)
STATES = Sql(
    select(R.position, R.state, R.token, R.wish, R.notice).where(
        R.message == p("message")
    )
)
RECORD = Sql(
    update(RECIPIENT)
    .where(R.message == p("which"), R.position == p("at"))
    .values(
        state=p("to_state"),
        due=p("to_due"),
        wish=0,
        updated=p("now"),
        reply=p("to_reply"),
        status=p("to_status"),
        mta=p("to_mta"),
        notice=p("to_notice"),
    )
)
NOTICES = Sql(  # + 0: or the planner walks the whole table in key order
    select((R.message + 0).label("message"))
    .where(R.notice > 0)
    .distinct()
    .limit(p("count"))
)
NOTICED = Sql(
    update(RECIPIENT)
    .where(R.message == p("which"), R.position == p("at"))
    .values(notice=None, delay_sent=p("to_delay"))
)
RELEASE = Sql(
    update(RECIPIENT)
    .where(R.state == int(State.LEASED), R.wish == 0)
    .values(state=int(State.QUEUED), due=p("now"))
)
RELEASE_WISHED = Sql(
    update(RECIPIENT)
    .where(R.state == int(State.LEASED), R.wish != 0)
    .values(state=R.wish, due=None, wish=0)
)


def enqueue(tx: Tx, _account: int, new: NewQueued) -> str:
    """Queue a message for its recipients; returns its queue id (once per key)."""
    if new.key:
        row = tx.one(BY_KEY, {"key": new.key})
        if row is not None:
            return queue_id(row[0])
    now = int(tx.now)
    last = tx.one(LAST)
    number = max(now << SHIFT, (last[0] or 0) + 1 if last else 0)
    rows.put_blob(tx, new.blob)
    tx.run(
        INSERT_MESSAGE,
        {
            "message": number,
            "key": new.key or None,
            "hash": new.blob.hash,
            "reverse_path": new.reverse_path,
            "created": now,
            "expires": new.expires,
            "account": new.account,
            "smtputf8": int(new.smtputf8),
            "body": new.body.value,
            "ret": new.ret,
            "envid": new.envid,
            "message_id": new.message_id.replace("\0", ""),  # for people to read
            "origin": new.origin,
            "open": len(new.recipients),
            "finished": 0 if new.recipients else now,
        },
    )
    common = {"message": number, "due": max(now, new.send_at), "updated": now}
    tx.many(
        INSERT_RECIPIENT,
        [
            {
                **common,
                "position": position,
                "address": recipient.address,
                "domain": routing_domain(recipient.address),
                "notify": ",".join(recipient.notify),
                "orcpt": recipient.orcpt,
                "state": int(State.QUEUED),
                "attempts": 0,
                "token": 0,
                "wish": 0,
                "reply": "",
                "status": "",
                "mta": "",
                "notice": None,
                "delay_sent": 0,
            }
            for position, recipient in enumerate(new.recipients)
        ],
    )
    return queue_id(number)


def routing_domain(address: str) -> str:
    """Return the domain that mail for an address is sent to, as A-labels."""
    name = address.rpartition("@")[2]
    return a_labels(name) or name.lower()


# --- claiming ----------------------------------------------------------------


@inline
def any_due(tx: Tx, _account: int, busy: tuple[str, ...]) -> bool:
    """Return whether a claim would find something."""
    key = {"now": int(tx.now), "busy": ids(busy), "seen": ids(()), "count": 1}
    return tx.one(CANDIDATES, key) is not None


def claim(tx: Tx, _account: int, limits: ClaimLimits) -> tuple[Claim, ...]:
    """Lease what is due, longest waiting first: a claim per message and domain."""
    now = int(tx.now)
    pairs = _due_pairs(tx, now, limits)
    if not pairs:
        return ()
    token_row = tx.one(NEXT_TOKEN)
    assert token_row is not None
    return tuple(_lease(tx, pair, token_row[0], limits) for pair in pairs)


def _due_pairs(tx: Tx, now: int, limits: ClaimLimits) -> list[tuple[int, str]]:
    """Return (message, domain) pairs, at most ``per_domain`` of one domain.

    Looks at the longest due first; each further round leaves out the domains that
    have enough and the messages that are in, however many recipients they have.
    """
    counts = dict.fromkeys(limits.busy, limits.per_domain)
    pairs: dict[tuple[int, str], None] = {}
    scan = max(200, limits.limit * 4)
    for _ in range(ROUNDS):
        full = [d for d, n in counts.items() if n >= limits.per_domain]
        seen = {number for number, _ in pairs}
        key = {"now": now, "busy": ids(full), "seen": ids(seen), "count": scan}
        found = tx.all(CANDIDATES, key)
        for number, domain in found:
            if (number, domain) in pairs or counts.get(domain, 0) >= limits.per_domain:
                continue
            if len(pairs) >= limits.limit:
                return list(pairs)
            pairs[number, domain] = None
            counts[domain] = counts.get(domain, 0) + 1
        if len(found) < scan:
            break
    return list(pairs)


def _lease(tx: Tx, pair: tuple[int, str], token: int, limits: ClaimLimits) -> Claim:
    number, domain = pair
    now = int(tx.now)
    found = tx.all(
        DUE_OF,
        {"message": number, "domain": domain, "now": now, "count": limits.recipients},
    )
    recipients = tuple(map(rows.recipient, found))
    tx.run(
        LEASE,
        {
            "which": number,
            "positions": ids(r.position for r in recipients),
            "until": now + limits.lease,
            "new_token": token,
        },
    )
    message = rows.message(tx, number)
    return Claim(message.queue_id, token, domain, message, recipients)


def extend(tx: Tx, _account: int, args: tuple[str, int, int]) -> bool:
    """Heartbeat (queue id, token, seconds): keep a lease; False when it is lost."""
    text, token, seconds = args
    key = {
        "which": queue_number(text),
        "of_token": token,
        "until": int(tx.now) + seconds,
    }
    return tx.run(EXTEND, key) > 0


def release_all(tx: Tx, _account: int, _args: None) -> int:
    """End all leases: those of a process that is gone (one process owns a queue)."""
    done = tx.run(RELEASE_WISHED)
    if done:
        rows.recount_all(tx)
    return done + tx.run(RELEASE, {"now": int(tx.now)})


# --- finishing ---------------------------------------------------------------


def finish(
    tx: Tx, _account: int, args: tuple[str, int, tuple[Outcome, ...]]
) -> Finished:
    """Record how an attempt (queue id, token) ended.

    An outcome under an older token is refused, except DELIVERED: that happened,
    and recording it keeps the next attempt from repeating it.
    """
    text, token, outcomes = args
    number = queue_number(text)
    known = {r[0]: r[1:] for r in tx.all(STATES, {"message": number})}
    fenced: list[int] = []
    records = []
    for outcome in outcomes:
        state, held_token, wish, told = known.get(outcome.position, (0,) * 4)
        mine = held_token == token and state == State.LEASED
        late = outcome.state is State.DELIVERED and state in rows.WAITING
        if mine or late:
            record = _record(number, outcome, wish, int(tx.now))
            record["to_notice"] = int(outcome.notice) or told
            records.append(record)
        else:
            fenced.append(outcome.position)
    tx.many(RECORD, records)
    return Finished(tuple(fenced), rows.recount(tx, number))


def _record(number: int, outcome: Outcome, wish: int, now: int) -> dict[str, object]:
    state, due = outcome.state, None
    if state not in FINAL:
        state = State(wish) if wish else State.QUEUED
        due = max(outcome.due, now) if state is State.QUEUED else None
    return {
        "which": number,
        "at": outcome.position,
        "to_state": int(state),
        "to_due": due,
        "now": now,
        "to_reply": outcome.reply[:MAX_REPLY],
        "to_status": outcome.status,
        "to_mta": outcome.mta,
    }


def notices(tx: Tx, _account: int, limit: int) -> tuple[Entry, ...]:
    """Return messages whose sender is to be told something, with those recipients."""
    found = []
    for (number,) in tx.all(NOTICES, {"count": limit}):
        told = tuple(r for r in rows.recipients(tx, number) if r.notice)
        found.append(Entry(rows.message(tx, number), told))
    return tuple(found)


def noticed(
    tx: Tx, _account: int, args: tuple[str, tuple[tuple[int, Notice], ...]]
) -> int:
    """Note what the sender was told of recipients (queue id, (position, notice)).

    Whoever has another notice by now stays listed: that was not told.
    """
    text, told = args
    number = queue_number(text)
    pending = {r[0]: r[4] for r in tx.all(STATES, {"message": number})}
    tx.many(
        NOTICED,
        [
            {
                "which": number,
                "at": position,
                "to_delay": int(notice is Notice.DELAYED),
            }
            for position, notice in told
            if pending.get(position) == notice
        ],
    )
    return rows.recount(tx, number)
