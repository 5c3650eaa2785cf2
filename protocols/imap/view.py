r"""The state of a mailbox, shared by all sessions of a process, and what each was told.

``MailboxView`` holds the arrays of ``Messages.view`` and applies deltas to them.  Every
delta is one tick of a short log.  A ``Selected`` (one session's mailbox) remembers the
tick up to which its client was told, and which array of uids makes its sequence
numbers; the array itself is shared, since it only ever grows at its end until something
is expunged, and is then replaced, not changed.

``Selected.sync`` says what is new.  With ``expunge=False`` (FETCH, STORE and SEARCH:
RFC 9051 section 7.5.1) expunged messages keep their numbers until a later call.  What
it returns depends on the tick alone for a session that is told everything, so
hundreds of idle sessions share one rendering.
"""

from __future__ import annotations

import dataclasses
import enum
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from itertools import compress, islice
from typing import TYPE_CHECKING

from protocols.imap.wire import encode, sequence
from protocols.imap.wire.errors import WireError
from storage.model import DELETED_BIT, KEYWORD_SHIFT, SEEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mailserverd.core.types import Access
    from storage.model import StoreResult, View, ViewDelta

    Changed = tuple[int, int, int, int, tuple[str, ...]]

_FEW = 64  # removals up to here are deleted one by one
_LOG_WEIGHT = 4096
_BITS = (1 << KEYWORD_SHIFT) - 1


