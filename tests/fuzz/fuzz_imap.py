"""Any bytes on an IMAP connection: replies that can be read, no bug, an end.

The session runs on services in memory; a reply of ``SERVERBUG``, a line that does not
end in CRLF, or a session that hangs is a finding.  The same octets in two blocks must
give the same answers as in one.
"""

from __future__ import annotations

import asyncio
import types
from array import array
from typing import TYPE_CHECKING, Any

from auth.people.authenticate import Principal
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import configure
from mailserverd.mail import mime
from protocols.imap.server import Server
from protocols.imap.services import ImapServices, ImapSettings
from storage.model import (
    AccountState,
    Added,
    BlobRef,
    CopyResult,
    Mailbox,
    MailboxList,
    StoreResult,
    View,
    ViewDelta,
)

if TYPE_CHECKING:
    from protocols.imap.session import Session

RAW = (
    b"From: a@b\r\nDate: 1 Jan 2024 00:00:00 +0000\r\nContent-Type: multipart/mixed;"
    b" boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b\r\n"
    b"Content-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\ny\r\n--b\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\naGk=\r\n--b--"
)
PARSED = mime.parse(RAW)
BLOB = BlobRef(bytes(32), bytes(16), 1, 0, len(RAW), len(RAW))
UIDS = (3, 4, 9)
STATE = AccountState(1, 5, 5, 5, 5, 1, 1, 1 << 20, 5000, 3)
VALUES = {
    "received_at": 1_700_000_000,
    "thread_id": 7,
    "save_date": 1_700_000_000,
    "size": len(RAW),
    "sent_at": None,
    "header_size": PARSED.header_size,
    "envelope": PARSED.envelope,
    "bodystructure": PARSED.bodystructure,
    "list_json": PARSED.list_json,
    "part_table": PARSED.part_table,
    "blob": BLOB,
}


def _mailbox(number: int, path: str, parent: int | None, role: str) -> Mailbox:
    name = path.rpartition("/")[2]
    counts = (3, 1, 0, 600, 3, 1, 3, 1)
    return Mailbox(
        number, name, parent, path, role, True, 0, 77, 10, 5, 5, 1, 1, *counts
    )


BOXES = MailboxList(
    STATE,
    (
        _mailbox(1, "INBOX", None, "inbox"),
        _mailbox(2, "a", None, "sent"),
        _mailbox(3, "a/é", 2, ""),
    ),
)


class Services:
    """Mailboxes, Messages, Search, Receive and Authenticator, as far as IMAP asks."""

    async def list(self, _: object) -> MailboxList:
        return BOXES

    async def state(self, _: object) -> AccountState:
        return STATE

    async def subscriptions(self, _: object) -> tuple[str, ...]:
        return ("INBOX", "a/é", "gone/for good")

    async def create_path(self, _: object, path: str, role: str) -> Mailbox:
        if not path or role == "trash":
            raise MailError(Kind.INVALID, path)
        return BOXES.mailboxes[2]

    async def rename_path(self, _: object, old: str, new: str) -> Mailbox:
        raise MailError(Kind.NOT_FOUND, f"{old} {new}")

    async def subscribe(self, _: object, path: str, *, on: bool) -> None:
        pass

    async def destroy(self, *_: object, remove_emails: bool) -> None:
        raise MailError(Kind.HAS_CHILDREN)

    async def view(self, _: object, mailbox_id: int) -> View:
        return View(
            mailbox_id,
            77,
            10,
            5,
            array("I", UIDS),
            array("Q", [1, 2, 3]),
            array("Q", [3, 4, 5]),
            array("I", [0, 1, 16 | 256]),
            [("work",)],
        )

    async def delta(self, *_: object) -> ViewDelta:
        return ViewDelta(5, 10, (), ())

    async def vanished(self, *_: object) -> tuple[int, ...] | None:
        return (1, 2)

    async def columns(
        self, _: object, __: int, uids: array[int], fields: tuple[str, ...]
    ) -> list[tuple[Any, ...]]:
        return [(uid, *(VALUES[field] for field in fields)) for uid in uids]

    async def read_blob(self, _: BlobRef, start: int, end: int) -> bytes:
        return RAW[start:end]

    async def stream_blob(self, _: BlobRef, start: int, end: int) -> Any:
        yield RAW[start:end]

    async def store_flags(self, _: object, args: Any) -> StoreResult:
        return StoreResult(5, (), (), tuple(args.uids) if args.unchanged_since else ())

    async def copy(self, _: object, __: int, uids: Any, ___: int) -> CopyResult:
        return CopyResult(77, tuple(uids), tuple(range(1, len(uids) + 1)), 5)

    move = copy

    async def expunge(self, *_: object) -> tuple[tuple[int, ...], int]:
        return (), 5

    async def imap_substring(
        self, _: object, ids: Any, __: str, needle: str
    ) -> set[int]:
        return set(ids[: len(needle)])

    async def open_append(self, *_: object) -> Services:
        return self

    async def write(self, _: bytes) -> None:
        pass

    def abort(self) -> None:
        pass

    async def finish(self) -> Any:
        added = Added(1, 1, 5, ((1, 77, 10),))
        return types.SimpleNamespace(added=added)

    async def check_password(self, *_: object, **__: object) -> Principal:
        return Principal(1, "a@b", 1, 1)

    def still_valid(self, _: object) -> bool:
        return True

    def subscribe_to(self, *_: object) -> Any:
        return lambda: None

    def now(self) -> float:
        return 1_700_000_100.0

    def monotonic(self) -> float:
        return 1.0


