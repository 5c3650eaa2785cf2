"""Load for crash tests: raw clients that note what was acknowledged, and only that."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import itertools
import json
import random
from typing import Any

LIMIT = 1 << 26


@dataclasses.dataclass
class Ledger:
    """What was sent, and which of it was acknowledged, per (token, account)."""

    bodies: dict[str, str] = dataclasses.field(default_factory=dict)
    promised: set[tuple[str, str]] = dataclasses.field(default_factory=set)
    attempted: set[tuple[str, str]] = dataclasses.field(default_factory=set)

    def attempt(self, token: str, body: bytes, accounts: list[str]) -> None:
        self.bodies[token] = hashlib.sha256(body).hexdigest()
        self.attempted |= {(token, account) for account in accounts}

    def promise(self, token: str, accounts: list[str]) -> None:
        self.promised |= {(token, account) for account in accounts}


class Load:
    """SMTP, APPEND and Email/set clients against one daemon until it dies."""

    def __init__(
        self, ports: tuple[int, int, int], accounts: list[str], password: str, seed: int
    ) -> None:
        self.smtp_port, self.imap_port, self.http_port = ports
        self.accounts, self.password = accounts, password
        self.rng = random.Random(seed)
        self.ledger = Ledger()
        self._tokens = (f"t{seed}x{n}" for n in itertools.count())

    def message(self) -> tuple[str, bytes, bytes]:
        """Return (token, head, body): the body is unique, with dots and 8-bit."""
        token = next(self._tokens)
        size = self.rng.choice((50, 800, 5000, 60_000, 300_000))
        filler = self.rng.randbytes(size // 2).hex()
        lines = [filler[i : i + 70] for i in range(0, len(filler), 70)]
        body = "\r\n".join((f"begin {token}", ".", "..dots é", *lines, "end")) + "\r\n"
        head = (
            f"From: sender@outside.test\r\nTo: many@example.test\r\n"
            f"Subject: {token}\r\n"
            f"Message-ID: <{token}@outside.test>\r\nX-Token: {token}\r\n"
            "Date: Mon, 2 Nov 2026 10:00:00 +0000\r\nMIME-Version: 1.0\r\n"
            "Content-Type: text/plain; charset=utf-8\r\n"
            "Content-Transfer-Encoding: 8bit\r\n\r\n"
        )
        return token, head.encode(), body.encode()

    async def run(self) -> None:
        """Run all clients until the server is gone."""
        jobs = [self.smtp() for _ in range(6)]
        jobs += [self.append(a) for a in self.rng.sample(self.accounts, 3)]
        jobs += [self.email_set(a) for a in self.rng.sample(self.accounts, 2)]
        await asyncio.gather(*(self._until_dead(job) for job in jobs))

    async def _until_dead(self, job: Any) -> None:
        with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError):
            await job

    async def smtp(self) -> None:
        """Send messages to one to four recipients each."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.smtp_port)
        await _reply(reader)
        writer.write(b"EHLO load.outside.test\r\n")
        await _reply(reader)
        while True:
            token, head, body = self.message()
            to = self.rng.sample(self.accounts, self.rng.randint(1, 4))
            self.ledger.attempt(token, body, to)
            lines = ["MAIL FROM:<sender@outside.test> BODY=8BITMIME"]
            lines += [f"RCPT TO:<{address}>" for address in to]
            writer.write("".join(f"{line}\r\n" for line in [*lines, "DATA"]).encode())
            accepted = [await _reply(reader) for _ in range(len(to) + 1)]
            assert all(code == 250 for code, _ in accepted), accepted
            assert (await _reply(reader))[0] == 354
            stuffed = (head + body).replace(b"\r\n.", b"\r\n..")
            writer.write(stuffed + b".\r\n")
            code, text = await _reply(reader)
            assert code == 250, text
            self.ledger.promise(token, to)

    async def append(self, account: str) -> None:
        """APPEND to the account's INBOX."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.imap_port, limit=LIMIT
        )
        await reader.readline()
        writer.write(f'a LOGIN {account} "{self.password}"\r\n'.encode())
        await _tagged(reader, b"a")
        while True:
            token, head, body = self.message()
            self.ledger.attempt(token, body, [account])
            data = head + body
            writer.write(b"b APPEND INBOX (\\Seen) {%d+}\r\n" % len(data))
            writer.write(data + b"\r\n")
            answer = await _tagged(reader, b"b")
            assert answer.startswith(b"b OK"), answer
            self.ledger.promise(token, [account])

    async def email_set(self, account: str) -> None:
        """Create drafts by Email/set: here the subject is what is looked for."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.http_port, limit=LIMIT
        )
        session = await self._http(reader, writer, account, "/jmap/session", None)
        mail = session["primaryAccounts"]["urn:ietf:params:jmap:mail"]
        find = ["Mailbox/query", {"accountId": mail, "filter": {"role": "inbox"}}, "0"]
        answer = await self._jmap(reader, writer, account, find)
        inbox = answer["ids"][0]
        while True:
            token, _, _ = self.message()
            self.ledger.attempt(token, b"", [account])
            email = {
                "mailboxIds": {inbox: True},
                "subject": token,
                "header:X-Token": f" {token}",
                "bodyStructure": {"partId": "1", "type": "text/plain"},
                "bodyValues": {"1": {"value": f"draft {token}"}},
            }
            call = ["Email/set", {"accountId": mail, "create": {"e": email}}, "0"]
            answer = await self._jmap(reader, writer, account, call)
            assert answer["created"], answer
            self.ledger.promise(token, [account])

    async def _jmap(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        account: str,
        call: list[Any],
    ) -> Any:
        using = ["urn:ietf:params:jmap:core", "urn:ietf:params:jmap:mail"]
        body = {"using": using, "methodCalls": [call]}
        answer = await self._http(reader, writer, account, "/jmap/api", body)
        return answer["methodResponses"][0][1]

    async def _http(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        account: str,
        path: str,
        body: Any,
    ) -> Any:
        secret = base64.b64encode(f"{account}:{self.password}".encode()).decode()
        data = b"" if body is None else json.dumps(body).encode()
        writer.write(
            (
                f"{'POST' if data else 'GET'} {path} HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: Basic {secret}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(data)}\r\n\r\n"
            ).encode()
            + data
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        return json.loads(await reader.readexactly(length))


async def _reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    while True:
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        if line[3:4] == b" ":
            return int(line[:3]), line


async def _tagged(reader: asyncio.StreamReader, tag: bytes) -> bytes:
    while True:
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        if line.startswith(tag + b" "):
            return line
