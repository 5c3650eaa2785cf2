"""JMAP: the inbox as a web client renders it, at 1 and 20 connections."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmarks import imap
from scripts.benchmarks.common import Figure
from tests.lib import daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

USER, PASSWORD = imap.USER, imap.PASSWORD
PROPERTIES = (
    "id threadId mailboxIds keywords from to subject receivedAt size preview "
    "hasAttachment"
).split()


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> bytes:
    """Send one request on a kept connection and return the answer's body."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(head.decode())
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return await reader.readexactly(int(line.split(b":")[1]))
    raise RuntimeError("no Content-Length")


def http(
    path: str, body: bytes = b"", *, user: str = USER, password: str = PASSWORD
) -> bytes:
    """Build a request with Basic authentication."""
    secret = base64.b64encode(f"{user}:{password}".encode()).decode()
    method = "POST" if body else "GET"
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic {secret}"
        f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def inbox(port: int) -> tuple[bytes, str]:
    """Return the inbox request and the account id."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    session = json.loads(await post(reader, writer, http("/jmap/session")))
    account = session["primaryAccounts"]["urn:ietf:params:jmap:mail"]
    using = ["urn:ietf:params:jmap:core", "urn:ietf:params:jmap:mail"]
    find = {"accountId": account, "filter": {"role": "inbox"}}
    calls: list[list[object]] = [["Mailbox/query", find, "0"]]
    body = json.dumps({"using": using, "methodCalls": calls}).encode()
    answer = json.loads(await post(reader, writer, http("/jmap/api", body)))
    mailbox = answer["methodResponses"][0][1]["ids"][0]
    query = {
        "accountId": account,
        "filter": {"inMailbox": mailbox},
        "sort": [{"property": "receivedAt", "isAscending": False}],
        "collapseThreads": True,
        "calculateTotal": True,
        "limit": 50,
    }
    back = {"resultOf": "0", "name": "Email/query", "path": "/ids"}
    get = {"accountId": account, "#ids": back, "properties": PROPERTIES}
    calls = [["Email/query", query, "0"], ["Email/get", get, "1"]]
    body = json.dumps({"using": using, "methodCalls": calls}).encode()
    writer.close()
    return http("/jmap/api", body), account


async def render(port: int, connections: int, seconds: float) -> tuple[float, float]:
    """Return renders per second and the 99th percentile in seconds."""
    request, _ = await inbox(port)
    times: list[float] = []
    until = time.monotonic() + seconds

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        while time.monotonic() < until:
            started = time.perf_counter()
            body = await post(reader, writer, request)
            times.append(time.perf_counter() - started)
            if b'"list":[{' not in body.replace(b" ", b""):
                raise RuntimeError(body[:300].decode())
        writer.close()

    started = time.monotonic()
    await asyncio.gather(*(one() for _ in range(connections)))
    rate = len(times) / (time.monotonic() - started)
    return rate, sorted(times)[int(len(times) * 0.99) - 1]


def measure(*, quick: bool) -> Iterator[Figure]:
    """Yield the figures."""
    count = 1000 if quick else 10_000
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="bench-") as name:
        ours = daemon.make(Path(name) / "ours", f"{USER}:{PASSWORD}")
        with daemon.running(ours):
            asyncio.run(imap.fill(ours.port(143), count))
            for connections in (1, 20):
                rate, p99 = asyncio.run(
                    render(ours.port(80), connections, 2 if quick else 6)
                )
                label = f"JMAP inbox of 50, {connections} connections"
                yield Figure(label, "mailserverd", rate, "/s")
                yield Figure(f"{label}, p99", "mailserverd", p99 * 1000, "ms")
