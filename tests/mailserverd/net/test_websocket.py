"""JMAP over WebSocket (RFC 8887) on a real socket, with real services."""

from __future__ import annotations

import asyncio
import functools
import json
import time

import pytest
from wsproto.events import CloseConnection, Pong

from mailserverd.net.http import HttpFactory
from protocols.jmap.services import MAIL, Settings
from tests.lib.jmap import USING, basic, jmap, message
from tests.lib.reactor import listen, run_with_reactor
from tests.lib.ws import Refused, WebSocketClient

ECHO = ["Core/echo", {"hello": True}, "c"]


def socket(**settings):
    """Make a test of a coroutine function that takes a Jmap with a port."""

    def decorate(test):
        @functools.wraps(test)
        def run(tmp_path):
            async def main(reactor):
                given = Settings(plaintext_auth=True, **settings)
                async with jmap(tmp_path, given) as client:
                    factory = HttpFactory(client.site)
                    port, listening = listen(reactor, factory)
                    place = Place(client, factory, port)
                    try:
                        async with asyncio.timeout(20):
                            await test(place)
                    finally:
                        for ws in place.opened:
                            await ws.hang_up()
                        await listening.stopListening().asFuture(
                            asyncio.get_event_loop()
                        )
                        await factory.shutdown(1)

            run_with_reactor(main)

        del run.__wrapped__
        return run

    return decorate


class Place:
    def __init__(self, client, factory, port):
        self.jmap, self.factory, self.port = client, factory, port
        self.opened = []

    async def open(self, headers=None, **how):
        given = {"Authorization": basic()} if headers is None else headers
        ws = await WebSocketClient.open(
            "127.0.0.1", self.port, "/jmap/ws", given, **how
        )
        self.opened.append(ws)
        return ws


def request(*calls, **more):
    return {"@type": "Request", "using": USING, "methodCalls": list(calls)} | more


@socket()
async def test_requests_are_answered_with_their_ids(place):
    ws = await place.open()
    assert ws.subprotocol == "jmap"
    ws.send(request(ECHO, id="r1"))
    answer = await ws.receive()
    assert answer["@type"] == "Response"
    assert answer["requestId"] == "r1"
    assert answer["methodResponses"] == [ECHO]
    ws.send(request(ECHO))
    assert "requestId" not in await ws.receive()
    await ws.close()


@socket()
async def test_a_message_in_many_frames(place):
    ws = await place.open()
    text = json.dumps(request(["Core/echo", {"ä": "ö" * 1000}, "c"], id="x"))
    ws.send_pieces(*text)
    assert (await ws.receive())["methodResponses"][0][1] == {"ä": "ö" * 1000}
    await ws.close()


@socket()
async def test_errors_are_messages(place):
    ws = await place.open()
    for text, kind, number in (
        ("{", "notJSON", None),
        ("[]", "notRequest", None),
        ('{"@type":"Nonsense","id":"n"}', "notRequest", "n"),
        ('{"@type":"Request","id":"u","using":["x:y"],"methodCalls":[]}', "unkno", "u"),
        ('{"@type":"Request","id":"m","using":[]}', "notRequest", "m"),
    ):
        ws.send(text)
        answer = await ws.receive()
        assert answer["@type"] == "RequestError"
        assert answer["requestId"] == number
        assert kind in answer["type"]
    await ws.close()


@socket()
async def test_pipelined_requests_beyond_the_limit_wait(place):
    ws = await place.open()
    for number in range(50):
        ws.send(request(ECHO, id=str(number)))
    answered = {(await ws.receive())["requestId"] for _ in range(50)}
    assert answered == {str(number) for number in range(50)}
    await ws.close()


@socket()
async def test_requests_without_an_id_are_answered_in_order(place):
    ws = await place.open()
    for number in range(30):
        ws.send(request(["Core/echo", {"n": number}, "c"]))
    got = [(await ws.receive())["methodResponses"][0][1]["n"] for _ in range(30)]
    assert got == list(range(30))
    await ws.close()


