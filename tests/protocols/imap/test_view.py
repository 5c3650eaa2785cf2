"""What clients are told converges to the mailbox, and never at a forbidden moment."""

from __future__ import annotations

import random
import re
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.core.types import Access
from protocols.imap.view import Form, MailboxView, Selected
from protocols.imap.wire import sequence
from protocols.imap.wire.errors import WireError
from storage.model import KEYWORD_SHIFT, SEEN, StoreResult, View, ViewDelta

ACCESS = Access(1, 1)
KEYWORDS = ((), ("$forwarded",), ("a", "b"))
EXISTS = re.compile(rb"\* (\d+) EXISTS")
EXPUNGE = re.compile(rb"\* (\d+) EXPUNGE")
VANISHED = re.compile(rb"\* VANISHED ([0-9:,]+)")
FETCH = re.compile(
    rb"\* (\d+) FETCH \((?:UID (\d+) )?FLAGS (\([^)]*\))(?: MODSEQ \((\d+)\))?\)"
)
NAMES = {1: "\\Seen", 2: "\\Answered", 4: "\\Flagged", 8: "\\Draft", 16: "\\Deleted"}


class Mailbox:
    """The truth: messages with flags, and a log to make deltas from."""

    def __init__(self) -> None:
        self.modseq = 1
        self.uidnext = 1
        self.messages: dict[int, tuple[int, int, tuple[str, ...]]] = {}
        self.expunged: dict[int, int] = {}

    def step(self, rng: random.Random) -> None:
        """Change something."""
        self.modseq += 1
        kind = rng.random()
        if kind < 0.35 or not self.messages:
            for _ in range(rng.choice((1, 1, 3))):
                self.uidnext += rng.choice((1, 1, 5))
                self._put(self.uidnext - 1, rng)
        elif kind < 0.7:
            for uid in self._some(rng):
                self._put(uid, rng)
        else:
            for uid in self._some(rng):
                del self.messages[uid]
                self.expunged[uid] = self.modseq

    def _some(self, rng: random.Random) -> list[int]:
        size = min(len(self.messages), rng.choice((1, 1, 2, 100)))
        return rng.sample(sorted(self.messages), size)

    def _put(self, uid: int, rng: random.Random) -> None:
        self.messages[uid] = (self.modseq, rng.randrange(32), rng.choice(KEYWORDS))

    def delta(self, since: int) -> ViewDelta:
        changed = [
            (uid, uid + 1000, modseq, bits, words)
            for uid, (modseq, bits, words) in sorted(self.messages.items())
            if modseq > since
        ]
        gone = [uid for uid, modseq in sorted(self.expunged.items()) if modseq > since]
        return ViewDelta(self.modseq, self.uidnext, tuple(changed), tuple(gone))

    def view(self) -> View:
        uids = sorted(self.messages)
        values = [self.messages[uid] for uid in uids]
        return View(
            1,
            7,
            self.uidnext,
            self.modseq,
            array("I", uids),
            array("Q", [uid + 1000 for uid in uids]),
            array("Q", [modseq for modseq, _, _ in values]),
            array("I", [b | KEYWORDS.index(w) << KEYWORD_SHIFT for _, b, w in values]),
            list(KEYWORDS[1:]),
        )

    def text(self, uid: int) -> bytes:
        _, bits, words = self.messages[uid]
        names = [name for bit, name in NAMES.items() if bits & bit]
        return f"({' '.join([*names, *words])})".encode()


