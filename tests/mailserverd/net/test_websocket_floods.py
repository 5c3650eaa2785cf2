"""WebSocket clients that send and never read, or never come to an end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json

from mailserverd.net.http import HttpFactory
from protocols.jmap.services import Settings
from tests.lib.jmap import USING, basic, jmap
from tests.lib.reactor import listen, run_with_reactor
from tests.lib.ws import WebSocketClient

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