class Form(enum.IntFlag):
    """How a session wants to be told."""

    PLAIN = 0
    UID = 1  # UID in unsolicited FETCH (IMAP4rev2, QRESYNC)
    MODSEQ = 2  # CONDSTORE
    VANISHED = 4  # QRESYNC: VANISHED in place of EXPUNGE


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Parallel columns of some messages, copied: later deltas do not touch them."""

    seqs: Sequence[int]
    uids: array[int]
    email_ids: array[int]
    modseqs: array[int]
    flags: array[int]

    def pick(self, positions: Iterable[int]) -> Batch:
        """Return the messages at these positions."""
        chosen = list(positions)
        return Batch(
            [self.seqs[i] for i in chosen],
            *(
                array(column.typecode, [column[i] for i in chosen])
                for column in (self.uids, self.email_ids, self.modseqs, self.flags)
            ),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    changed: Sequence[int]
    removed: Sequence[int]


class MailboxView:
    """Arrays of one mailbox in uid order, kept current by deltas."""

    __slots__ = (
        "_keyword_index",
        "_log",
        "_log_start",
        "_log_weight",
        "_rendered",
        "_seen_below",
        "_texts",
        "account",
        "email_ids",
        "flags",
        "highestmodseq",
        "keyword_sets",
        "keywords",
        "mailbox_id",
        "modseqs",
        "selections",
        "tick",
        "uidnext",
        "uids",
        "uidvalidity",
    )

    def __init__(self, account: int, view: View) -> None:
        self.account = account
        self.mailbox_id = view.mailbox_id
        self.selections: set[Selected] = set()
        self.tick = 0
        self._log: deque[_Entry] = deque()
        self._log_start = 0
        self._log_weight = 0
        self.replace(view)

    def replace(self, view: View) -> None:
        """Take a newly loaded state; sessions will compare in full."""
        self.uidvalidity = view.uidvalidity
        self.uidnext = view.uidnext
        self.highestmodseq = view.highestmodseq
        self.uids = view.uids
        self.email_ids = view.email_ids
        self.modseqs = view.modseqs
        self.flags = view.flags
        self.keyword_sets: list[tuple[str, ...]] = []
        self._keyword_index: dict[tuple[str, ...], int] = {(): 0}
        self.keywords: dict[str, None] = {}
        for keywords in view.keyword_sets:
            self._learn(keywords)
        self._texts: dict[int, bytes] = {}
        self._seen_below = 0  # every message with a lower uid has \Seen
        self.tick += 1
        self._forget()

    def _forget(self) -> None:
        self._log.clear()
        self._log_start = self.tick
        self._log_weight = 0
        self._rendered: dict[tuple[int, bool, Form], bytes] = {}

    def rest(self) -> None:
        """No session looks: drop what only serves them."""
        self._forget()
        self._texts = {}

    def _learn(self, keywords: tuple[str, ...]) -> int:
        """Append a keyword set; return its number (index + 1)."""
        self.keyword_sets.append(keywords)
        number = self._keyword_index[keywords] = len(self.keyword_sets)
        self.keywords.update(dict.fromkeys(keywords))
        return number

    def keyword_set(self, flags: int) -> tuple[str, ...]:
        """Return the keywords of a value of ``flags``."""
        number = flags >> KEYWORD_SHIFT
        return self.keyword_sets[number - 1] if number else ()

    def flag_text(self, flags: int) -> bytes:
        r"""Return ``(\Seen $forwarded)`` for a value of ``flags``."""
        text = self._texts.get(flags)
        if text is None:
            words = encode.flags(flags & _BITS, self.keyword_set(flags))
            text = words.encode("ascii", "replace")
            self._texts[flags] = text
        return text

    def flag_texts(self, flags: Iterable[int]) -> list[bytes]:
        """Return the flag lists of many messages."""
        known = self._texts
        try:
            return [known[value] for value in flags]
        except KeyError:
            return [self.flag_text(value) for value in flags]

    def apply(self, delta: ViewDelta) -> bool:
        """Apply what changed since ``highestmodseq``; True when sessions care."""
        count = len(self.uids)
        removed = self._remove(delta.vanished)
        changed = self._change(delta.changed)
        self.uidnext = max(self.uidnext, delta.uidnext)
        self.highestmodseq = max(self.highestmodseq, delta.highestmodseq)
        if not removed and not changed and len(self.uids) == count:
            return False
        self._record(_Entry(changed, removed))
        return True

    def _record(self, entry: _Entry) -> None:
        self.tick += 1
        self._rendered.clear()
        if not self.selections:
            self._forget()
            return
        self._log.append(entry)
        self._log_weight += 1 + len(entry.changed) + len(entry.removed)
        limit = max(_LOG_WEIGHT, 2 * len(self.uids))
        while self._log_weight > limit:
            old = self._log.popleft()
            self._log_start += 1
            self._log_weight -= 1 + len(old.changed) + len(old.removed)

    def _remove(self, vanished: Iterable[int]) -> Sequence[int]:
        positions = [i for uid in sorted(vanished) if (i := self.find(uid)) >= 0]
        if not positions:
            return ()
        removed = array("I", [self.uids[i] for i in positions])
        columns = (self.email_ids, self.modseqs, self.flags)
        if len(positions) <= _FEW:
            self.uids = self.uids[:]  # sessions may hold the old one
            for i in reversed(positions):
                for column in (self.uids, *columns):
                    del column[i]
            return removed
        keep = bytearray(b"\1") * len(self.uids)
        for i in positions:
            keep[i] = 0
        self.uids, self.email_ids, self.modseqs, self.flags = (
            array(column.typecode, compress(column, keep))
            for column in (self.uids, *columns)
        )
        return removed

    def _change(self, rows: Iterable[Changed]) -> Sequence[int]:
        changed = array("I")
        uids, position = self.uids, 0
        for uid, email_id, modseq, bits, keywords in rows:
            position = bisect_left(uids, uid, position)
            number = self._keyword_index.get(keywords)
            if number is None:
                number = self._learn(keywords)
            value = bits | number << KEYWORD_SHIFT
            if position == len(uids):
                uids.append(uid)
                self.email_ids.append(email_id)
                self.modseqs.append(modseq)
                self.flags.append(value)
            elif uids[position] == uid:
                self.modseqs[position] = modseq
                self.flags[position] = value
                changed.append(uid)
                if not value & SEEN:
                    self._seen_below = min(self._seen_below, uid)
            else:
                raise RuntimeError(f"uid {uid} appeared below {uids[-1]}")
        return changed

    def since(self, tick: int) -> tuple[Sequence[int], Sequence[int]] | None:
        """Return (changed, removed) uids since a tick; None when it is too far back."""
        if tick < self._log_start:
            return None
        entries = list(islice(self._log, tick - self._log_start, None))
        if len(entries) == 1:
            return entries[0].changed, entries[0].removed
        removed = {uid for entry in entries for uid in entry.removed}
        changed = {uid for entry in entries for uid in entry.changed}
        return sorted(changed - removed), sorted(removed)

    def find(self, uid: int) -> int:
        """Return the position of a uid, or -1."""
        i = bisect_left(self.uids, uid)
        return i if i < len(self.uids) and self.uids[i] == uid else -1

    def first_unseen(self) -> int:
        r"""Return the sequence number of the first message without \Seen, or 0."""
        position = bisect_left(self.uids, self._seen_below)
        flags = islice(self.flags, position, None)
        found = next((i for i, f in enumerate(flags, position) if not f & SEEN), -1)
        self._seen_below = self.uids[found] if found >= 0 else self.uidnext
        return found + 1

    def rendered(self, key: tuple[int, bool, Form]) -> bytes | None:
        """Return what another session at the same tick was told."""
        return self._rendered.get(key)

    def remember(self, key: tuple[int, bool, Form], text: bytes) -> None:
        """Keep a rendering until the next tick."""
        self._rendered[key] = text


class Selected:
    """One session's mailbox: its sequence numbers and what its client knows."""

    __slots__ = (
        "_count",
        "_known",
        "_pending",
        "_tick",
        "_uids",
        "access",
        "listener",
        "path",
        "read_only",
        "saved",
        "told",
        "view",
    )

    def __init__(
        self, view: MailboxView, access: Access, path: str, *, read_only: bool
    ) -> None:
        self.view = view
        self.access = access
        self.path = path
        self.read_only = read_only
        self.saved: list[sequence.Range] = []  # uids of SEARCH RETURN (SAVE)
        self.listener: Callable[[], None] | None = None  # set while idling
        self._pending: Sequence[int] = ()  # expunged, but not yet told
        self._known: dict[int, int] = {}  # uid -> modseq that the client was sent
        self.catch_up()

    def catch_up(self) -> None:
        """Take the view as it is: the client was told, or knows nothing yet."""
        self._uids = self.view.uids
        self._count = len(self._uids)
        self._tick = self.view.tick
        self.told = self.view.highestmodseq

    @property
    def count(self) -> int:
        """How many messages the client knows of (EXISTS)."""
        return self._count

    @property
    def _last(self) -> int:
        return self._uids[self._count - 1] if self._count else 0

    def seq(self, uid: int) -> int:
        """Return the client's number of a message, or 0."""
        i = bisect_left(self._uids, uid, 0, self._count)
        return i + 1 if i < self._count and self._uids[i] == uid else 0

    def resolve(
        self, wanted: sequence.SequenceSet, *, uid: bool
    ) -> list[sequence.Range]:
        """Return the sequence numbers that a set selects, as ranges.

        WireError for a message sequence number that does not exist (RFC 9051
        section 9, ``seq-number``); uids that do not exist select nothing.
        """
        if wanted.saved:
            return self.by_uid(self.saved)
        if uid:
            return self.by_uid(wanted.resolve(self._last))
        for pair in wanted.ranges:
            if sequence.STAR not in pair and max(pair) > self._count:
                raise WireError("no such message sequence number")
        return self.by_number(wanted)

    def by_number(self, wanted: sequence.SequenceSet) -> list[sequence.Range]:
        """Return the sequence numbers of a set, without those that do not exist."""
        count = self._count
        return [
            (low, min(high, count))
            for low, high in wanted.resolve(count)
            if low <= count
        ]

    def by_uid(self, ranges: Iterable[sequence.Range]) -> list[sequence.Range]:
        """Return the sequence numbers of uids; what does not exist is left out."""
        found = []
        for low, high in ranges:
            first = bisect_left(self._uids, low, 0, self._count)
            last = bisect_right(self._uids, high, first, self._count)
            if first < last:
                found.append((first + 1, last))
        return found

    def span(self, low: int, high: int) -> int:
        """Return how many messages of the mailbox lie between two uids."""
        uids = self.view.uids
        return bisect_right(uids, high) - bisect_left(uids, low)

    def uids_of(self, ranges: Iterable[sequence.Range]) -> array[int]:
        """Return the uids of ranges of sequence numbers."""
        uids = array("I")
        for low, high in ranges:
            uids += self._uids[low - 1 : high]
        return uids

    def batch(self, low: int, high: int) -> Batch:
        """Return the messages numbered ``low`` to ``high``, without expunged ones."""
        view = self.view
        uids = self._uids[low - 1 : high]
        if self._uids is view.uids:
            columns = (view.email_ids, view.modseqs, view.flags)
            span = slice(low - 1, high)
            return Batch(range(low, high + 1), uids, *(c[span] for c in columns))
        pairs = [(low + n, i) for n, u in enumerate(uids) if (i := view.find(u)) >= 0]
        everything = Batch(
            range(len(view.uids)), view.uids, view.email_ids, view.modseqs, view.flags
        )
        chosen = everything.pick(i for _, i in pairs)
        return dataclasses.replace(chosen, seqs=[seq for seq, _ in pairs])

    def lost(self, ranges: Iterable[sequence.Range]) -> bool:
        """Say whether some of these messages were expunged meanwhile."""
        if self._uids is self.view.uids:
            return False
        return any(self.view.find(uid) < 0 for uid in self.uids_of(ranges))

    def sent(self, batch: Batch) -> None:
        """Note that the client was sent the flags of these messages."""
        self._known.update(zip(batch.uids, batch.modseqs, strict=True))

    def quiet(self, result: StoreResult) -> None:
        """Note changes that the client made and need not hear of.

        It must hear of those that met a change by others that it was not yet told
        (RFC 9051 section 6.4.6): its own picture would lack that one for ever.
        """
        known, told = self._known, self.told
        for row, previous in zip(result.changed, result.previous, strict=True):
            if previous <= max(told, known.get(row[0], 0)):
                known[row[0]] = row[2]

    def sync(self, *, expunge: bool, form: Form) -> bytes:
        """Return the untagged responses that bring the client up to date."""
        view = self.view
        if self._tick == view.tick and not (expunge and self._pending):
            self.told = view.highestmodseq
            self._known.clear()
            return b""
        plain = not self._pending and not self._known
        key = (self._tick, expunge, form)
        if plain and (text := view.rendered(key)) is not None:
            self.catch_up()
            return text
        text = self._news(form, expunge=expunge)
        if plain and not self._pending:
            view.remember(key, text)
        return text

    def _news(self, form: Form, *, expunge: bool) -> bytes:
        view, last = self.view, self._last
        changed, removed = view.since(self._tick) or self._compare()
        gone = {uid for uid in removed if uid <= last}.union(self._pending)
        self._pending = sorted(gone)
        out: list[bytes] = []
        if expunge and self._pending:
            out.append(self._expunges(form))
            self._pending = ()
        before = self._count - (len(gone) if not self._pending else 0)
        self._extend(last)
        if self._count != before:
            out.append(b"* %d EXISTS\r\n" % self._count)
        known = self._known
        fresh = [uid for uid in changed if uid <= last and uid not in gone]
        out += self._updates((u for u in fresh if not self._is_known(u, known)), form)
        self._known = {}
        return b"".join(out)

    def _extend(self, last: int) -> None:
        """Number the messages that came after ``last``."""
        view = self.view
        if not self._pending:
            self.catch_up()
            return
        new = view.uids[bisect_right(view.uids, last) :]
        if new:
            self._uids = self._uids[: self._count] + new
            self._count = len(self._uids)
        self._tick = view.tick
        self.told = view.highestmodseq

    def _is_known(self, uid: int, known: dict[int, int]) -> bool:
        return known.get(uid, -1) >= self.view.modseqs[self.view.find(uid)]

    def _compare(self) -> tuple[Sequence[int], Sequence[int]]:
        """Compare in full, when the log does not reach back."""
        view = self.view
        here = set(view.uids)
        removed = [uid for uid in self._uids[: self._count] if uid not in here]
        pairs = zip(view.uids, view.modseqs, strict=True)
        return [uid for uid, modseq in pairs if modseq > self.told], removed

    def _expunges(self, form: Form) -> bytes:
        """Highest number first, so that the numbers below stay what they were."""
        if form & Form.VANISHED:
            return b"* VANISHED %b\r\n" % sequence.encode(self._pending)
        return b"".join(
            [b"* %d EXPUNGE\r\n" % self.seq(uid) for uid in reversed(self._pending)]
        )

    def _updates(self, uids: Iterable[int], form: Form) -> list[bytes]:
        view = self.view
        lines = []
        for uid in uids:
            i = view.find(uid)
            items = b"UID %d " % uid if form & Form.UID else b""
            items += b"FLAGS " + view.flag_text(view.flags[i])
            if form & Form.MODSEQ:
                items += b" MODSEQ (%d)" % view.modseqs[i]
            lines.append(b"* %d FETCH (%b)\r\n" % (self.seq(uid), items))
        return lines


def is_deleted(flags: int) -> bool:
    r"""Say whether a value of ``flags`` has \Deleted."""
    return bool(flags & DELETED_BIT)
