"""Mail as it piles up over the years: threads, folders, flags, dates, all from a seed.

A few hundred templates are parsed once, as messages are at arrival; each message is a
template in which numbers and dates of fixed width are replaced, in its octets and in
what was parsed, so that making one costs microseconds and its row is still what
parsing it would yield (a test compares them).
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import random
from email.utils import format_datetime
from typing import TYPE_CHECKING

from mailserverd.mail.threads import thread_keys
from mailserverd.services.facts import read_facts
from scripts.benchmarks.common import WORDS
from storage.model import ANSWERED, DRAFT, FLAGGED, SEEN, BlobRef, Flags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from storage.model import NewEmail

BATCH = 500
"""Messages that are made and stored together; threads do not cross batches."""
TEMPLATES = 400
SENDERS = 150
YEARS = 10
END = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
SELF, PARENT, ROOT = (mark * 12 for mark in ("0", "1", "2"))
SENT = datetime.datetime(2003, 3, 3, 3, 3, 3, tzinfo=datetime.UTC)
NOWHERE = BlobRef(bytes(32), b"", 0, 0, 0, 0)
INBOX_SHARE = 0.2
NAMES = ("Projects", "Lists", "Clients", "Family", "Travel", "Receipts", "Archive")
TOPICS = ("alpha", "beta", "garden", "school", "server", "tax", "news", "house")
SEEN_SHARE = 0.9  # of what is older than a year; half of that of what is new
KEYWORDS = (("$forwarded",), ("$label1",), ("$label2", "work"), ("$mdnsent",))


def folder_paths(count: int) -> list[str]:
    """Return the paths of an account's mailboxes, INBOX first, parents before."""
    paths = ["INBOX", "Drafts", "Sent", "Trash", "Junk", "Archive"][:count]
    for number in range(max(0, count - len(paths))):
        top = NAMES[number % len(NAMES)]
        year = 2026 - number // len(NAMES) % YEARS
        topic = TOPICS[number // (len(NAMES) * YEARS) % len(TOPICS)]
        paths.append(f"{top} {year}/{topic} {number}")
    return paths


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """A message whose numbers and date are to be replaced, and its facts."""

    raw: bytes
    email: NewEmail


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """One message: its octets, its row without a blob, and where it lies how."""

    raw: bytes
    email: NewEmail
    folder: int  # index into the paths of ``folder_paths``
    flags: Flags
    received_at: int


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What an account holds."""

    messages: int
    folders: int
    seed: int
    name: str = ""  # of the account: two of them do not hold the same octets

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return -(-self.messages // BATCH)


async def templates(seed: int, offload: Callable) -> list[tuple[Template, Template]]:
    """Return pairs of (first message of a thread, an answer to it)."""
    rng = random.Random(seed)
    found = []
    for number in range(TEMPLATES):
        subject = " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 7)))
        pair = []
        for answer in (False, True):
            raw = _message(rng, f"{subject} {number}", answer=answer)
            facts = await read_facts(raw, offload)
            pair.append(Template(raw, facts.email(NOWHERE)))
        found.append((pair[0], pair[1]))
    return found


def _message(rng: random.Random, subject: str, *, answer: bool) -> bytes:
    sender = f"person{int(rng.paretovariate(1.1)) % SENDERS}"
    lines = [
        f"Received: from mx.example.net (mx.example.net [192.0.2.{rng.randrange(250)}])"
        f"\r\n\tby mail.example.test with ESMTPS id {SELF};\r\n\t{_date(SENT)}",
        f"From: {sender.title()} Example <{sender}@example.net>",
        f"To: list{rng.randrange(9)}@example.test",
        f"Subject: {'Re: ' if answer else ''}{subject}",
        f"Date: {_date(SENT)}",
        f"Message-ID: <{SELF}.m@example.net>",
    ]
    if answer:
        lines += [
            f"In-Reply-To: <{PARENT}.m@example.net>",
            f"References: <{ROOT}.m@example.net> <{PARENT}.m@example.net>",
        ]
    words = min(int(rng.lognormvariate(3.2, 0.8)) + 5, 600)
    text = " ".join(rng.choice(WORDS) for _ in range(words)) + "\r\n"
    plain = f"Content-Type: text/plain; charset=utf-8\r\n\r\n{text}"
    head = "\r\n".join([*lines, "MIME-Version: 1.0", ""])
    if rng.random() > 0.15:
        return (head + plain).encode()
    data = rng.randbytes(rng.randint(200, 900)).hex()
    return (
        f"{head}Content-Type: multipart/mixed; boundary=b{SELF}\r\n\r\n"
        f"--b{SELF}\r\n{plain}--b{SELF}\r\n"
        "Content-Type: application/pdf; name=report.pdf\r\n"
        f"Content-Disposition: attachment; filename=report.pdf\r\n\r\n{data}\r\n"
        f"--b{SELF}--\r\n"
    ).encode()


def _date(when: datetime.datetime) -> str:
    return format_datetime(when)


def batch(
    plan: Plan, pairs: list[tuple[Template, Template]], number: int
) -> Iterator[Made]:
    """Yield the messages of one batch, in order of date; the same at each call."""
    rng = random.Random(f"{plan.seed}/{plan.name}/{number}")
    first = number * BATCH
    count = min(BATCH, plan.messages - first)
    threads = list(_threads(rng, count, plan.folders, len(pairs)))
    order = sorted((at, n) for n, thread in enumerate(threads) for at in thread.places)
    maker = _Maker(plan, rng)
    for at, n in order:
        yield maker.make(threads[n], pairs, first + at)


@dataclasses.dataclass(slots=True)
class _Thread:
    places: list[int]  # numbers inside the batch
    folder: int
    pair: int
    told: list[str] = dataclasses.field(default_factory=list)


def _threads(
    rng: random.Random, count: int, folders: int, pairs: int
) -> Iterator[_Thread]:
    """Share the numbers of a batch among threads: most have one or two messages."""
    free = list(range(count))
    while free:
        size = min(int(rng.paretovariate(1.4)), 30, len(free))
        places = []
        at = len(free) - 1
        for _ in range(size):
            places.append(free.pop(at))
            at = max(0, min(len(free) - 1, at - rng.randrange(60)))
        yield _Thread(sorted(places), _folder(rng, folders), rng.randrange(pairs))


def _folder(rng: random.Random, folders: int) -> int:
    """Choose a folder: INBOX is the largest, the others differ widely in size."""
    if folders == 1 or rng.random() < (INBOX_SHARE if folders >= 50 else 0.5):
        return 0
    return 1 + int((folders - 1) * rng.random() ** 2)


class _Maker:
    def __init__(self, plan: Plan, rng: random.Random) -> None:
        self._plan = plan
        self._rng = rng
        span = YEARS * 366 * 86_400
        self._start = int(END.timestamp()) - span
        self._step = span / max(plan.messages, 1)
        tag = f"{plan.seed}/{plan.name}".encode()
        self._tag = hashlib.blake2b(tag, digest_size=2).hexdigest()

    def make(
        self, thread: _Thread, pairs: list[tuple[Template, Template]], number: int
    ) -> Made:
        """Fill a template in."""
        own = f"{self._tag}{number:08}"
        template = pairs[thread.pair][bool(thread.told)]
        received = self._start + int(number * self._step)
        sent = received - self._rng.randrange(1, 300)
        names = {SELF: own}
        if thread.told:
            names |= {PARENT: thread.told[-1], ROOT: thread.told[0]}
        thread.told.append(own)
        raw, email = _filled(template, names, sent)
        flags = self._flags(number)
        return Made(raw, email, thread.folder, flags, received)

    def _flags(self, number: int) -> Flags:
        rng, old = self._rng, number < self._plan.messages * (1 - 1 / YEARS)
        system = 0
        if rng.random() < (SEEN_SHARE if old else SEEN_SHARE / 2):
            system |= SEEN
            system |= ANSWERED if rng.random() < 0.1 else 0
        system |= FLAGGED if rng.random() < 0.03 else 0
        system |= DRAFT if rng.random() < 0.0005 else 0
        words = rng.choice(KEYWORDS) if rng.random() < 0.05 else ()
        return Flags(system, words)


_SENT_DATE = _date(SENT).encode()
_SENT_JSON = SENT.strftime("%Y-%m-%dT%H:%M:%SZ").encode()


def _filled(
    template: Template, names: dict[str, str], sent: int
) -> tuple[bytes, NewEmail]:
    when = datetime.datetime.fromtimestamp(sent, datetime.UTC)
    pairs = [(old.encode(), new.encode()) for old, new in names.items()]
    pairs.append((_SENT_DATE, _date(when).encode()))
    email = template.email
    raw, envelope = _replaced(template.raw, pairs), _replaced(email.envelope, pairs)
    pairs[-1] = _SENT_JSON, when.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    own = f"{names[SELF]}.m@example.net"
    ids = [own] + [f"{names[n]}.m@example.net" for n in (PARENT, ROOT) if n in names]
    return raw, dataclasses.replace(
        email,
        envelope=envelope,
        list_json=_replaced(email.list_json, pairs),
        bodystructure=email.bodystructure.replace(*pairs[0]),
        part_table=email.part_table.replace(*pairs[0]),
        sent_at=sent,
        message_id=own,
        thread_keys=thread_keys([i.encode() for i in ids], email.base_subject),
    )


def _replaced(data: bytes, pairs: list[tuple[bytes, bytes]]) -> bytes:
    for old, new in pairs:
        data = data.replace(old, new)
    return data
