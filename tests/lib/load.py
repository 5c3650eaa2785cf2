"""Load for crash tests: raw clients that note what was asked and what was answered."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import itertools
import json
import random
import re
from typing import TYPE_CHECKING, Any

from tests.lib.clients import CORE, MAIL, unverified
from tests.lib.ledger import GONE, Ledger, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tests.lib.daemon import Daemon
    from tests.lib.ledger import Key

    Job = Callable[[], Coroutine[Any, Any, None]]

LIMIT = 1 << 26
SIZES, WEIGHTS = (50, 800, 5000, 60_000, 300_000), (4, 8, 6, 2, 1)
OUTSIDE = "friend@elsewhere.test"
FLAGS = ("\\Flagged", "\\Answered", "\\Seen", "$label1", "work")
KEYWORDS = {"\\Flagged": "$flagged", "\\Answered": "$answered", "\\Seen": "$seen"}
FOLDERS = ("INBOX", "Archive", "Trash")
GONE_ERRORS = (OSError, EOFError, asyncio.IncompleteReadError)
_APPENDED = re.compile(rb"\[APPENDUID \d+ (\d+)\]")
_COPIED = re.compile(rb"\[COPYUID \d+ \d+ (\d+)\]")


class Refused(Exception):
    """A temporary error: nothing was promised, and the client may come again."""


class Load:
    """Clients of every kind against one daemon until it dies.

    With ``lasting`` clients whose process died, or that were refused for a while, come
    again until ``over`` is set.
    """

    def __init__(
        self, ours: Daemon, accounts: list[str], password: str, ledger: Ledger
    ) -> None:
        self.ours, self.accounts, self.password = ours, accounts, password
        self.ledger = ledger
        self.lasting = False
        self.over = asyncio.Event()
        self.rng = random.Random()
        self._tokens: itertools.count[int] = itertools.count()
        self._round = 0

    async def run(self, seed: int) -> None:
        """Run all clients until the server is gone."""
        self._round += 1
        self.rng.seed(seed)
        some = self.rng.sample(self.accounts, 8)
        self.over = asyncio.Event()
        jobs: list[Job] = [self.smtp] * 4
        ways = (self.append, self.email_set, self.change, self.submit)
        for number, account in enumerate(some):
            jobs.append(functools.partial(ways[number // 2], account))
        await asyncio.gather(*map(self._until_dead, jobs))

    async def _until_dead(self, job: Job) -> None:
        forgiven = (*GONE_ERRORS, Refused) if self.lasting else GONE_ERRORS
        while True:
            with contextlib.suppress(*forgiven):
                await job()
            if not self.lasting or self.over.is_set():
                return
            await asyncio.sleep(0.02)  # as a client waits before it comes again

    def message(self, sender: str = "sender@outside.test") -> tuple[str, bytes, bytes]:
        """Return (token, head, body): the body is unique, with dots and 8-bit."""
        token = f"r{self._round}t{next(self._tokens)}e"
        (size,) = self.rng.choices(SIZES, WEIGHTS)
        filler = self.rng.randbytes(size // 2).hex()
        lines = [filler[i : i + 70] for i in range(0, len(filler), 70)]
        body = "\r\n".join((f"begin {token}", ".", "..dots é", *lines, "end")) + "\r\n"
        head = (
            f"From: {sender}\r\nTo: many@example.test\r\n"
            f"Subject: {token}\r\n"
            f"Message-ID: <{token}@outside.test>\r\nX-Token: {token}\r\n"
            "Date: Mon, 2 Nov 2026 10:00:00 +0000\r\nMIME-Version: 1.0\r\n"
            "Content-Type: text/plain; charset=utf-8\r\n"
            "Content-Transfer-Encoding: 8bit\r\n\r\n"
        )
        self.ledger.body(token, body.encode())
        return token, head.encode(), body.encode()

    # --- mail in and out ----------------------------------------------------------

    async def smtp(self) -> None:
        """Send messages to one to four recipients each."""
        async with _connected(self.ours.port(25)) as wire:
            await wire.greeted()
            while True:
                to = self.rng.sample(self.accounts, self.rng.randint(1, 4))
                token, head, body = self.message()
                keys = [(token, address) for address in to]
                self.ledger.ask(keys, State())
                await wire.mail("sender@outside.test", to, head + body)
                self.ledger.answered(keys, "smtp")

    async def submit(self, account: str) -> None:
        """Submit to another server, and to none to two of ours."""
        async with _connected(self.ours.port(465), ssl=unverified()) as wire:
            await wire.greeted()
            secret = base64.b64encode(f"\0{account}\0{self.password}".encode())
            wire.write(b"AUTH PLAIN " + secret + b"\r\n")
            answer = await wire.reply()
            _temporary(answer)
            assert answer[0] == 235, answer
            while True:
                here = self.rng.sample(self.accounts, self.rng.randint(0, 2))
                token, head, body = self.message(account)
                keys = [(token, address) for address in here]
                self.ledger.ask(keys, State())
                self.ledger.asked.add(token)
                await wire.mail(account, [OUTSIDE, *here], head + body)
                self.ledger.answered(keys, "submit")
                self.ledger.promised.add(token)

    async def append(self, account: str) -> None:
        """APPEND to the account's INBOX."""
        async with self._imap(account) as wire:
            while True:
                await self._append(wire, account)

    async def _append(self, wire: Wire, account: str) -> None:
        token, head, body = self.message()
        key, data = (token, account), head + body
        self.ledger.ask([key], State(flags=frozenset({"\\Seen"})))
        literal = b"{%d+}\r\n" % len(data) + data
        done = await wire.command(b"APPEND INBOX (\\Seen) " + literal)
        uid = _APPENDED.search(done)
        assert uid is not None, done
        self.ledger.answered([key], "append")
        self.ledger.uids[key] = int(uid[1])

    # --- changes over IMAP ----------------------------------------------------------

    async def change(self, account: str) -> None:
        """APPEND, and STORE, MOVE and EXPUNGE what was appended, now or long ago."""
        async with self._imap(account) as wire:
            while True:
                await self._append(wire, account)
                for _ in range(3):
                    await self._change(wire, account)

    async def _change(self, wire: Wire, account: str) -> None:
        ledger = self.ledger
        mine = [
            (key, state)
            for key in ledger.uids
            if key[1] == account and key not in ledger.doubts
            if (state := ledger.states[key])
        ]
        if not mine:
            return
        key, state = self.rng.choice(mine[-50:] if self.rng.random() < 0.8 else mine)
        await wire.command(f"SELECT {state.mailbox}".encode())
        way = self.rng.choices((self._store, self._move, self._expunge), (5, 3, 1))[0]
        await way(wire, key, state)

    async def _store(self, wire: Wire, key: Key, state: State) -> None:
        flag = self.rng.choice(FLAGS)
        sign = "-" if flag in state.flags else "+"
        self.ledger.ask([key], State(state.mailbox, state.flags ^ {flag}))
        line = f"UID STORE {self.ledger.uids[key]} {sign}FLAGS ({flag})"
        await wire.command(line.encode())
        self.ledger.answered([key], "store")

    async def _move(self, wire: Wire, key: Key, state: State) -> None:
        target = self.rng.choice([name for name in FOLDERS if name != state.mailbox])
        self.ledger.ask([key], State(target, state.flags))
        uid = self.ledger.uids.pop(key)  # not known until it is answered
        done = await wire.command(f"UID MOVE {uid} {target}".encode())
        copied = _COPIED.search(done)
        assert copied is not None, (key, uid, target, done)
        self.ledger.answered([key], "move")
        self.ledger.uids[key] = int(copied[1])

    async def _expunge(self, wire: Wire, key: Key, state: State) -> None:
        uid = self.ledger.uids.pop(key)
        self.ledger.ask([key], State(state.mailbox, state.flags | {"\\Deleted"}))
        await wire.command(f"UID STORE {uid} +FLAGS.SILENT (\\Deleted)".encode())
        self.ledger.answered([key], "store")
        self.ledger.ask([key], GONE)
        await wire.command(f"UID EXPUNGE {uid}".encode())
        self.ledger.answered([key], "expunge")

    @contextlib.asynccontextmanager
    async def _imap(self, account: str) -> AsyncIterator[Wire]:
        async with _connected(self.ours.port(143)) as wire:
            await wire.line()
            await wire.command(f'LOGIN {account} "{self.password}"'.encode())
            yield wire

    # --- JMAP -----------------------------------------------------------------------

    async def email_set(self, account: str) -> None:
        """Create, flag and destroy messages by Email/set."""
        async with _connected(self.ours.port(80)) as wire:
            http = _Http(wire, account, self.password)
            session = await http.ask("/jmap/session", None)
            http.account = session["primaryAccounts"][MAIL]
            found = await http.call("Mailbox/query", filter={"role": "inbox"})
            while True:
                token, email = await self._create(http, account, found["ids"][0])
                if self.rng.random() < 0.5:
                    await self._flag(http, (token, account), email)
                if self.rng.random() < 0.2:
                    await self._destroy(http, (token, account), email)

    async def _create(self, http: _Http, account: str, inbox: str) -> tuple[str, str]:
        token, _, _ = self.message()
        text = f"draft {token}\n"
        self.ledger.body(token, text.replace("\n", "\r\n").encode())
        self.ledger.ask([(token, account)], State())
        email = {
            "mailboxIds": {inbox: True},
            "subject": token,
            "header:X-Token": f" {token}",
            "bodyStructure": {"partId": "1", "type": "text/plain"},
            "bodyValues": {"1": {"value": text}},
        }
        done = await http.call("Email/set", create={"e": email})
        assert done["created"], done
        self.ledger.answered([(token, account)], "create")
        return token, done["created"]["e"]["id"]

    async def _flag(self, http: _Http, key: Key, email: str) -> None:
        flag = self.rng.choice(list(KEYWORDS))
        self.ledger.ask([key], State(flags=frozenset({flag})))
        patch = {f"keywords/{KEYWORDS[flag]}": True}
        done = await http.call("Email/set", update={email: patch})
        assert email in done["updated"], done
        self.ledger.answered([key], "update")

    async def _destroy(self, http: _Http, key: Key, email: str) -> None:
        self.ledger.ask([key], GONE)
        done = await http.call("Email/set", destroy=[email])
        assert done["destroyed"] == [email], done
        self.ledger.answered([key], "destroy")


