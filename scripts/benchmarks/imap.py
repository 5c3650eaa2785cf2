"""IMAP: FETCH, SELECT, login, IDLE and memory per idle connection."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmarks import common
from scripts.benchmarks.common import Figure
from tests.lib import daemon
from tests.lib.dovecot import Dovecot

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

USER, PASSWORD = "bob@example.test", "benchmark"
COUNT = 10_000


class Client:
    """The leanest client: pipelined bytes out, counted bytes in."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader, self.writer = reader, writer
        self.tag = 0

    @classmethod
    async def connect(cls, port: int, tls: ssl.SSLContext | None = None) -> Client:
        client = cls(
            *await asyncio.open_connection("127.0.0.1", port, limit=1 << 20, ssl=tls)
        )
        await client.reader.readline()
        return client

    async def login(self) -> None:
        await self.command(f"LOGIN {USER} {PASSWORD}")

    async def command(self, text: str) -> int:
        """Send a command; return the octets of its answer; raise unless OK."""
        self.tag += 1
        tag = b"A%d " % self.tag
        self.writer.write(tag + text.encode() + b"\r\n")
        return await self.answer(tag)

    async def answer(self, tag: bytes) -> int:
        size, tail = 0, b""
        while True:
            chunk = await self.reader.read(1 << 18)
            if not chunk:
                raise ConnectionError("closed by the server")
            size += len(chunk)
            tail = (tail + chunk)[-4096:] if len(chunk) < 4096 else chunk[-4096:]
            last = tail[tail.rfind(b"\n", 0, -1) + 1 :]
            if tail.endswith(b"\r\n") and last.startswith(tag):
                if not last.startswith(tag + b"OK"):
                    raise RuntimeError(last.decode())
                return size

    async def append(self, message: bytes) -> None:
        self.tag += 1
        tag = b"A%d " % self.tag
        self.writer.write(tag + b"APPEND INBOX {%d+}\r\n" % len(message))
        self.writer.write(message + b"\r\n")
        await self.answer(tag)

    def close(self) -> None:
        self.writer.close()


async def fill(port: int, count: int) -> None:
    """Append messages over a few connections."""
    source = common.messages(count)

    async def one() -> None:
        client = await Client.connect(port)
        await client.login()
        for message in source:
            await client.append(message)
        client.close()

    await asyncio.gather(*(one() for _ in range(8)))


async def timed(work: Callable[[], Awaitable[object]], rounds: int) -> float:
    """Return the median seconds of ``work``."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        await work()
        times.append(time.perf_counter() - started)
    return common.median(times)


async def logins(port: int, connections: int, seconds: float) -> float:
    """Return login + select + logout per second."""
    done, until = 0, time.monotonic() + seconds

    async def one() -> None:
        nonlocal done
        while time.monotonic() < until:
            client = await Client.connect(port)
            await client.login()
            await client.command("SELECT INBOX")
            await client.command("LOGOUT")
            client.close()
            done += 1

    started = time.monotonic()
    await asyncio.gather(*(one() for _ in range(connections)))
    return done / (time.monotonic() - started)


async def idle_latency(port: int, rounds: int) -> float:
    """Return the median seconds from APPEND's OK to EXISTS at an idle session."""
    watcher, writer = await Client.connect(port), await Client.connect(port)
    for client in (watcher, writer):
        await client.login()
    await watcher.command("SELECT INBOX")
    watcher.writer.write(b"I IDLE\r\n")
    await watcher.reader.readline()
    times = []
    for message in common.messages(rounds, seed=9):
        seen = asyncio.create_task(_exists(watcher.reader))
        await writer.append(message)
        started = time.perf_counter()
        arrived = await asyncio.wait_for(seen, 60)
        times.append(max(0.0, arrived - started))
        await asyncio.sleep(0.05)
    for client in (watcher, writer):
        client.close()
    return common.median(times)


async def _exists(reader: asyncio.StreamReader) -> float:
    while b" EXISTS" not in await reader.readline():
        pass
    return time.perf_counter()


async def figures(name: str, port: int, *, quick: bool) -> AsyncIterator[Figure]:
    """Yield the figures of one server."""
    count = COUNT // 10 if quick else COUNT
    started = time.monotonic()
    await fill(port, count)
    yield Figure(
        "APPEND, 8 connections", name, count / (time.monotonic() - started), "/s"
    )
    client = await Client.connect(port)
    await client.login()
    first = await timed(lambda: client.command("SELECT INBOX"), 1)
    yield Figure(f"SELECT of {count}, first", name, first * 1000, "ms")
    again = await timed(lambda: client.command("SELECT INBOX"), 7)
    yield Figure(f"SELECT of {count}, again", name, again * 1000, "ms")
    for label, items in (
        ("FLAGS", "(UID FLAGS)"),
        ("ENVELOPE", "(UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE)"),
        ("BODYSTRUCTURE", "(UID BODYSTRUCTURE)"),
        ("4 header fields", "(UID BODY.PEEK[HEADER.FIELDS (FROM TO SUBJECT DATE)])"),
        ("whole messages", "(UID BODY.PEEK[])"),
    ):
        seconds = await timed(lambda i=items: client.command(f"FETCH 1:* {i}"), 3)
        yield Figure(f"FETCH {label}", name, count / seconds / 1000, "k messages/s")
    for label, text in (
        ("STORE 1:* +FLAGS", "STORE 1:* +FLAGS.SILENT ($Test)"),
        ("SEARCH TEXT", 'SEARCH TEXT "nowhereinhere"'),
        ("SEARCH UNSEEN", "SEARCH UNSEEN"),
    ):
        seconds = await timed(lambda t=text: client.command(t), 3)
        yield Figure(label, name, seconds * 1000, "ms")
    client.close()
    for connections in (1, 20):
        rate = await logins(port, connections, 1 if quick else 4)
        label = f"login+select+logout, {connections} connections"
        yield Figure(label, name, rate, "/s")
    latency = await idle_latency(port, 5 if quick else 15)
    yield Figure("IDLE notification", name, latency * 1000, "ms")


def measure(*, quick: bool) -> Iterator[Figure]:
    """Yield the figures of both servers."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="bench-") as name:
        ours = daemon.make(Path(name) / "ours", f"{USER}:{PASSWORD}")
        with daemon.running(ours):
            yield from collect("mailserverd", ours.port(143), quick=quick)
        peer = Dovecot(Path(name) / "dovecot", password=PASSWORD)
        try:
            peer.start()
            yield from collect("Dovecot", peer.imap, quick=quick)
        finally:
            peer.stop()


def collect(name: str, port: int, *, quick: bool) -> list[Figure]:
    """Run the measurements of one server."""

    async def run() -> list[Figure]:
        return [figure async for figure in figures(name, port, quick=quick)]

    return asyncio.run(run())
