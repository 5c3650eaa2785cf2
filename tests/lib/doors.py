"""One large message through every door, streamed, and how much memory that takes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import pathlib
import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.lib.daemon import Daemon

ADDRESS, PASSWORD = "big@example.test", "loadgen"
LINE = b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVph" * 2  # base64
CHUNK = 1 << 17
USING = ["urn:ietf:params:jmap:core", "urn:ietf:params:jmap:mail"]


def message(size: int, number: int = 0) -> Iterator[bytes]:
    """Yield a message with an attachment, ``size`` octets in all, in pieces."""
    head = (
        f"From: Big <{ADDRESS}>\r\nTo: {ADDRESS}\r\nSubject: large {number}\r\n"
        f"Date: Mon, 2 Nov 2026 10:00:00 +0000\r\nMessage-ID: <{number}.{size}@big>\r\n"
        "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=xyz\r\n\r\n"
        "--xyz\r\nContent-Type: text/plain\r\n\r\nsee attached\r\n"
        "--xyz\r\nContent-Type: application/octet-stream; name=big.bin\r\n"
        "Content-Transfer-Encoding: base64\r\n"
        "Content-Disposition: attachment; filename=big.bin\r\n\r\n"
    ).encode()
    tail = b"\r\n--xyz--\r\n"
    yield head
    left = size - len(head) - len(tail)
    block = (LINE + b"\r\n") * (CHUNK // (len(LINE) + 2))
    while left > len(block):
        yield block
        left -= len(block)
    body = block[:left]
    if body.endswith(b"\r"):
        body = body[:-1] + b"="
    yield body + tail


def digest(size: int, number: int = 0) -> str:
    """Return the SHA-256 of a message."""
    found = hashlib.sha256()
    for piece in message(size, number):
        found.update(piece)
    return found.hexdigest()


class Peak:
    """The most memory that a process had resident since it was asked to forget."""

    def __init__(self, pid: int) -> None:
        self._proc = pathlib.Path(f"/proc/{pid}")
        self.before = 0.0

    def _read(self, name: str) -> float:
        text = (self._proc / "status").read_text()
        line = next(one for one in text.splitlines() if one.startswith(name))
        return int(line.split()[1]) / 1024

    def reset(self) -> None:
        """Begin anew."""
        (self._proc / "clear_refs").write_text("5")
        self.before = self._read("VmRSS")

    def rise(self) -> float:
        """Return by how many MiB the peak lies above what there was."""
        return self._read("VmHWM") - self.before


class Wire:
    """A connection whose answers are lines."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader, self.writer = reader, writer

    async def reply(self) -> bytes:
        """Return the last line of an SMTP reply."""
        while (line := await self.reader.readline())[3:4] == b"-":
            pass
        return line

    async def smtp(self, command: str, code: bytes = b"250") -> None:
        """Send an SMTP command and expect a reply."""
        self.writer.write(command.encode() + b"\r\n")
        line = await self.reply()
        assert line.startswith(code), line

    async def until(self, tag: bytes) -> list[bytes]:
        """Return the lines up to a tagged one, which has to be OK."""
        lines = [await self.reader.readline()]
        while not lines[-1].startswith(tag) and lines[-1]:
            lines.append(await self.reader.readline())
        assert lines[-1].startswith(tag + b" OK"), lines[-1]
        return lines

    async def stream(self, pieces: Iterator[bytes]) -> None:
        """Send a message as fast as it is taken."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()


@contextlib.asynccontextmanager
async def connected(
    port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Wire]:
    """Connect; the connection is closed at the end."""
    pair = await asyncio.open_connection("127.0.0.1", port, ssl=tls, limit=1 << 20)
    wire = Wire(*pair)
    try:
        yield wire
    finally:
        wire.writer.transport.abort()
        with contextlib.suppress(OSError):
            await wire.writer.wait_closed()


async def deliver(ours: Daemon, size: int, port: int, *, bdat: bool = False) -> None:
    """Send by SMTP (25) or LMTP (24), by DATA or BDAT."""
    async with connected(ours.port(port)) as wire:
        await wire.reply()
        await wire.smtp("LHLO big.test" if port == 24 else "EHLO big.test")
        await _mail(wire, "sender@outside.test", size, bdat=bdat)


async def submit(ours: Daemon, size: int) -> None:
    """Send by submission over TLS."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    async with connected(ours.port(465), tls) as wire:
        await wire.reply()
        await wire.smtp("EHLO big.test")
        secret = base64.b64encode(f"\0{ADDRESS}\0{PASSWORD}".encode()).decode()
        await wire.smtp(f"AUTH PLAIN {secret}", b"235")
        await _mail(wire, ADDRESS, size)


async def _mail(wire: Wire, sender: str, size: int, *, bdat: bool = False) -> None:
    await wire.smtp(f"MAIL FROM:<{sender}> SIZE={size}")
    await wire.smtp(f"RCPT TO:<{ADDRESS}>")
    if bdat:
        for piece in message(size):
            wire.writer.write(b"BDAT %d\r\n" % len(piece) + piece)
            line = await wire.reply()
            assert line.startswith(b"250"), line
        await wire.smtp("BDAT 0 LAST")
        return
    await wire.smtp("DATA", b"354")
    await wire.stream(message(size))
    await wire.smtp(".")