class _Http:
    """JMAP requests on one connection."""

    def __init__(self, wire: Wire, user: str, password: str) -> None:
        self._wire = wire
        self._secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.account = ""

    async def call(self, name: str, **arguments: Any) -> Any:
        """Make one method call; return what it returned."""
        call = [name, {"accountId": self.account, **arguments}, "0"]
        body = {"using": [CORE, MAIL], "methodCalls": [call]}
        answer = await self.ask("/jmap/api", body)
        said, result, _ = answer["methodResponses"][0]
        if b"serverUnavailable" in json.dumps(result).encode():
            raise Refused(result)
        assert said == name, result
        return result

    async def ask(self, path: str, body: Any) -> Any:
        """POST, or GET without a body; return what was answered."""
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{'POST' if data else 'GET'} {path} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Basic {self._secret}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        self._wire.write(head.encode() + data)
        answer = (await self._wire.reader.readuntil(b"\r\n\r\n")).lower()
        if answer.startswith(b"http/1.1 503"):
            raise Refused(answer)
        assert answer.startswith(b"http/1.1 200"), answer
        length = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
        return json.loads(await self._wire.reader.readexactly(length))


# --- wires --------------------------------------------------------------------------


class Wire:
    """A connection that speaks lines."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader, self.write = reader, writer.write

    async def line(self) -> bytes:
        """Return a line; EOFError when the daemon is gone."""
        line = await self.reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    # SMTP

    async def greeted(self) -> None:
        """Take the greeting, greet."""
        await self.reply()
        self.write(b"EHLO load.outside.test\r\n")
        await self.reply()

    async def reply(self) -> tuple[int, bytes]:
        """Return code and last line of a reply."""
        while (line := await self.line())[3:4] != b" ":
            pass
        return int(line[:3]), line

    async def mail(self, sender: str, to: list[str], message: bytes) -> None:
        """Send a message; return when it was accepted for all."""
        lines = [f"MAIL FROM:<{sender}> BODY=8BITMIME"]
        lines += [f"RCPT TO:<{address}>" for address in to]
        self.write("".join(f"{line}\r\n" for line in [*lines, "DATA"]).encode())
        accepted = [await self.reply() for _ in range(len(to) + 1)]
        code, text = await self.reply()
        for refused in (*accepted, (code, text)):
            _temporary(refused)
        assert all(code == 250 for code, _ in accepted), accepted
        assert code == 354, text
        self.write(message.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        code, text = await self.reply()
        _temporary((code, text))
        assert code == 250, text

    # IMAP

    async def command(self, command: bytes) -> bytes:
        """Run a command; return all that was answered."""
        self.write(b"c " + command + b"\r\n")
        lines = [await self.line()]
        while not lines[-1].startswith(b"c "):
            lines.append(await self.line())
        if b"[UNAVAILABLE]" in lines[-1]:
            raise Refused(lines[-1])
        assert lines[-1].startswith(b"c OK"), (command[:100], lines[-1])
        return b"".join(lines)


@contextlib.asynccontextmanager
async def _connected(port: int, **how: Any) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, limit=LIMIT, **how
    )
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(*GONE_ERRORS):
            await writer.wait_closed()


def _temporary(reply: tuple[int, bytes]) -> None:
    if 400 <= reply[0] < 500:
        raise Refused(reply)