@socket()
async def test_a_change_is_pushed_at_once(place):
    ws = await place.open()
    ws.send({"@type": "WebSocketPushEnable", "dataTypes": None})
    ws.send(request(ECHO))
    await ws.receive()  # push is on by now
    started = time.perf_counter()
    await place.jmap.add(message())
    change = await ws.receive()
    assert time.perf_counter() - started < 1
    assert change["@type"] == "StateChange"
    changed = change["changed"][place.jmap.account]
    assert set(changed) == {"Email", "EmailDelivery", "Mailbox", "Thread"}
    got = await place.jmap.call("Email/get", ids=[], properties=["id"])
    assert changed["Email"] == got["state"]
    await ws.close()


@socket()
async def test_only_wanted_types_are_pushed(place):
    jmap = place.jmap
    email = await jmap.add(message())
    ws = await place.open()
    ws.send({"@type": "WebSocketPushEnable", "dataTypes": ["EmailDelivery"]})
    ws.send(request(ECHO))
    await ws.receive()
    await jmap.call("Email/set", update={email: {"keywords/$seen": True}})
    await jmap.add(message("Second"))
    change = await ws.receive()
    assert set(change["changed"][jmap.account]) == {"EmailDelivery"}
    ws.send({"@type": "WebSocketPushDisable"})
    ws.send(request(ECHO, id="after"))
    assert (await ws.receive())["requestId"] == "after"
    await jmap.add(message("Third"))
    ws.send(request(ECHO, id="last"))
    assert (await ws.receive())["requestId"] == "last"
    await ws.close()


@socket()
async def test_push_state_tells_what_was_missed(place):
    jmap = place.jmap
    ws = await place.open()
    ws.send({"@type": "WebSocketPushEnable", "dataTypes": ["Email", "Identity"]})
    ws.send(request(ECHO))
    await ws.receive()
    await jmap.add(message())
    token = (await ws.receive())["pushState"]
    await ws.close()
    ws = await place.open()
    enable = {"@type": "WebSocketPushEnable", "dataTypes": None, "pushState": token}
    ws.send(enable)
    ws.send(request(ECHO, id="nothing"))
    assert (await ws.receive())["requestId"] == "nothing"
    await ws.close()
    await jmap.add(message("Missed"))
    ws = await place.open()
    ws.send(enable)
    change = await ws.receive()
    assert "Email" in change["changed"][jmap.account]
    assert "Identity" not in change["changed"][jmap.account]
    ws.send(enable | {"pushState": "of another life"})
    change = await ws.receive()
    assert "Identity" in change["changed"][jmap.account]
    await ws.close()


@socket()
async def test_a_changed_password_ends_the_connection(place):
    ws = await place.open()
    await place.jmap.host.accounts.account_passwd("alice@example.org", "another one!")
    ws.send(request(ECHO, id="late"))
    with pytest.raises(ConnectionResetError):
        await ws.receive()
    assert ws.closed == 1008


@socket()
async def test_handshakes_that_are_refused(place):
    for headers, how, status in (
        ({}, {}, 401),
        ({"Authorization": basic(password="wrong")}, {}, 401),
        ({"Authorization": basic()}, {"subprotocols": []}, 400),
        ({"Authorization": basic()}, {"subprotocols": ["chat"]}, 400),
        ({"Authorization": basic(), "Origin": "https://evil.example"}, {}, 403),
    ):
        with pytest.raises(Refused) as error:
            await place.open(headers, **how)
        assert error.value.status == status, headers


@socket(allowed_origins=("https://app.example",))
async def test_allowed_origins(place):
    allowed = {"Authorization": basic(), "Origin": "https://app.example"}
    await (await place.open(allowed)).close()
    with pytest.raises(Refused):
        await place.open(allowed | {"Origin": "https://other.example"})
    await (await place.open()).close()


@socket()
async def test_binary_messages_and_giants_close_the_connection(place):
    ws = await place.open()
    ws.send_bytes(b"\x00\x01")
    assert isinstance(await ws.event(), CloseConnection)
    assert ws.closed == 1003
    place.factory.socket_limit = 1000
    ws = await place.open()
    ws.send_pieces(*["x" * 100] * 20)
    assert isinstance(await ws.event(), CloseConnection)
    assert ws.closed == 1009