class Client:
    """Believes what it is told, and asks for what is new."""

    def __init__(self, view: MailboxView, form: Form) -> None:
        self.selected = Selected(view, ACCESS, "INBOX", read_only=False)
        view.selections.add(self.selected)
        self.form = form
        self.uids: list[int] = []
        self.flags: dict[int, bytes] = {}
        self._learn()

    def _learn(self) -> None:
        batch = self.selected.batch(len(self.uids) + 1, self.selected.count)
        texts = self.selected.view.flag_texts(batch.flags)
        for uid, text in zip(batch.uids, texts, strict=True):
            self.flags[uid] = text
        self.uids += self.selected.uids_of([(len(self.uids) + 1, self.selected.count)])

    def sync(self, *, expunge: bool) -> None:
        for line in self.selected.sync(expunge=expunge, form=self.form).split(b"\r\n"):
            self._hear(line, expunge=expunge)
        assert len(self.uids) == self.selected.count

    def _hear(self, line: bytes, *, expunge: bool) -> None:
        if not line:
            return
        if match := EXPUNGE.fullmatch(line):
            assert expunge
            assert not self.form & Form.VANISHED
            del self.uids[int(match[1]) - 1]
        elif match := VANISHED.fullmatch(line):
            assert expunge
            assert self.form & Form.VANISHED
            ranges = sequence.parse(match[1]).resolve(0)
            gone = {uid for low, high in ranges for uid in range(low, high + 1)}
            assert gone <= set(self.uids)
            self.uids = [uid for uid in self.uids if uid not in gone]
        elif match := EXISTS.fullmatch(line):
            assert int(match[1]) > len(self.uids)
            self._learn()
        else:
            match = FETCH.fullmatch(line)
            assert match, line
            uid = self.uids[int(match[1]) - 1]
            assert bool(match[2]) == bool(self.form & Form.UID)
            assert not match[2] or int(match[2]) == uid
            assert bool(match[4]) == bool(self.form & Form.MODSEQ)
            self.flags[uid] = match[3]

    def check(self, mailbox: Mailbox) -> None:
        assert self.uids == sorted(mailbox.messages)
        for seq, uid in enumerate(self.uids, 1):
            assert self.flags[uid] == mailbox.text(uid)
            assert self.selected.seq(uid) == seq


@pytest.mark.parametrize("seed", range(60))
def test_clients_converge(seed: int) -> None:
    rng = random.Random(seed)
    mailbox = Mailbox()
    for _ in range(rng.choice((0, 3, 30))):
        mailbox.step(rng)
    view = MailboxView(1, mailbox.view())
    clients = [Client(view, form) for form in (Form.PLAIN, Form.UID, Form(7), Form(3))]
    for _ in range(80):
        action = rng.random()
        if action < 0.4:
            mailbox.step(rng)
        elif action < 0.65:
            view.apply(mailbox.delta(view.highestmodseq))
        elif action < 0.7:
            view.replace(mailbox.view())
        elif action < 0.75:
            clients.append(Client(view, Form.PLAIN))
        elif action < 0.8 and len(clients) > 4:
            gone = clients.pop()
            view.selections.discard(gone.selected)
        else:
            rng.choice(clients).sync(expunge=rng.random() < 0.4)
        unseen = (i for i, flags in enumerate(view.flags, 1) if not flags & SEEN)
        assert view.first_unseen() == next(unseen, 0)
    view.apply(mailbox.delta(view.highestmodseq))
    for client in clients:
        client.sync(expunge=False)
        client.sync(expunge=True)
        client.check(mailbox)
        assert client.selected.sync(expunge=True, form=client.form) == b""


def make(count: int) -> tuple[Mailbox, MailboxView]:
    mailbox = Mailbox()
    for uid in range(1, count + 1):
        mailbox.modseq += 1
        mailbox.messages[uid] = (mailbox.modseq, 0, ())
    mailbox.uidnext = count + 1
    return mailbox, MailboxView(1, mailbox.view())


def test_expunged_messages_keep_their_numbers_until_told() -> None:
    mailbox, view = make(5)
    selected = Selected(view, ACCESS, "INBOX", read_only=False)
    view.selections.add(selected)
    mailbox.modseq += 1
    del mailbox.messages[2]
    mailbox.expunged[2] = mailbox.modseq
    mailbox.modseq += 1
    mailbox.messages[6] = (mailbox.modseq, 1, ())
    view.apply(mailbox.delta(view.highestmodseq))
    assert selected.sync(expunge=False, form=Form.PLAIN) == b"* 6 EXISTS\r\n"
    assert list(selected.batch(1, 6).seqs) == [1, 3, 4, 5, 6]
    assert selected.lost([(1, 3)])
    assert not selected.lost([(3, 6)])
    assert selected.sync(expunge=True, form=Form.PLAIN) == b"* 2 EXPUNGE\r\n"
    assert list(selected.batch(1, 5).uids) == [1, 3, 4, 5, 6]


def stored(uid: int, modseq: int, bits: int, previous: int = 1) -> StoreResult:
    return StoreResult(modseq, ((uid, uid + 1000, modseq, bits, ()),), (previous,), ())


