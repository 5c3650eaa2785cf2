"""A naive model of an account, and snapshots of the real one to compare it with.

The model keeps what a person would write down: which emails lie where, with which
flags.  It knows nothing of counters, modseqs or tombstones.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from storage.metadata import boxes, changes, mailboxes, messages, threads
from storage.model import DELETED_BIT, Column, Since

if TYPE_CHECKING:
    from tests.lib.shard import Shard

SEEN, DRAFT = 1, 8


@dataclasses.dataclass
class Mail:
    """One email of the model; ``members`` is mailbox -> [uid, deleted]."""

    thread: int
    system: int
    words: set[str]
    size: int
    members: dict[int, list[int]] = dataclasses.field(default_factory=dict)

    @property
    def shown(self) -> bool:
        return any(not deleted for _, deleted in self.members.values())

    @property
    def unread(self) -> bool:
        return not self.system & (SEEN | DRAFT)


class Model:
    """The account as it should be."""

    def __init__(self, names: dict[int, str]) -> None:
        self.mails: dict[int, Mail] = {}
        self.names = dict(names)
        self.uidnext = dict.fromkeys(names, 1)
        self.keys: dict[int, int] = {}
        self.last_email = self.last_thread = 0

    def place(self, mail: Mail, box: int, deleted: int = 0) -> int:
        uid = self.uidnext[box]
        self.uidnext[box] += 1
        mail.members[box] = [uid, deleted]
        return uid

    def add(self, keys: tuple[int, ...], mail: Mail, where: list[int]) -> int:
        self.last_email += 1
        self.last_thread += 1
        alive = {other.thread for other in self.mails.values()}
        known = {self.keys[key] for key in keys if self.keys.get(key) in alive}
        mail.thread = min(known, default=self.last_thread)
        for key in keys:
            if self.keys.get(key) not in alive:
                self.keys[key] = mail.thread
        deleted = int(bool(mail.system & DELETED_BIT))
        mail.system &= ~DELETED_BIT
        for box in where:
            self.place(mail, box, deleted)
        self.mails[self.last_email] = mail
        return self.last_email

    def duplicate(self, mail: Mail) -> Mail:
        self.last_email += 1
        copy = Mail(mail.thread, mail.system, set(mail.words), mail.size)
        self.mails[self.last_email] = copy
        return copy

    def sweep(self) -> None:
        """Forget emails that lie nowhere."""
        self.mails = {key: mail for key, mail in self.mails.items() if mail.members}

    def in_box(self, box: int) -> list[tuple[int, int]]:
        """Return (uid, email id) in uid order."""
        return sorted(
            (mail.members[box][0], key)
            for key, mail in self.mails.items()
            if box in mail.members
        )

    def views(self) -> dict[int, dict[int, tuple[Any, ...]]]:
        """Return mailbox -> uid -> (email, bits, words)."""
        found: dict[int, dict[int, tuple[Any, ...]]] = {box: {} for box in self.names}
        for key, mail in self.mails.items():
            for box, (uid, deleted) in mail.members.items():
                bits = mail.system | (DELETED_BIT if deleted else 0)
                found[box][uid] = (key, bits, tuple(sorted(mail.words)))
        return found

    def counts(self, box: int) -> tuple[int, ...]:
        """Return the eight counters of a mailbox, by definition."""
        here = [mail for mail in self.mails.values() if box in mail.members]
        shown = [mail for mail in here if not mail.members[box][1]]
        return (
            len(here),
            sum(not mail.system & SEEN for mail in here),
            len(here) - len(shown),
            sum(mail.size for mail in here),
            len(shown),
            sum(mail.unread for mail in shown),
            len({mail.thread for mail in shown}),
            len({mail.thread for mail in shown if mail.unread}),
        )

    def shown(self) -> dict[int, tuple[Any, ...]]:
        """Return what JMAP shows: email -> (thread, system, words, mailboxes)."""
        return {
            key: (
                mail.thread,
                mail.system,
                tuple(sorted(mail.words)),
                tuple(sorted(b for b, (_, gone) in mail.members.items() if not gone)),
            )
            for key, mail in self.mails.items()
            if mail.shown
        }


@dataclasses.dataclass
class Snapshot:
    """What the real account shows at one modseq."""

    state: Any
    boxes: dict[int, Any]
    views: dict[int, dict[int, tuple[Any, ...]]]  # uid -> (email, modseq, bits, words)
    emails: dict[int, tuple[Any, ...]]
    threads: dict[int, tuple[int, ...]]

    def objects(self) -> dict[int, tuple[Any, ...]]:
        """Return the mailboxes as JMAP shows them."""
        return {
            key: (properties(box), jmap_counts(box)) for key, box in self.boxes.items()
        }


def properties(box: Any) -> tuple[Any, ...]:
    return box.name, box.parent_id, box.role, box.subscribed, box.sort_order


def jmap_counts(box: Any) -> tuple[int, ...]:
    return box.total_emails, box.unread_emails, box.total_threads, box.unread_threads


def counts(box: Any) -> tuple[int, ...]:
    return (box.messages, box.unseen, box.deleted, box.size, *jmap_counts(box))


def snapshot(shard: Shard) -> Snapshot:
    """Read everything that clients can see."""
    listed = shard.run(mailboxes.list_all)
    found = {box.mailbox_id: box for box in listed.mailboxes}
    views = {}
    ids = set()
    for key in found:
        rows = shard.run(messages.view_head, (key, 10_000)).rows
        views[key] = {
            row[0]: (row[1], row[2], row[3], tuple(row[4].split())) for row in rows
        }
        ids |= {row[1] for row in rows}
    states = shard.run(messages.get_states, tuple(ids))
    rows = shard.run(messages.read_rows, (tuple(states), Column.BASIC))
    emails = {
        key: (rows[key].thread_id, flags.system, flags.keywords, tuple(sorted(where)))
        for key, (_, flags, where) in states.items()
    }
    wanted = {row.thread_id for row in rows.values()}
    found_threads = shard.run(threads.read, tuple(sorted(wanted)))
    return Snapshot(listed.state, found, views, emails, found_threads)


# --- deltas, applied as a client does -----------------------------------------------


def check_imap(shard: Shard, old: Snapshot, new: Snapshot) -> None:
    """A client that knows ``old`` and asks what changed knows ``new``."""
    for key, box in new.boxes.items():
        if key not in old.boxes:
            continue
        for since in (old.boxes[key].highestmodseq, old.state.modseq):
            delta = shard.run(messages.delta, (key, since))
            assert delta.complete
            assert delta.highestmodseq == box.highestmodseq
            assert delta.uidnext == box.uidnext
            known = dict(old.views[key])
            for uid in delta.vanished:
                known.pop(uid, None)
            for uid, email, modseq, bits, words in delta.changed:
                assert modseq > since
                known[uid] = (email, modseq, bits, words)
            assert known == new.views[key]
            assert set(old.views[key]) - set(new.views[key]) <= set(delta.vanished)
            assert not set(delta.vanished) & set(new.views[key])
            assert shard.run(messages.vanished, (key, since)) == delta.vanished


KINDS = (
    (changes.emails, "email", lambda snap: snap.emails),
    (changes.mailboxes, "mailbox", Snapshot.objects),
    (changes.threads, "thread", lambda snap: snap.threads),
)


def check_jmap(shard: Shard, old: Snapshot, new: Snapshot, limit: int | None) -> None:
    """Foo/changes brings what ``old`` knows to ``new``, whole or in small steps."""
    for unit, kind, of in KINDS:
        since = getattr(old.state, kind)
        before, now = of(old), of(new)
        if limit is None:
            answer = shard.run(unit, Since(since))
            exact(answer, before, now)
            assert answer.new_modseq == getattr(new.state, kind)
            if kind == "mailbox" and answer.updated:
                same = all(before[k][0] == now[k][0] for k in answer.updated)
                assert answer.only_counts == same
        else:
            stepwise(shard, unit, Since(since, limit, None, split=True), before, now)


def exact(answer: Any, before: dict[int, Any], now: dict[int, Any]) -> None:
    listed = answer.created + answer.updated + answer.destroyed
    assert len(set(listed)) == len(listed)
    assert not answer.has_more
    assert set(answer.created) == set(now) - set(before)
    assert set(answer.destroyed) == set(before) - set(now)
    different = {key for key in set(before) & set(now) if before[key] != now[key]}
    assert different <= set(answer.updated) <= set(before) & set(now)


def stepwise(
    shard: Shard, unit: Any, since: Since, before: dict[int, Any], now: dict[int, Any]
) -> None:
    known = dict(before)
    for _ in range(10_000):
        answer = shard.run(unit, since)
        listed = answer.created + answer.updated + answer.destroyed
        assert len(set(listed)) == len(listed) <= (since.limit or 0)
        assert not set(answer.created) & set(known)
        for key in answer.destroyed:
            known.pop(key, None)
        for key in answer.created + answer.updated:
            if key not in now:  # what a client fetches now, or notFound
                continue
            if key in known and answer.only_counts:
                known[key] = (known[key][0], *now[key][1:])
            else:
                known[key] = now[key]
        if not answer.has_more:
            assert known == now
            return
        step = (
            answer.new_modseq,
            answer.after if answer.after is not None else 1 << 62,
        )
        assert step > (
            since.modseq,
            since.after if since.after is not None else 1 << 62,
        )
        since = dataclasses.replace(since, modseq=answer.new_modseq, after=answer.after)
    raise AssertionError("changes never end")


def check_growth(old: Snapshot, new: Snapshot) -> None:
    """Counters only grow, and only where something changed."""
    views_differ = old.views != new.views
    differ = views_differ or old.objects() != new.objects()
    if differ or old.emails != new.emails:
        assert new.state.modseq > old.state.modseq
    else:
        assert new.state == old.state
    for key, box in new.boxes.items():
        if key not in old.boxes:
            continue
        was = old.boxes[key]
        assert box.uidnext >= was.uidnext
        assert box.uidvalidity == was.uidvalidity
        changed = old.views[key] != new.views[key]
        assert (box.highestmodseq > was.highestmodseq) == changed
        if jmap_counts(box) != jmap_counts(was):
            assert box.modseq == new.state.modseq
        moved = properties(box) != properties(was)
        assert (box.properties_modseq > was.properties_modseq) == moved
        for uid in set(new.views[key]) - set(old.views[key]):
            assert uid >= was.uidnext


def load_boxes(shard: Shard) -> dict[int, Any]:
    """Return the mailboxes by id."""
    return shard.run(lambda tx, account, _: boxes.load(tx, account))