@contextlib.asynccontextmanager
async def imap(ours: Daemon) -> AsyncIterator[Wire]:
    """Log in over IMAP."""
    async with connected(ours.port(143)) as wire:
        await wire.reader.readline()
        wire.writer.write(f'l LOGIN {ADDRESS} "{PASSWORD}"\r\n'.encode())
        await wire.until(b"l")
        yield wire


async def append(ours: Daemon, size: int, count: int = 1) -> None:
    """APPEND messages one after the other."""
    async with imap(ours) as wire:
        for number in range(count):
            wire.writer.write(b"a APPEND Archive {%d+}\r\n" % size)
            await wire.stream(message(size, number))
            wire.writer.write(b"\r\n")
            await wire.until(b"a")


async def fetch(ours: Daemon, size: int) -> str:
    """Return the SHA-256 of the last message of Archive, by FETCH."""
    async with imap(ours) as wire:
        wire.writer.write(b"e EXAMINE Archive\r\n")
        await wire.until(b"e")
        wire.writer.write(b"f FETCH * BODY.PEEK[]\r\n")
        line = await wire.reader.readline()
        assert int(line[line.rindex(b"{") + 1 : line.rindex(b"}")]) == size, line
        found = await _digest(wire.reader, size)
        await wire.until(b"f")
        return found


async def _digest(reader: asyncio.StreamReader, size: int) -> str:
    found, left = hashlib.sha256(), size
    while left:
        piece = await reader.read(min(left, CHUNK))
        assert piece
        found.update(piece)
        left -= len(piece)
    return found.hexdigest()


class Http:
    """JMAP over one connection."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        secret = base64.b64encode(f"{ADDRESS}:{PASSWORD}".encode()).decode()
        self.head = f"Host: localhost\r\nAuthorization: Basic {secret}\r\n"
        self.account = ""

    async def send(
        self, line: str, size: int, pieces: Iterator[bytes], kind: str
    ) -> int:
        """Send a request; returns how many octets its answer has."""
        head = f"Content-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
        self.wire.writer.write(f"{line} HTTP/1.1\r\n{self.head}{head}".encode())
        await self.wire.stream(pieces)
        answer = (await self.wire.reader.readuntil(b"\r\n\r\n")).lower()
        assert answer.startswith(b"http/1.1 20"), answer
        return int(answer.split(b"content-length:")[1].split(b"\r\n")[0])

    async def json(self, line: str, body: bytes = b"") -> Any:
        """Return the JSON that a request is answered with."""
        size = await self.send(line, len(body), iter([body]), "application/json")
        return json.loads(await self.wire.reader.readexactly(size))

    async def call(self, name: str, **args: Any) -> Any:
        """Make one method call."""
        calls = [[name, {"accountId": self.account} | args, "0"]]
        body = json.dumps({"using": USING, "methodCalls": calls}).encode()
        said, result, _ = (await self.json("POST /jmap/api", body))["methodResponses"][
            0
        ]
        assert said == name, result
        return result


@contextlib.asynccontextmanager
async def jmap(ours: Daemon) -> AsyncIterator[Http]:
    """Connect over HTTP."""
    async with connected(ours.port(80)) as wire:
        http = Http(wire)
        session = await http.json("GET /jmap/session")
        http.account = session["primaryAccounts"][USING[1]]
        yield http


async def upload_and_import(ours: Daemon, size: int) -> None:
    """Upload a message and import it."""
    async with jmap(ours) as http:
        where = f"POST /jmap/upload/{http.account}"
        octets = await http.send(where, size, message(size), "message/rfc822")
        blob = json.loads(await http.wire.reader.readexactly(octets))["blobId"]
        boxes = await http.call("Mailbox/query", filter={"role": "archive"})
        email = {"blobId": blob, "mailboxIds": {boxes["ids"][0]: True}}
        done = await http.call("Email/import", emails={"e": email})
        assert done["created"], done


async def download(ours: Daemon, size: int) -> str:
    """Return the SHA-256 of the last message of Archive, by JMAP download."""
    async with jmap(ours) as http:
        boxes = await http.call("Mailbox/query", filter={"role": "archive"})
        where = {"inMailbox": boxes["ids"][0]}
        found = await http.call(
            "Email/query",
            filter=where,
            limit=1,
            sort=[{"property": "size", "isAscending": False}],
        )
        got = await http.call("Email/get", ids=found["ids"], properties=["blobId"])
        path = f"/jmap/download/{http.account}/{got['list'][0]['blobId']}/x.eml"
        assert await http.send(f"GET {path}", 0, iter(()), "text/plain") == size
        return await _digest(http.wire.reader, size)


DOORS: dict[str, Callable[[Daemon, int], Awaitable[Any]]] = {
    "SMTP DATA": lambda ours, size: deliver(ours, size, 25),
    "SMTP BDAT": lambda ours, size: deliver(ours, size, 25, bdat=True),
    "LMTP": lambda ours, size: deliver(ours, size, 24),
    "submission": submit,
    "APPEND": append,
    "JMAP upload and import": upload_and_import,
    "IMAP FETCH": fetch,
    "JMAP download": download,
}


def through(ours: Daemon, door: str, size: int) -> float:
    """Bring a message through a door; returns by how many MiB the peak rose."""
    peak = Peak(ours.pid)
    peak.reset()
    asyncio.run(DOORS[door](ours, size))
    return peak.rise()
