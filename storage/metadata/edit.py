"""Changing emails: load, change in memory, write the difference with one modseq.

Every unit that changes keywords or memberships goes through ``Edit``, so that
counters of both kinds, modseqs, tombstones and what JMAP shows are kept by one
piece of code.  Statements are per set of rows, not per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from storage.metadata import boxes
from storage.metadata import edit_sql as sql
from storage.metadata.accounts import release, take
from storage.metadata.counts import Counts
from storage.metadata.sql import ids
from storage.metadata.tables import TYPE_EMAIL, TYPE_ROW
from storage.model import SEEN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from storage.api import Params, Row, Tx


class Member(NamedTuple):
    """A membership: where an email stands in one mailbox."""

    uid: int
    deleted: int
    save_date: int


class Edited:
    """An email as it was loaded (``old_*``) and as it is to be."""

    __slots__ = (
        "email_id",
        "flags_modseq",
        "keywords",
        "members",
        "old_keywords",
        "old_members",
        "old_system",
        "received_at",
        "shown",
        "size",
        "source",
        "system",
        "thread_id",
    )

    def __init__(self, row: Row) -> None:
        (
            self.email_id,
            self.shown,
            self.system,
            self.keywords,
            self.thread_id,
            self.received_at,
            self.size,
            self.flags_modseq,
        ) = row
        self.old_system: int = self.system
        self.old_keywords: str = self.keywords
        self.members: dict[int, Member] = {}
        self.old_members: Mapping[int, Member] = {}
        self.source = 0  # email id that a new one is a copy of

    @property
    def changed(self) -> bool:
        """Whether anything differs from what was loaded."""
        return (
            self.system != self.old_system
            or self.keywords != self.old_keywords
            or self.members != self.old_members
        )


class Placed(NamedTuple):
    """An email in a mailbox, and its modseq there (RFC 7162)."""

    uid: int
    email: Edited
    modseq: int


class Edit:
    """One change of one account; ``finish`` writes it."""

    def __init__(self, tx: Tx, account: int) -> None:
        self.tx = tx
        self.account = account
        self.modseq = take(tx, account)
        self.emails: dict[int, Edited] = {}
        self._boxes: dict[int, Row] = {}
        self._next: dict[int, int] = {}
        self._made = 0
        self.keep = False  # something else changes too: the modseq is used up

    def load(self, wanted: Collection[int]) -> None:
        """Load emails with all their memberships; unknown ids are left out."""
        missing = [key for key in wanted if key not in self.emails]
        params = {"a": self.account, "emails": ids(missing)}
        for row in self.tx.all(sql.STATES, params):
            self.emails[row[0]] = Edited(row)
        found = self.emails
        for email_id, box, uid, deleted, saved in self.tx.all(sql.MEMBERS, params):
            if email_id in found:
                found[email_id].members[box] = Member(uid, deleted, saved)
        for key in missing:
            if key in found:
                found[key].old_members = found[key].members.copy()

    def in_box(self, mailbox_id: int, uids: Collection[int]) -> list[Placed]:
        """Load a mailbox's messages by uid; returns those that exist, in uid order.

        NOT_FOUND when there is no such mailbox.
        """
        self.box(mailbox_id)
        params = {"a": self.account, "box": mailbox_id, "uids": ids(uids)}
        return self._placed(self.tx.all(sql.BY_UIDS, params))

    def first(self, mailbox_id: int, limit: int) -> list[Placed]:
        """Load a mailbox's first messages, as ``in_box`` does."""
        params = {"a": self.account, "box": mailbox_id, "n": limit}
        return self._placed(self.tx.all(sql.IN_BOX, params))

    def _placed(self, rows: list[Row]) -> list[Placed]:
        rows.sort()
        self.load([row[1] for row in rows])
        found = self.emails
        return [
            Placed(uid, found[key], max(modseq, found[key].flags_modseq))
            for uid, key, modseq in rows
            if key in found
        ]

    def box(self, mailbox_id: int) -> Row:
        """Return a mailbox's row (``boxes.COLUMNS``); NOT_FOUND."""
        row = self._boxes.get(mailbox_id)
        if row is None:
            row = self._boxes[mailbox_id] = boxes.get(self.tx, self.account, mailbox_id)
        return row

    def place(self, email: Edited, mailbox_id: int, *, deleted: int = 0) -> int:
        """Put an email into a mailbox under a new uid, which is returned."""
        uid: int = self._next.get(mailbox_id, 0) or self.box(mailbox_id)[7]
        self._next[mailbox_id] = uid + 1
        email.members[mailbox_id] = Member(uid, deleted, int(self.tx.now))
        return uid

    def duplicate(self, source: Edited) -> Edited:
        """Make another email with the same content, thread and keywords."""
        self._made += 1
        key = -self._made  # numbered when it is written
        copy = Edited(
            (
                key,
                0,
                source.system,
                source.keywords,
                source.thread_id,
                source.received_at,
                source.size,
                self.modseq,
            )
        )
        copy.source = source.email_id
        self.emails[key] = copy
        return copy

    def finish(self) -> tuple[int, bool]:
        """Write what changed; returns (modseq, whether anything did)."""
        changed = [email for email in self.emails.values() if email.changed]
        if not changed:
            if self.keep:
                return self.modseq, True
            return release(self.tx, self.account), False
        self._number(changed)
        counts = Counts()
        for email in changed:
            _count(counts, email)
        self._write_flags(changed)
        self._write_members(changed)
        thread_change = self._write_shown(changed)
        gone = [email for email in changed if not email.members]
        self._remove(gone)
        box_change = counts.write(self.tx, self.account, self.modseq, self._next)
        made = sum(email.source > 0 for email in changed)
        size = sum(email.size for email in changed if email.source)
        self.tx.run(
            sql.ACCOUNT_CHANGED,
            {
                "a": self.account,
                "d_count": made - len(gone),
                "d_size": size - sum(email.size for email in gone),
                "boxes": int(box_change),
                "threads": int(thread_change),
            },
        )
        return self.modseq, True

    # --- writing ----------------------------------------------------------------

    def _number(self, changed: Iterable[Edited]) -> None:
        """Give new emails their ids and write their rows."""
        new = [email for email in changed if email.source]
        if not new:
            return
        row = self.tx.one(sql.NEXT_EMAILS, {"a": self.account, "n": len(new)})
        number = (row[0] if row else 0) - len(new)
        params = []
        for email in new:
            number += 1
            email.email_id = number
            params.append(
                {
                    "a": self.account,
                    "key": number,
                    "source": email.source,
                    "m": self.modseq,
                    "system_bits": email.system,
                    "words": email.keywords,
                }
            )
        for statement in (sql.COPY_EMAIL, sql.COPY_STATE):
            self.tx.many(statement, params)
        for email in new:
            email.old_system, email.old_keywords = email.system, email.keywords

    def _write_flags(self, changed: Iterable[Edited]) -> None:
        groups: dict[tuple[int, str], list[int]] = {}
        seen: dict[int, list[int]] = {}
        others = []
        for email in changed:
            key = email.email_id
            if email.system != email.old_system or email.keywords != email.old_keywords:
                groups.setdefault((email.system, email.keywords), []).append(key)
                if (email.system ^ email.old_system) & SEEN:
                    seen.setdefault(1 - (email.system & SEEN), []).append(key)
            elif not email.source and email.members:
                others.append(key)
        params = {"a": self.account, "m": self.modseq}
        for (system, words), keys in groups.items():
            flags = {"system_bits": system, "words": words, "emails": ids(keys)}
            self.tx.run(sql.SET_FLAGS, {**params, **flags})
        for unseen, keys in seen.items():
            self.tx.run(
                sql.SET_UNSEEN, {"a": self.account, "on": unseen, "emails": ids(keys)}
            )
        if others:
            self.tx.run(sql.TOUCH, {**params, "emails": ids(others)})

    def _write_members(self, changed: Iterable[Edited]) -> None:
        removed: dict[int, list[int]] = {}
        marked: dict[tuple[int, int], list[int]] = {}
        added = []
        for email in changed:
            old, new = email.old_members, email.members
            if old == new:
                continue
            for box, member in old.items():
                now = new.get(box)
                if now is None or now.uid != member.uid:
                    removed.setdefault(box, []).append(member.uid)
                elif now.deleted != member.deleted:
                    marked.setdefault((box, now.deleted), []).append(member.uid)
            for box, member in new.items():
                if box not in old or old[box].uid != member.uid:
                    added.append(self._member_row(email, box, member))
        self._write_removed(removed)
        for (box, deleted), uids in marked.items():
            self.tx.run(
                sql.SET_DELETED,
                {
                    "a": self.account,
                    "box": box,
                    "on": deleted,
                    "m": self.modseq,
                    "uids": ids(uids),
                },
            )
        if added:
            self.tx.many(sql.ADD_MEMBER, added)

    def _write_removed(self, removed: Mapping[int, list[int]]) -> None:
        now = int(self.tx.now)
        for box, uids in removed.items():
            self.tx.run(
                sql.REMOVE_MEMBERS, {"a": self.account, "box": box, "uids": ids(uids)}
            )
            self.tx.many(
                sql.EXPUNGE,
                [(self.account, box, self.modseq, uid, now) for uid in uids],
            )

    def _member_row(self, email: Edited, box: int, member: Member) -> Params:
        return (
            self.account,
            box,
            member.uid,
            email.email_id,
            self.modseq,
            member.deleted,
            1 - (email.system & SEEN),
            email.received_at,
            email.thread_id,
            member.save_date,
        )

    def _write_shown(self, changed: Iterable[Edited]) -> bool:
        """Note which emails appear and disappear for JMAP; returns whether any did."""
        appear, vanish = [], []
        for email in changed:
            visible = any(not member.deleted for member in email.members.values())
            if visible and not email.shown:
                appear.append(email.email_id)
            elif email.shown and not visible:
                vanish.append(email)
        if appear:
            self._set_shown(appear, self.modseq)
        if vanish:
            self._set_shown([email.email_id for email in vanish], 0)
            self._bury(TYPE_EMAIL, vanish)
        return bool(appear or vanish)

    def _set_shown(self, keys: list[int], modseq: int) -> None:
        self.tx.run(
            sql.SET_SHOWN, {"a": self.account, "since": modseq, "emails": ids(keys)}
        )

    def _bury(self, kind: int, emails: Iterable[Edited]) -> None:
        now = int(self.tx.now)
        rows = [
            (
                self.account,
                kind,
                self.modseq,
                email.email_id,
                email.shown,
                email.thread_id,
                now,
            )
            for email in emails
        ]
        self.tx.many(sql.BURY, rows)

    def _remove(self, gone: list[Edited]) -> None:
        if not gone:
            return
        params = {"a": self.account, "emails": ids(email.email_id for email in gone)}
        for statement in (sql.DROP_EMAILS, sql.DROP_STATES):
            self.tx.run(statement, params)
        self._bury(TYPE_ROW, gone)


def _count(counts: Counts, email: Edited) -> None:
    """Add the difference that one email makes to the mailboxes that it changes.

    A mailbox where neither the membership nor a keyword changed stays untouched,
    or its clients would resynchronise for nothing.
    """
    thread, size = email.thread_id, email.size
    flags = email.system != email.old_system or email.keywords != email.old_keywords
    old, new = email.old_members, email.members
    for box, member in old.items():
        if flags or new.get(box) != member:
            counts.add(box, thread, size, email.old_system, member.deleted, -1)
    for box, member in new.items():
        if flags or old.get(box) != member:
            counts.add(box, thread, size, email.system, member.deleted, 1)