def test_what_a_session_did_itself_is_not_told_twice() -> None:
    mailbox, view = make(3)
    mine, other = (Selected(view, ACCESS, "INBOX", read_only=False) for _ in range(2))
    view.selections.update((mine, other))
    mailbox.modseq += 1
    mailbox.messages[2] = (mailbox.modseq, 1, ())
    mine.quiet(stored(2, mailbox.modseq, 1))
    view.apply(mailbox.delta(view.highestmodseq))
    assert mine.sync(expunge=True, form=Form.PLAIN) == b""
    told = other.sync(expunge=True, form=Form.PLAIN)
    assert told == b"* 2 FETCH (FLAGS (\\Seen))\r\n"


def test_a_later_change_by_others_is_told() -> None:
    mailbox, view = make(3)
    mine = Selected(view, ACCESS, "INBOX", read_only=False)
    view.selections.add(mine)
    mine.quiet(stored(2, mailbox.modseq + 1, 1))
    mailbox.modseq += 2
    mailbox.messages[2] = (mailbox.modseq, 5, ())
    view.apply(mailbox.delta(view.highestmodseq))
    told = mine.sync(expunge=True, form=Form.MODSEQ)
    assert told == b"* 2 FETCH (FLAGS (\\Seen \\Flagged) MODSEQ (6))\r\n"


def test_a_change_by_others_that_a_quiet_one_met_is_told() -> None:
    mailbox, view = make(3)
    mine = Selected(view, ACCESS, "INBOX", read_only=False)
    view.selections.add(mine)
    mailbox.modseq += 1
    mailbox.messages[2] = (mailbox.modseq, 1, ())  # by another session
    mailbox.modseq += 1
    mailbox.messages[2] = (mailbox.modseq, 5, ())
    mine.quiet(stored(2, mailbox.modseq, 5, previous=mailbox.modseq - 1))
    view.apply(mailbox.delta(view.highestmodseq))
    told = mine.sync(expunge=True, form=Form.PLAIN)
    assert told == b"* 2 FETCH (FLAGS (\\Seen \\Flagged))\r\n"


def test_idle_sessions_share_one_rendering() -> None:
    mailbox, view = make(3)
    sessions = [Selected(view, ACCESS, "INBOX", read_only=False) for _ in range(5)]
    view.selections.update(sessions)
    mailbox.step(random.Random(1))
    view.apply(mailbox.delta(view.highestmodseq))
    told = [session.sync(expunge=True, form=Form.PLAIN) for session in sessions]
    assert told[0]
    assert all(text is told[0] for text in told)


def test_the_log_is_bounded() -> None:
    mailbox, view = make(10)
    slow = Client(view, Form.PLAIN)
    for turn in range(3000):
        mailbox.modseq += 1
        for uid in mailbox.messages:
            mailbox.messages[uid] = (mailbox.modseq, turn % 32, ())
        view.apply(mailbox.delta(view.highestmodseq))
    assert view._log_weight <= 4096
    slow.sync(expunge=True)
    slow.check(mailbox)


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        (b"1:*", 3, [(1, 3)]),
        (b"1:*", 0, []),
        (b"*", 3, [(3, 3)]),
        (b"9:*", 3, [(3, 3)]),
        (b"2,1", 3, [(1, 2)]),
    ],
)
def test_sequence_numbers(
    text: bytes, count: int, expected: list[tuple[int, int]]
) -> None:
    _, view = make(count)
    selected = Selected(view, ACCESS, "INBOX", read_only=False)
    assert selected.resolve(sequence.parse(text), uid=False) == expected


@pytest.mark.parametrize("text", [b"4", b"1:4", b"1"])
def test_numbers_that_do_not_exist(text: bytes) -> None:
    _, view = make(3 if text != b"1" else 0)
    selected = Selected(view, ACCESS, "INBOX", read_only=False)
    with pytest.raises(WireError):
        selected.resolve(sequence.parse(text), uid=False)
    assert selected.resolve(sequence.parse(b"4:9"), uid=True) == []


@given(st.sets(st.integers(1, 60)), st.lists(st.tuples(*[st.integers(1, 70)] * 2)))
def test_uid_ranges(uids: set[int], ranges: list[tuple[int, int]]) -> None:
    mailbox = Mailbox()
    mailbox.messages = dict.fromkeys(uids, (1, 0, ()))
    selected = Selected(
        MailboxView(1, mailbox.view()), ACCESS, "INBOX", read_only=False
    )
    merged = sequence.normalise(ranges)
    found = selected.uids_of(selected.by_uid(merged))
    assert list(found) == sorted(
        uid for uid in uids if any(low <= uid <= high for low, high in merged)
    )
