"""HTTP over a socket: limits before reading, one write per answer, streams."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os

import pytest

from mailserverd.core.metrics import render
from mailserverd.net.http import CONNECTIONS, HttpFactory
from mailserverd.net.http_channel import FrontSettings
from mailserverd.net.http_metrics import MetricsSite
from protocols.web import Response
from tests.lib.reactor import listen, run_with_reactor
from tests.lib.waiting import until


class Site:
    """An application that echoes, streams, and refuses."""

    def __init__(self):
        self.heads = []
        self.released = 0
        self.let_in = asyncio.Event()
        self.let_in.set()
        self.stream_closed = asyncio.Event()

    def body_limit(self, head):
        return 1_000_000 if head.path == "/echo" else 100

    def too_large(self, head):
        return Response(413, (("X-Path", head.path),), b"too large")

    async def admit(self, head):
        await self.let_in.wait()
        if head.header("authorization") != "yes":
            return Response(401, (("X-Why", "no"),), b"who are you?")
        return self.release

    def release(self):
        self.released += 1

    async def handle(self, head, body):
        self.heads.append(head)
        if head.path == "/echo":
            return Response(200, (("X-File", str(body.file is not None)),), body.read())
        if head.path == "/stream":
            return Response(200, (), stream=self.chunks(int(head.query)))
        if head.path == "/big":
            return Response(200, (), b"x" * int(head.query))
        return Response(200, (), b"hello")

    async def chunks(self, count):
        try:
            for _ in range(count):
                yield b"y" * 65536
                await asyncio.sleep(0)
        finally:
            self.stream_closed.set()


def http(**settings):
    """Make a test of a coroutine function that takes a served site."""

    def decorate(test):
        @functools.wraps(test)
        def run():
            async def main(reactor):
                site = Site()
                factory = HttpFactory(site, FrontSettings(**settings))
                site.factory, site.reactor = factory, reactor
                site.port, listening = listen(reactor, factory)
                try:
                    async with asyncio.timeout(20):
                        await test(site)
                finally:
                    await listening.stopListening().asFuture(asyncio.get_event_loop())
                    await factory.shutdown(0.2)

            run_with_reactor(main)

        del run.__wrapped__
        return run

    return decorate


async def connect(site):
    return await asyncio.open_connection("127.0.0.1", site.port, limit=1 << 22)


async def read_head(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")[:-2]
    fields = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), fields


async def read_answer(reader):
    status, fields = await read_head(reader)
    body = b""
    if "content-length" in fields:
        body = await reader.readexactly(int(fields["content-length"]))
    elif fields.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        assert await reader.readline() == b"\r\n"
    return status, fields, body


def request(method, target, *lines, body=b""):
    head = [f"{method} {target} HTTP/1.1", "Host: h", *lines]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


@http()
async def test_keep_alive_and_no_version_of_ours(site):
    reader, writer = await connect(site)
    for _ in range(3):
        writer.write(request("GET", "/x?a=b"))
        status, fields, body = await read_answer(reader)
        assert (status, body) == (200, b"hello")
        assert "server" not in fields
    assert site.heads[0].path == "/x"
    assert site.heads[0].query == "a=b"
    assert site.heads[0].peer == "127.0.0.1"
    assert not site.heads[0].secure
    writer.close()


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("Host: a", "Host: b"),
        ("Host: a", "Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("Host: a", "Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Host: a", "Content-Length: 5", "Content-Length: 5"),
    ],
)
def test_header_blocks_that_can_be_read_in_two_ways(lines):
    """RFC 9112 sections 3.2, 6.1 and 6.3: refused, and nothing behind them read."""

    @http()
    async def ask(site):
        reader, writer = await connect(site)
        head = "\r\n".join(("POST /echo HTTP/1.1", *lines, "", ""))
        writer.write(head.encode() + b"0\r\n\r\n" + request("GET", "/smuggled"))
        status, _ = await read_head(reader)
        assert status == 400
        assert await reader.read() == b""
        assert not site.heads
        writer.close()

    ask()


@http()
async def test_pipelined_requests_are_answered_in_order(site):
    reader, writer = await connect(site)
    echoes = [os.urandom(50 + n) for n in range(20)]
    writer.write(b"".join(request("POST", "/echo", body=e) for e in echoes))
    for echo in echoes:
        assert (await read_answer(reader))[2] == echo
    writer.close()


@http()
async def test_head_and_connection_close(site):
    reader, writer = await connect(site)
    writer.write(request("HEAD", "/", "Connection: close"))
    status, fields = await read_head(reader)
    assert (status, fields["content-length"]) == (200, "5")
    assert fields["connection"] == "close"
    assert await reader.read() == b""
    writer.close()


@http()
async def test_http_1_0_is_closed_after_the_answer(site):
    reader, writer = await connect(site)
    writer.write(b"GET /stream?2 HTTP/1.0\r\n\r\n")
    _, fields = await read_head(reader)
    assert "transfer-encoding" not in fields
    assert await reader.read() == b"y" * 131072
    writer.close()


@http()
async def test_a_large_body_goes_to_a_file(site):
    reader, writer = await connect(site)
    body = os.urandom(900_000)
    writer.write(request("POST", "/echo", "Authorization: yes", body=body))
    status, fields, answer = await read_answer(reader)
    assert (status, fields["x-file"], answer) == (200, "true", body)
    assert site.released == 1
    writer.close()


@http()
async def test_a_chunked_body(site):
    reader, writer = await connect(site)
    lines = ("Transfer-Encoding: chunked", "Authorization: yes")
    writer.write(request("POST", "/echo", *lines))
    writer.write(b"5\r\nhello\r\n")
    await writer.drain()
    writer.write(b"6\r\n world\r\n0\r\n\r\n")
    assert (await read_answer(reader))[2] == b"hello world"
    writer.close()


@http()
async def test_too_large_a_body_is_refused_before_it_is_read(site):
    reader, writer = await connect(site)
    lines = ("Content-Length: 1000001", "Expect: 100-continue")
    writer.write(request("POST", "/echo", *lines))
    status, fields, body = await read_answer(reader)
    assert status == 413
    assert (fields["x-path"], body) == ("/echo", b"too large")
    assert fields["connection"] == "close"
    assert site.heads == []
    writer.close()


@http()
async def test_too_large_a_chunked_body_is_cut_off(site):
    reader, writer = await connect(site)
    lines = ("Transfer-Encoding: chunked", "Authorization: yes")
    writer.write(request("POST", "/small", *lines))
    with contextlib.suppress(ConnectionError):
        for _ in range(40):
            writer.write(b"400\r\n" + b"z" * 1024 + b"\r\n")
            await writer.drain()
    assert (await read_answer(reader))[0] == 413
    assert site.heads == []
    writer.close()


@http()
async def test_a_stranger_cannot_send_a_large_body(site):
    reader, writer = await connect(site)
    lines = ("Content-Length: 500000",)
    writer.write(request("POST", "/echo", *lines) + b"a" * 1000)
    status, fields, _ = await read_answer(reader)
    assert (status, fields["x-why"]) == (401, "no")
    assert site.released == 0
    writer.close()


@http()
async def test_reading_waits_for_admission(site):
    site.let_in.clear()
    _, writer = await connect(site)
    body = b"b" * 990_000
    writer.write(request("POST", "/echo", "Authorization: yes", body=body))
    await until(lambda: site.factory._open)
    (channel,) = site.factory._open
    await until(lambda: channel.requests and channel.requests[0]._spool.size)
    await asyncio.sleep(0.1)
    assert channel.requests[0]._spool.size <= 300_000
    site.let_in.set()
    await writer.drain()
    writer.close()


@http()
async def test_large_answers_come_whole(site):
    reader, writer = await connect(site)
    writer.write(request("GET", "/big?3000000") + request("GET", "/stream?40"))
    assert (await read_answer(reader))[2] == b"x" * 3_000_000
    assert (await read_answer(reader))[2] == b"y" * 65536 * 40
    writer.close()


@http(write=0.3)
async def test_a_client_that_does_not_read_is_cut_off(site):
    _, writer = await connect(site)
    writer.write(request("GET", "/stream?100000"))
    await site.stream_closed.wait()
    writer.close()


@http()
async def test_a_stream_ends_when_the_client_goes(site):
    reader, writer = await connect(site)
    writer.write(request("GET", "/stream?100000"))
    await reader.readexactly(100_000)
    writer.transport.abort()
    await site.stream_closed.wait()


@http(header=0.3)
async def test_a_slow_header_is_cut_off_however_it_trickles(site):
    for begun in (b"", b"GET / HTTP/1.1\r\nX: "):
        reader, writer = await connect(site)
        writer.write(begun)
        started = asyncio.get_event_loop().time()
        closed = asyncio.ensure_future(reader.read())
        while not closed.done():
            with contextlib.suppress(ConnectionError):
                writer.write(b"a")
                await writer.drain()
            await asyncio.wait([closed], timeout=0.05)
        assert closed.result() == b"", begun
        assert asyncio.get_event_loop().time() - started < 5
        writer.close()


@http(body=0.3)
async def test_a_body_that_stops_is_cut_off(site):
    reader, writer = await connect(site)
    writer.write(request("POST", "/echo", "Content-Length: 1000") + b"x")
    assert await reader.read() == b""
    assert site.heads == []
    writer.close()


@http(idle=0.3)
async def test_an_idle_connection_is_closed(site):
    reader, writer = await connect(site)
    writer.write(request("GET", "/"))
    await read_answer(reader)
    assert await reader.read() == b""
    writer.close()


@http(connections_per_address=2)
async def test_connections_of_one_address_are_counted(site):
    first = [await connect(site) for _ in range(2)]
    reader, writer = await connect(site)
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    first[0][1].close()
    while len(site.factory._open) > 1:  # noqa: ASYNC110 - a condition of the server's
        await asyncio.sleep(0.01)
    reader, writer = await connect(site)
    writer.write(request("GET", "/"))
    assert (await read_answer(reader))[0] == 200
    writer.close()
    first[1][1].close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff" * 100 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
        b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_malformed_requests_are_refused_and_closed(garbage):
    @http()
    async def test(site):
        reader, writer = await connect(site)
        writer.write(garbage)
        with contextlib.suppress(ConnectionError):
            answer = await reader.read()
            assert answer[:13] in {b"", b"HTTP/1.1 400 ", b"HTTP/1.1 401 "}
        assert site.heads == []
        writer.close()

    test()


def test_metrics_listener():
    async def fine():
        return None

    async def broken():
        raise RuntimeError("secret")

    async def partly():
        return "shard-1 down"

    async def main(reactor):
        for check, status in ((fine, 200), (partly, 200), (broken, 503)):
            factory = HttpFactory(MetricsSite({"storage": check}))
            port, listening = listen(reactor, factory)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("GET", "/readyz"))
            answer = await read_answer(reader)
            assert answer[0] == status
            assert b"secret" not in answer[2]
            assert (b"ok, shard-1 down" in answer[2]) is (check is partly)
            writer.write(request("GET", "/healthz"))
            assert (await read_answer(reader))[0] == 200
            writer.write(request("GET", "/metrics"))
            assert b"mailserverd_connections" in (await read_answer(reader))[2]
            writer.write(request("POST", "/metrics"))
            assert (await read_answer(reader))[0] == 405
            writer.close()
            await listening.stopListening().asFuture(asyncio.get_event_loop())
            await factory.shutdown(0.2)

    run_with_reactor(main)


@http(idle=0.05)
async def test_a_closed_connection_is_not_aborted_later(site):
    """It would fail where the connection was half-open TLS."""
    reader, writer = await connect(site)
    (channel,) = site.factory._open
    assert await reader.read() == b""
    writer.close()
    async with asyncio.timeout(5):
        while site.factory._open:  # noqa: ASYNC110 - a condition of the server's
            await asyncio.sleep(0.01)
    assert channel._last.cancelled()


@http()
async def test_connections_are_counted_over_all_listeners(site):
    """A second listener's (the metrics') once stood for all of them."""

    async def shown(count):
        async with asyncio.timeout(5):
            line = f'mailserverd_connections{{protocol="http"}} {count}.0'.encode()
            while line not in render():  # noqa: ASYNC110 - a condition of the server's
                await asyncio.sleep(0.01)

    other = HttpFactory(MetricsSite({}))
    before = int(CONNECTIONS._value.get())
    port, listening = listen(site.reactor, other)
    _, first = await connect(site)
    await shown(before + 1)
    _, second = await asyncio.open_connection("127.0.0.1", port)
    await shown(before + 2)
    first.close()
    await shown(before + 1)
    second.close()
    await shown(before)
    await listening.stopListening().asFuture(asyncio.get_event_loop())
