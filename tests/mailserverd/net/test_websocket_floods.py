"""WebSocket clients that send and never read, or never come to an end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from typing import TYPE_CHECKING

from mailserverd.net.http import HttpFactory
from protocols.jmap.services import Settings
from tests.lib.jmap import USING, basic, jmap
from tests.lib.reactor import listen, run_with_reactor
from tests.lib.ws import WebSocketClient

if TYPE_CHECKING:
    from mailserverd.net.websocket import WebSocket

MUCH = 30_000_000  # octets: more than all buffers of both kernels


def with_socket(test):
    """Make a test of a coroutine function that takes a WebSocket and its factory."""

    @functools.wraps(test)
    def run(tmp_path):
        async def main(reactor):
            async with jmap(tmp_path, Settings(plaintext_auth=True)) as client:
                factory = HttpFactory(client.site)
                port, listening = listen(reactor, factory)
                ws = await WebSocketClient.open(
                    "127.0.0.1", port, "/jmap/ws", {"Authorization": basic()}
                )
                try:
                    async with asyncio.timeout(30):
                        await test(ws, factory)
                finally:
                    ws.writer.transport.abort()
                    await listening.stopListening().asFuture(asyncio.get_event_loop())
                    await factory.shutdown(1)

        run_with_reactor(main)

    del run.__wrapped__
    return run


BIG = ["Core/echo", {"a": "x" * 3_000_000}, "c"]


def factory_socket(factory: HttpFactory) -> WebSocket:
    """Return the server's side of the only connection."""
    (channel,) = factory._open
    assert channel.socket is not None
    return channel.socket


def frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """Return a masked frame of at most 125 octets (RFC 6455 section 5.2)."""
    head = bytes((final << 7 | opcode, 0x80 | len(payload)))
    return head + bytes(4) + payload


async def send_until_refused(ws: WebSocketClient, data: bytes) -> int:
    """Send and read nothing; return how many octets went off."""
    ws.writer.transport.pause_reading()
    sent = 0
    while sent < MUCH:
        ws.writer.write(data)
        try:
            async with asyncio.timeout(1):
                await ws.writer.drain()
        except TimeoutError:
            break
        sent += len(data)
    return sent


@with_socket
async def test_pings_whose_answers_nobody_reads(ws, _factory):
    assert await send_until_refused(ws, frame(9, b"x" * 100) * 2000) < MUCH


@with_socket
async def test_requests_whose_answers_nobody_reads(ws, _factory):
    call = ["Core/echo", {"a": "x" * 500_000}, "c"]
    request = {"@type": "Request", "using": USING, "methodCalls": [call]}
    text = json.dumps(request).encode()
    length = len(text).to_bytes(8, "big")
    data = bytes((0x81, 0xFF)) + length + bytes(4) + text
    assert await send_until_refused(ws, data) < MUCH


@with_socket
async def test_a_message_of_endless_empty_frames(ws, factory):
    (channel,) = factory._open
    ws.writer.write(frame(1, b"[", final=False) + frame(0, b"", final=False) * 100_000)
    ws.ping(b"done")
    with contextlib.suppress(asyncio.IncompleteReadError):
        await ws.event()
    assert len(channel.socket._text) == 1


@with_socket
async def test_answers_nobody_reads_take_the_places_of_others(ws, factory):
    """As many as may run at once, over all connections of an account."""
    gate = factory.app._requests
    ws.writer.transport.pause_reading()
    text = json.dumps({"@type": "Request", "using": USING, "methodCalls": [BIG]})
    for _ in range(gate.size + 5):
        ws.send(text)
    async with asyncio.timeout(10):
        while factory_socket(factory).writable or not gate._inside:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert sum(gate._inside.values()) >= 1
    ws.writer.transport.resume_reading()
    for _ in range(gate.size + 5):
        assert (await ws.receive())["@type"] == "Response"
    async with asyncio.timeout(10):
        while gate._inside:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@with_socket
async def test_http_answers_nobody_reads_keep_their_places(ws, factory):
    """Until they are read, or the client is gone: neither more, nor for ever."""
    gate = factory.app._requests
    body = json.dumps({"using": USING, "methodCalls": [BIG]}).encode()
    head = (
        "POST /jmap/api HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: {basic()}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    host, port = ws.writer.get_extra_info("peername")
    writers = []
    for _ in range(gate.size + 3):
        _, writer = await asyncio.open_connection(host, port, limit=1000)
        writer.write(head.encode() + body)
        writers.append(writer)
    async with asyncio.timeout(10):
        while sum(gate._inside.values()) < gate.size:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for writer in writers:
            writer.transport.abort()
        while gate._inside:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
