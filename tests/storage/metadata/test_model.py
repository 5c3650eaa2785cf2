"""Random operations against a naive model: the heart of the shard's correctness.

After each operation: views, counters and what JMAP shows equal the model; changes
since any earlier moment, applied to what a client knew then, give the present; uids
and modseqs only grow, and only where something changed; ``storage check`` is clean.
"""

from __future__ import annotations

import random
from array import array
from typing import Any

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.metadata import check, copies, flags, mailboxes
from storage.model import (
    DELETED_BIT,
    EmailPatch,
    FlagChange,
    Flags,
    MailboxPatch,
    NewMailbox,
    StoreFlags,
)
from tests.lib import mail_model
from tests.lib.mail_model import Mail, Model, Snapshot
from tests.lib.shard import Shard, keys

STEPS = 70
WORDS = ("$forwarded", "$junk", "work")
SYSTEM = ("$seen", "$answered", "$flagged", "$draft")


class Player:
    """Does the same things to the shard and to the model."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.shard = Shard()
        found = mail_model.load_boxes(self.shard)
        self.model = Model({key: box.name for key, box in found.items()})
        self.names = 0
        self.roots = {key for key, box in found.items() if box.role}

    def box(self) -> int:
        return self.random.choice(list(self.model.names))

    def uids(self, box: int) -> list[tuple[int, int]]:
        here = self.model.in_box(box)
        return sorted(
            self.random.sample(here, self.random.randint(0, min(4, len(here))))
        )

    def flags(self) -> tuple[int, set[str]]:
        chosen = self.random.sample(WORDS, self.random.randint(0, 2))
        return self.random.randint(0, 15), set(chosen)

    # --- operations ------------------------------------------------------------

    def add(self) -> None:
        system, words = self.flags()
        if self.random.random() < 0.15:
            system |= DELETED_BIT
        where = self.random.sample(
            list(self.model.names), self.random.choice((1, 1, 1, 2))
        )
        mine = tuple(self.random.sample(range(12), self.random.randint(0, 3)))
        number = self.random.randint(1, 10_000)
        added = self.shard.deliver(
            number,
            mailboxes=tuple(where),
            flags=Flags(system, tuple(sorted(words))),
            thread_keys=keys(*mine),
        )
        key = self.model.add(mine, Mail(0, system, words, 1000 + number), where)
        mail = self.model.mails[key]
        assert (added.email_id, added.thread_id) == (key, mail.thread)
        assert {(box, uid) for box, _, uid in added.placed} == {
            (box, uid) for box, (uid, _) in mail.members.items()
        }

    def store(self) -> None:
        box = self.box()
        chosen = self.uids(box)
        system, words = self.flags()
        deleted = self.random.random() < 0.4
        how = self.random.choice(list(FlagChange))
        args = StoreFlags(
            box,
            array("I", [uid for uid, _ in chosen] + [9999]),
            how,
            Flags(system, tuple(words)),
            deleted,
        )
        result = self.shard.run(flags.store_flags, args)
        before = self.model.views()[box]
        for _, key in chosen:
            mail = self.model.mails[key]
            member = mail.members[box]
            if how is FlagChange.SET:
                mail.system, mail.words, member[1] = system, set(words), int(deleted)
            elif how is FlagChange.ADD:
                mail.system, mail.words = mail.system | system, mail.words | words
                member[1] |= int(deleted)
            else:
                mail.system, mail.words = mail.system & ~system, mail.words - words
                member[1] &= 1 - int(deleted)
        after = self.model.views()[box]
        expected = sorted(
            (uid, key, result.modseq, bits, words)
            for uid, (key, bits, words) in after.items()
            if before[uid] != after[uid]
        )
        assert list(result.changed) == expected

    def copy(self) -> None:
        source, target = self.box(), self.box()
        chosen = self.uids(source)
        args = (source, [uid for uid, _ in chosen], target)
        result = self.shard.run(copies.copy, args)
        placed = []
        for _, key in chosen:
            mail = self.model.mails[key]
            deleted = mail.members[source][1]
            if target in mail.members:
                mail = self.model.duplicate(mail)
            placed.append(self.model.place(mail, target, deleted))
        assert result.source_uids == tuple(uid for uid, _ in chosen)
        assert list(result.target_uids) == placed

    def move(self) -> None:
        source, target = self.box(), self.box()
        chosen = self.uids(source)
        args = (source, [uid for uid, _ in chosen], target)
        result = self.shard.run(copies.move, args)
        placed = []
        for _, key in chosen:
            mail = self.model.mails[key]
            _, deleted = mail.members.pop(source)
            if target in mail.members:
                mail = self.model.duplicate(mail)
            placed.append(self.model.place(mail, target, deleted))
        self.model.sweep()
        assert list(result.target_uids) == placed

    def expunge(self) -> None:
        box = self.box()
        marked = self.shard.run(copies.deleted_uids, box)
        some = [uid for uid in marked if self.random.random() < 0.8]
        named = [*some, 9999, *(uid for uid, _ in self.uids(box))]
        wanted = set(named) & set(marked)
        uids, _ = self.shard.run(copies.expunge, (box, named))
        assert set(uids) == wanted
        for uid, key in self.model.in_box(box):
            if uid in wanted:
                del self.model.mails[key].members[box]
        self.model.sweep()

    def patch(self) -> None:
        chosen = self.random.sample(
            list(self.model.mails),
            min(len(self.model.mails), self.random.randint(0, 3)),
        )
        patches = []
        for key in chosen:
            mail = self.model.mails[key]
            known = {box for box, (_, gone) in mail.members.items() if not gone}
            patch = self.random_patch(key, known)
            patches.append(patch)
            if not mail.shown:
                continue
            boxes = set(known if patch.set_mailboxes is None else patch.set_mailboxes)
            boxes = (boxes | set(patch.add_mailboxes)) - set(patch.remove_mailboxes)
            if boxes:
                self.apply(mail, patch, known, boxes)
        result = self.shard.run(flags.update, (patches, None))
        assert len(result.updated) + len(result.errors) == len(chosen)

    def random_patch(self, key: int, known: set[int]) -> EmailPatch:
        system, words = self.flags()
        names = [SYSTEM[bit] for bit in range(4) if system >> bit & 1] + sorted(words)
        how = self.random.choice(("add", "remove", "set", "add box", "drop", "set box"))
        match how:
            case "add":
                return EmailPatch(key, add_keywords=tuple(names))
            case "remove":
                return EmailPatch(key, remove_keywords=tuple(names))
            case "set":
                return EmailPatch(key, set_keywords=tuple(names))
            case "add box":
                return EmailPatch(key, add_mailboxes=(self.box(),))
            case "drop":
                return EmailPatch(key, remove_mailboxes=tuple(known)[:1])
        return EmailPatch(key, set_mailboxes=tuple({self.box(), self.box()}))

    def apply(
        self, mail: Mail, patch: EmailPatch, known: set[int], boxes: set[int]
    ) -> None:
        names = {SYSTEM[bit] for bit in range(4) if mail.system >> bit & 1} | mail.words
        if patch.set_keywords is not None:
            names = set(patch.set_keywords)
        names = (names | set(patch.add_keywords)) - set(patch.remove_keywords)
        mail.system = sum(1 << bit for bit in range(4) if SYSTEM[bit] in names)
        mail.words = names - set(SYSTEM)
        for box in known - boxes:
            del mail.members[box]
        for box in sorted(boxes - known):
            if box in mail.members:
                mail.members[box][1] = 0
            else:
                self.model.place(mail, box)

    def destroy(self) -> None:
        chosen = self.random.sample(
            list(self.model.mails),
            min(len(self.model.mails), self.random.randint(0, 2)),
        )
        result = self.shard.run(flags.destroy, (chosen, None))
        for key in chosen:
            if self.model.mails[key].shown:
                assert key in result.destroyed
                self.model.mails[key].members.clear()
        self.model.sweep()

    def make_box(self) -> None:
        self.names += 1
        parent = self.random.choice([None, self.box()])
        try:
            box, _ = self.shard.run(
                mailboxes.create, NewMailbox(f"box {self.names}", parent)
            )
        except MailError as error:
            assert error.kind is Kind.INVALID  # too deep
            return
        self.model.names[box.mailbox_id] = box.name
        self.model.uidnext[box.mailbox_id] = 1

    def change_box(self) -> None:
        self.names += 1
        box = self.box()
        patch = MailboxPatch(
            box,
            name=self.random.choice([None, f"renamed {self.names}"]),
            parent_id=self.random.choice([None, -1, self.box()]),
            sort_order=self.random.choice([None, 1, 2]),
        )
        try:
            made, _, _ = self.shard.run(mailboxes.change, patch)
        except MailError as error:
            assert error.kind in {Kind.INVALID, Kind.FORBIDDEN}
            return
        self.model.names[box] = made.name

    def drop_box(self) -> None:
        box = self.box()
        remove = self.random.random() < 0.6
        try:
            self.shard.run(copies.destroy_mailbox, (box, remove))
        except MailError as error:
            assert error.kind in {Kind.HAS_CHILDREN, Kind.NOT_EMPTY, Kind.FORBIDDEN}
            return
        del self.model.names[box], self.model.uidnext[box]
        for mail in self.model.mails.values():
            mail.members.pop(box, None)
        self.model.sweep()

    def rename_inbox(self) -> None:
        self.names += 1
        box, _ = self.shard.run(copies.rename_path, ("inbox", f"old {self.names}"))
        new, inbox = box.mailbox_id, 1
        self.model.names[new], self.model.uidnext[new] = box.name, 1
        for _, key in self.model.in_box(inbox):
            mail = self.model.mails[key]
            _, deleted = mail.members.pop(inbox)
            self.model.place(mail, new, deleted)

    def step(self) -> None:
        operations = (
            (self.add, 30),
            (self.store, 22),
            (self.copy, 8),
            (self.move, 8),
            (self.expunge, 8),
            (self.patch, 12),
            (self.destroy, 3),
            (self.make_box, 3),
            (self.change_box, 3),
            (self.drop_box, 2),
            (self.rename_inbox, 1),
        )
        chosen = self.random.choices(
            [operation for operation, _ in operations],
            [weight for _, weight in operations],
        )
        self.shard.now += self.random.choice((0, 1, 5))
        chosen[0]()


def compare(player: Player, now: Snapshot) -> None:
    """The account is what the model says."""
    model: Any = player.model
    assert set(now.boxes) == set(model.names)
    plain = {
        box: {uid: (row[0], row[2], row[3]) for uid, row in view.items()}
        for box, view in now.views.items()
    }
    assert plain == model.views()
    assert now.emails == model.shown()
    for key, box in now.boxes.items():
        assert mail_model.counts(box) == model.counts(key)
        assert box.uidnext == model.uidnext[key]
    assert now.state.quota_used == sum(mail.size for mail in model.mails.values())
    assert now.state.message_count == len(model.mails)
    by_thread: dict[int, set[int]] = {}
    for key, (thread, *_) in now.emails.items():
        by_thread.setdefault(thread, set()).add(key)
    assert {key: set(found) for key, found in now.threads.items()} == by_thread


@pytest.mark.parametrize("seed", range(14))
def test_random_operations_keep_every_promise(seed: int) -> None:
    player = Player(seed)
    history = [mail_model.snapshot(player.shard)]
    for _ in range(STEPS):
        player.step()
        now = mail_model.snapshot(player.shard)
        compare(player, now)
        mail_model.check_growth(history[-1], now)
        earlier = player.random.sample(history, min(3, len(history)))
        for old in (history[-1], *earlier):
            mail_model.check_imap(player.shard, old, now)
            mail_model.check_jmap(player.shard, old, now, None)
        for old in earlier[:1]:
            limit = player.random.randint(1, 4)
            mail_model.check_jmap(player.shard, old, now, limit)
        history.append(now)
    assert player.shard.run(check.check_account) == ()
    assert player.shard.run(check.check_shard) == ()