class Changes:
    """Never anything new."""

    def subscribe(self, *_: object) -> Any:
        return lambda: None


class Transport:
    """Collects what is written."""

    peer = "127.0.0.1"
    tls = True
    can_start_tls = True

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def start_tls(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def _server() -> Server:
    everything: Any = Services()
    changes: Any = Changes()
    return Server(
        ImapServices(
            mailboxes=everything,
            messages=everything,
            search=everything,
            receive=everything,
            authenticator=everything,
            changes=changes,
            clock=everything,
            settings=ImapSettings(max_message_size=5000),
        )
    )


async def _talk(blocks: list[bytes]) -> bytes:
    transport = Transport()
    session = _server().connect(transport)
    task = asyncio.ensure_future(session.run())
    for block in blocks:
        await _settled(session, task)
        session.channel.received(block)
    await _settled(session, task)
    session.channel.connection_lost()
    async with asyncio.timeout(4):
        await task
    return bytes(transport.written)


async def _settled(session: Session, task: asyncio.Future[None]) -> None:
    while not (session.channel.waiting or task.done()):  # noqa: ASYNC110 - one loop
        await asyncio.sleep(0)


def fuzz_one(data: bytes) -> None:
    """Talk to a session, logged in or not."""
    configure("error")
    for prefix in (b"", b"! LOGIN a b\r\n! SELECT INBOX\r\n"):
        whole = asyncio.run(_talk([prefix, data]))
        assert b"SERVERBUG" not in whole, whole[-400:]
        assert whole.endswith(b"\r\n"), whole[-200:]
        half = len(data) // 2
        parts = asyncio.run(_talk([prefix, data[:half], data[half:]]))
        assert parts == whole, (parts[-300:], whole[-300:])


SEEDS = [
    b"a NOOP\r\nb CAPABILITY\r\nc LOGOUT\r\n",
    b'a LOGIN {1}\r\nx "y"\r\nb AUTHENTICATE PLAIN AGEAYg==\r\n',
    b"a AUTHENTICATE LOGIN\r\nYQ==\r\nYg==\r\n",
    b"a STARTTLS\r\nb NOOP\r\n",
    b'a LIST "" *\r\nb LIST (SUBSCRIBED RECURSIVEMATCH) "" (% a/*) RETURN (STATUS '
    b'(MESSAGES SIZE) CHILDREN)\r\nc LSUB "" "a%"\r\nd LIST "" ""\r\n',
    b"a STATUS a (MESSAGES UIDNEXT RECENT MAILBOXID APPENDLIMIT HIGHESTMODSEQ)\r\n"
    b"b CREATE x/y (USE (\\Junk))\r\nc RENAME a b\r\nd DELETE a\r\ne SUBSCRIBE a\r\n",
    b"a SELECT a (CONDSTORE)\r\nb ENABLE QRESYNC IMAP4rev2\r\n"
    b"c SELECT INBOX (QRESYNC (77 2 1:9 (1,2 3,4)))\r\nd CLOSE\r\n",
    b"a FETCH 1:* (UID FLAGS ENVELOPE BODYSTRUCTURE BODY INTERNALDATE RFC822.SIZE "
    b"EMAILID THREADID SAVEDATE PREVIEW (LAZY) MODSEQ)\r\nb FETCH * FULL\r\n",
    b"a FETCH 1,2:3 (BODY[] BODY.PEEK[HEADER.FIELDS (From)]<0.10> BODY[2.HEADER] "
    b"BODY[1.MIME] BODY[TEXT] RFC822.HEADER BINARY[3] BINARY.SIZE[3])\r\n",
    b"a UID FETCH 3:9 (FLAGS) (CHANGEDSINCE 3 VANISHED)\r\nb FETCH $ FLAGS\r\n",
    b"a SEARCH RETURN (MIN MAX ALL COUNT SAVE) CHARSET UTF-8 OR NOT SEEN (KEYWORD work"
    b" SINCE 1-Jan-2020) UID 1:*\r\nb SEARCH HEADER Subject {1}\r\nx LARGER 5\r\n",
    b"a UID SEARCH SENTON 1-Jan-2024 TEXT hello YOUNGER 50 MODSEQ 3 EMAILID e1\r\n",
    b"a STORE 1:* (UNCHANGEDSINCE 3) +FLAGS.SILENT (\\Deleted \\Seen x)\r\n"
    b"b UID STORE 3 FLAGS \\Seen\r\nc EXPUNGE\r\nd UID EXPUNGE 1:9\r\n",
    b"a COPY 1:2 a\r\nb UID MOVE 3 a/&AOk-\r\nc CHECK\r\nd UNSELECT\r\n",
    b'a APPEND a (\\Seen) "01-Jan-2024 00:00:00 +0000" {5}\r\nhello\r\nb NOOP\r\n',
    b"a APPEND {1+}\r\na {3+}\r\nx\0y\r\nb APPEND nowhere ~{3+}\r\nabc\r\nc NOOP\r\n",
    b"a IDLE\r\nDONE\r\nb IDLE\r\nx\r\n",
    b'a NAMESPACE\r\nb ID ("a" NIL)\r\nc GETQUOTA ""\r\nd GETQUOTAROOT INBOX\r\n',
]