@socket()
async def test_ping_and_garbage(place):
    ws = await place.open()
    ws.ping(b"are you there")
    event = await ws.event()
    assert isinstance(event, Pong)
    assert bytes(event.payload) == b"are you there"
    ws.writer.write(b"\xff" * 100)
    assert isinstance(await ws.event(), CloseConnection)
    assert ws.closed == 1002


@socket()
async def test_a_client_that_does_not_read_is_not_read_from(place):
    """Its answers do not pile up; what changed meanwhile it learns in the end."""
    jmap = place.jmap
    ws = await place.open()
    ws.send({"@type": "WebSocketPushEnable", "dataTypes": ["Email"]})
    big = ["Core/echo", {"x": "y" * 500_000}, "c"]
    for number in range(60):
        ws.send(request(big, id=str(number)))
    server = next(iter(place.factory._open)).socket
    while server.writable:  # noqa: ASYNC110 - a condition of the server's
        await asyncio.sleep(0.01)
    for number in range(3):
        await jmap.add(message(f"{number}"))
    await asyncio.sleep(0.3)
    state = (await jmap.call("Email/get", ids=[]))["state"]
    answered = told = 0
    last = None
    while answered < 60 or last != state:
        answer = await ws.receive()
        if answer["@type"] == "Response":
            answered += 1
        else:
            told += 1
            last = answer["changed"][jmap.account]["Email"]
    assert told <= 3
    await ws.close()


@socket()
async def test_a_client_that_vanishes_leaves_nothing_behind(place):
    bus = place.jmap.host.changes
    for _ in range(5):
        ws = await place.open()
        ws.send({"@type": "WebSocketPushEnable", "dataTypes": None})
        ws.send(request(ECHO))
        await ws.receive()
        ws.writer.transport.abort()
    while place.factory._open:  # noqa: ASYNC110 - a condition of the server's
        await asyncio.sleep(0.01)
    assert not bus._bus._watched


@socket()
async def test_http_on_the_websocket_path(place):
    reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
    head = f"GET /jmap/ws HTTP/1.1\r\nHost: x\r\nAuthorization: {basic()}\r\n\r\n"
    writer.write(head.encode())
    assert b" 426 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


@socket()
async def test_shutdown_says_so(place):
    ws = await place.open()
    stopping = asyncio.ensure_future(place.factory.shutdown(5))
    assert isinstance(await ws.event(), CloseConnection)
    assert ws.closed == 1001
    ws.writer.close()
    await stopping


@socket()
async def test_using_must_name_the_capability(place):
    ws = await place.open()
    call = ["Mailbox/get", {"accountId": place.jmap.account}, "c"]
    ws.send(request(call, id="1", using=[]))
    answer = await ws.receive()
    assert answer["methodResponses"][0][:2] == ["error", {"type": "unknownMethod"}]
    ws.send(request(call, id="2", using=[MAIL]))
    assert (await ws.receive())["methodResponses"][0][0] == "Mailbox/get"
    await ws.close()


GOOD = {
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "jmap",
}


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({}, 101),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Version": ""}, 426),
        ({"Connection": "keep-alive"}, 400),
        ({"Sec-WebSocket-Key": ""}, 400),
        ({"Sec-WebSocket-Key": "c2hvcnQ="}, 400),
        ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ"}, 400),
    ],
)
def test_the_opening_handshake_must_be_sound(tmp_path, changed, status):
    """RFC 6455 section 4.2.1; a refusal leaves an HTTP connection that goes on."""

    @socket()
    async def test(place):
        headers = {"Host": "x.test", "Authorization": basic()} | GOOD | changed
        lines = [f"{name}: {value}" for name, value in headers.items() if value]
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
        writer.write("\r\n".join(["GET /jmap/ws HTTP/1.1", *lines, "", ""]).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith(f"HTTP/1.1 {status} ")
        if status == 101:
            assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        else:
            assert ("Sec-WebSocket-Version: 13" in head) is (status == 426)
            length = int(head.partition("Content-Length: ")[2].split()[0])
            assert json.loads(await reader.readexactly(length))["status"] == status
            writer.write(b"GET /nothing HTTP/1.1\r\nHost: x.test\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 404 ")
        writer.close()

    test(tmp_path)
