"""Real and malformed messages of other parsers' test data, through the daemon.

Skipped where ``../shared/corpora`` is absent.  Every file goes in by SMTP (one
pipelined connection) and by APPEND, and comes back by IMAP and JMAP.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.lib import daemon, imap_syntax
from tests.lib.clients import Imap, Jmap, Smtp
from tests.lib.knot import Knot, available

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.lib.databases import Engine

CORPORA = pathlib.Path(__file__).parents[3] / "shared/corpora/mime"
pytestmark = [
    pytest.mark.skipif(
        not CORPORA.is_dir(), reason="the shared corpora are not beside this project"
    ),
    pytest.mark.timeout(180),
]
ALICE, BOB, PASSWORD = "alice@example.test", "bob@example.test", "corpora pass"
ENVELOPE = (
    f"MAIL FROM:<sender@outside.test> BODY=8BITMIME SMTPUTF8\r\nRCPT TO:<{ALICE}>\r\n"
).encode()
TRACE = re.compile(
    rb"(?:(?:Return-Path|Authentication-Results|Received):[^\r\n]*\r\n"
    rb"(?:[ \t][^\r\n]*\r\n)*)+"
)
PAGE = 100  # messages asked for at once
REFUSALS = 10  # per connection: SMTP closes it after 20
WHOLE = 1 << 30  # octets: no body value is cut
BODY_PROPERTIES = [
    "partId",
    "blobId",
    "size",
    "name",
    "type",
    "charset",
    "disposition",
    "cid",
    "language",
    "location",
    "headers",
    "subParts",
]
PROPERTIES = [
    "id",
    "blobId",
    "threadId",
    "mailboxIds",
    "keywords",
    "size",
    "receivedAt",
    "messageId",
    "inReplyTo",
    "references",
    "sender",
    "from",
    "to",
    "cc",
    "bcc",
    "replyTo",
    "subject",
    "sentAt",
    "hasAttachment",
    "preview",
    "bodyStructure",
    "bodyValues",
    "textBody",
    "htmlBody",
    "attachments",
    "headers",
    "header:From:asAddresses",
    "header:To:asGroupedAddresses:all",
    "header:Subject:asText:all",
    "header:Date:asDate",
    "header:Message-ID:asMessageIds:all",
    "header:List-Post:asURLs",
    "header:Received:asRaw:all",
    "header:Received",
]


@dataclasses.dataclass(frozen=True)
class Sample:
    name: str
    raw: bytes  # with CRLF line ends

    @property
    def bare_cr(self) -> bool:
        return self.raw.count(b"\r") != self.raw.count(b"\r\n")

    @property
    def nul(self) -> bool:
        return b"\0" in self.raw


@dataclasses.dataclass
class World:
    """``sent`` and ``appended`` in the order of their uids."""

    ours: daemon.Daemon
    samples: list[Sample]
    sent: list[Sample]
    appended: list[Sample]


def samples() -> list[Sample]:
    found = []
    for path in sorted(p for p in CORPORA.rglob("*") if p.is_file()):
        lines = path.read_bytes().replace(b"\r\n", b"\n")
        raw = lines.replace(b"\n", b"\r\n")
        found.append(Sample(str(path.relative_to(CORPORA)), raw))
    return found


@pytest.fixture(scope="module")
def world(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if not available():
        pytest.skip("policy asks knot, which is not installed")
    home = tmp_path_factory.mktemp("corpora")
    ours = daemon.make(
        home / "ours", f"{ALICE}:{PASSWORD}", f"{BOB}:{PASSWORD}", engine=engine
    )
    found = samples()
    with Knot({"example.test": "@ A 127.0.0.1"}) as dns:  # all else does not exist
        ours.override(f'[dns]\nservers = ["{dns.server}"]\n')
        with daemon.running(ours):
            yield World(ours, found, send(ours, found), append(ours, found))
    assert "Traceback" not in ours.log()


# --- ways in -------------------------------------------------------------------------


def send(ours: daemon.Daemon, found: list[Sample]) -> list[Sample]:
    """One connection; each envelope comes right behind the message before it."""
    good = [sample for sample in found if not (sample.nul or sample.bare_cr)]
    with Smtp(ours.port(25)) as smtp:
        smtp.send(ENVELOPE)
        for sample in good:
            assert [smtp.reply()[0] for _ in range(2)] == [250, 250], sample.name
            code, text = transfer(smtp, sample.raw, ENVELOPE)
            assert code == 250, (sample.name, text)
    return good


def transfer(smtp: Smtp, raw: bytes, following: bytes) -> tuple[int, str]:
    """DATA where the message ends with a line, else BDAT: octet for octet."""
    if not raw.endswith(b"\r\n"):
        smtp.send(b"BDAT %d LAST\r\n" % len(raw) + raw + following)
        return smtp.reply()
    code, text = smtp.run("DATA")
    assert code == 354, text
    stuffed = raw.replace(b"\r\n.", b"\r\n..")
    smtp.send((b"." if raw.startswith(b".") else b"") + stuffed + b".\r\n" + following)
    return smtp.reply()


def append(ours: daemon.Daemon, found: list[Sample]) -> list[Sample]:
    """What its owner stores may hold a bare CR, but neither NUL nor nothing."""
    good = [sample for sample in found if sample.raw and not sample.nul]
    with Imap(ours.port(143), BOB, PASSWORD) as imap:
        for group in batches(good, 20):
            tags = [
                imap.begin(b"APPEND INBOX {%d+}\r\n" % len(sample.raw) + sample.raw)
                for sample in group
            ]
            for sample, tag in zip(group, tags, strict=True):
                reply, _ = imap.finish(tag)
                assert reply.startswith(b"OK [APPENDUID "), (sample.name, reply)
    return good


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def test_smtp_refuses_what_no_message_may_hold(world: World) -> None:
    """By DATA and by BDAT; what follows on the connection is not disturbed."""
    bad = [sample for sample in world.samples if sample.nul or sample.bare_cr]
    assert len(bad) > 50
    for group in batches(bad, REFUSALS):
        with Smtp(world.ours.port(25)) as smtp:
            for sample in group:
                smtp.send(ENVELOPE)
                assert [smtp.reply()[0] for _ in range(2)] == [250, 250], sample.name
                code, text = transfer(smtp, sample.raw, b"NOOP\r\n")
                assert (code, text[:5]) == (554, "5.6.0"), (sample.name, code, text)
                assert smtp.reply()[0] == 250, sample.name


def test_append_refuses_nul(world: World) -> None:
    """RFC 9051 section 4.3: a literal holds no NUL."""
    bad = [sample for sample in world.samples if sample.nul]
    assert bad
    with Imap(world.ours.port(143), BOB, PASSWORD) as imap:
        for sample in bad:
            reply = imap.append(sample.raw, "Drafts")
            assert reply.startswith(b"BAD "), (sample.name, reply)
            imap.ok("NOOP")
        assert b"MESSAGES 0" in imap.ok("STATUS Drafts (MESSAGES)")[0]


# --- ways out: octets ----------------------------------------------------------------


def bodies(ours: daemon.Daemon, user: str) -> Iterator[tuple[int, bytes]]:
    """Yield (uid, octets) of the INBOX."""
    with Imap(ours.port(143), user, PASSWORD) as imap:
        imap.ok("EXAMINE INBOX")
        for uid in itertools.count(1, PAGE):
            page = imap.ok(f"UID FETCH {uid}:{uid + PAGE - 1} (UID BODY.PEEK[])")
            if not page:
                return
            for response in page:
                _, items = imap_syntax.fetch(response)
                raw = items[b"BODY[]"]
                assert isinstance(raw, bytes)
                assert isinstance(items[b"UID"], int)
                yield items[b"UID"], raw


def check_traced(sample: Sample, raw: bytes) -> None:
    """Ours come first, then the message as it was sent."""
    assert raw.endswith(sample.raw), sample.name
    head = raw[: len(raw) - len(sample.raw)]
    assert TRACE.fullmatch(head), (sample.name, head)
    assert head.startswith(b"Return-Path: <sender@outside.test>\r\n")
    assert head.count(b"\r\nReceived:") == 1


def test_sent_messages_come_back_byte_for_byte(world: World) -> None:
    found = dict(bodies(world.ours, ALICE))
    assert list(found) == list(range(1, len(world.sent) + 1))
    for sample, raw in zip(world.sent, found.values(), strict=True):
        check_traced(sample, raw)


def test_appended_messages_come_back_byte_for_byte(world: World) -> None:
    found = dict(bodies(world.ours, BOB))
    assert list(found) == list(range(1, len(world.appended) + 1))
    for sample, raw in zip(world.appended, found.values(), strict=True):
        assert raw == sample.raw, sample.name


def email_ids(jmap: Jmap, mailbox: str = "inbox") -> list[str]:
    """Return the ids of a mailbox, oldest first (those of one second by id)."""
    boxes = jmap.ok("Mailbox/get", ids=None)["list"]
    (inbox,) = [box["id"] for box in boxes if box["role"] == mailbox]
    found: list[str] = []
    while True:
        page = jmap.ok(
            "Email/query",
            filter={"inMailbox": inbox},
            sort=[{"property": "receivedAt"}],
            position=len(found),
            limit=500,
        )["ids"]
        if not page:
            return found
        found += page


@pytest.mark.parametrize("user", [ALICE, BOB])
def test_downloads_are_the_messages_byte_for_byte(world: World, user: str) -> None:
    stored = {raw for _, raw in bodies(world.ours, user)}
    downloaded = set()
    with Jmap(world.ours.port(80), user, PASSWORD) as jmap:
        for page in batches(email_ids(jmap), 500):
            got = jmap.ok("Email/get", ids=page, properties=["blobId", "size"])
            assert not got["notFound"]
            for email in got["list"]:
                status, raw = jmap.download(email["blobId"])
                assert status == 200, email
                assert len(raw) == email["size"]
                downloaded.add(raw)
    assert downloaded == stored


# --- ways out: structure -------------------------------------------------------------


def leaves(tree: list[Any], path: tuple[int, ...] = ()) -> Iterator[tuple[str, int]]:
    """Yield (section, octets) of every part that is no multipart.

    The sections are those of RFC 9051 section 6.4.5: a message/rfc822 part has its
    own and those of what it encloses.
    """
    if isinstance(tree[0], list):
        for number, child in enumerate(tree[0], 1):
            yield from leaves(child, (*path, number))
        return
    own = path or (1,)
    yield ".".join(map(str, own)), tree[6]
    if tree[0].lower() == b"message" and len(tree) > 8 and isinstance(tree[8], list):
        inner = tree[8]
        if isinstance(inner[0], list):
            yield from leaves(inner, own)
        else:
            yield from leaves(inner, (*own, 1))


@pytest.mark.parametrize("user", [ALICE, BOB])
def test_envelopes_and_structures_are_valid(world: World, user: str) -> None:
    expected = world.sent if user == ALICE else world.appended
    with Imap(world.ours.port(143), user, PASSWORD) as imap:
        imap.ok("EXAMINE INBOX")
        page = imap.ok("UID FETCH 1:* (UID RFC822.SIZE ENVELOPE BODYSTRUCTURE)")
        short = imap.ok("UID FETCH 1:* (UID BODY)")
        assert len(page) == len(short) == len(expected)
        for sample, response, plain in zip(expected, page, short, strict=True):
            try:
                _, items = imap_syntax.fetch(response)
                imap_syntax.fetch(plain)
            except SyntaxError as error:
                raise AssertionError(sample.name) from error
            assert items[b"RFC822.SIZE"] == len(sample.raw) or user == ALICE


def test_every_part_has_the_announced_size(world: World) -> None:
    with Imap(world.ours.port(143), BOB, PASSWORD) as imap:
        imap.ok("EXAMINE INBOX")
        announced = {}
        for response in imap.ok("UID FETCH 1:* (UID BODYSTRUCTURE)"):
            _, items = imap_syntax.fetch(response)
            tree = items[b"BODYSTRUCTURE"]
            assert isinstance(tree, list)
            announced[items[b"UID"]] = dict(leaves(tree))
        for page in batches(list(announced.items()), 20):
            tags = [
                imap.begin(f"UID FETCH {uid} ({' '.join(sections(parts))})")
                for uid, parts in page
            ]
            for (uid, parts), tag in zip(page, tags, strict=True):
                reply, untagged = imap.finish(tag)
                assert reply.startswith(b"OK"), (uid, reply)
                check_parts(world.appended[uid - 1].name, parts, untagged)


def sections(parts: dict[str, int]) -> list[str]:
    return ["UID", *(f"BODY.PEEK[{section}]" for section in parts)]


def check_parts(name: str, parts: dict[str, int], untagged: list[bytes]) -> None:
    (response,) = untagged
    _, items = imap_syntax.fetch(response)
    for section, size in parts.items():
        body = items[f"BODY[{section}]".encode()]
        # NIL: what an encoded message/rfc822 encloses is not walked into
        assert len(body or b"") == size, (name, section)  # type: ignore[arg-type]


@pytest.mark.parametrize("user", [ALICE, BOB])
def test_email_get_shows_everything(world: World, user: str) -> None:
    seen = 0
    with Jmap(world.ours.port(80), user, PASSWORD) as jmap:
        for page in batches(email_ids(jmap), PAGE):
            got = jmap.ok(
                "Email/get",
                ids=page,
                properties=PROPERTIES,
                bodyProperties=BODY_PROPERTIES,
                fetchAllBodyValues=True,
                maxBodyValueBytes=WHOLE,
            )
            assert not got["notFound"]
            assert [email["id"] for email in got["list"]] == list(page)
            for email in got["list"]:
                check_email(email)
            seen += len(page)
    assert seen == len(world.sent if user == ALICE else world.appended)


def check_email(email: dict[str, Any]) -> None:
    assert set(PROPERTIES) <= set(email)
    parts = list(walk(email["bodyStructure"]))
    shown = email["textBody"] + email["htmlBody"] + email["attachments"]
    ids = {part["partId"] for part in parts if part["partId"] is not None}
    assert {part["partId"] for part in shown} <= ids
    assert set(email["bodyValues"]) <= ids
    for part in parts:
        multipart = part["type"].startswith("multipart/")
        assert (part["partId"] is None) is multipart
        assert (part["blobId"] is None) is multipart


def walk(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield part
    for child in part["subParts"] or ():
        yield from walk(child)
