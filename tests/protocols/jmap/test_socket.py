"""JMAP over WebSocket (RFC 8887), without a socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.lib.jmap import USING, Jmap, with_jmap

BIG = 200_000  # octets: parsed off the loop


class Peer:
    """A client that reads everything at once."""

    writable = True

    def __init__(self) -> None:
        self.told: asyncio.Queue[Any] = asyncio.Queue()

    def send(self, text: bytes) -> None:
        self.told.put_nowait(json.loads(text))

    def close(self, code: int, reason: str = "") -> None:
        self.told.put_nowait((code, reason))


def echo(word: str, **more: Any) -> bytes:
    calls = [["Core/echo", {"word": word}, "c"]]
    request = {"@type": "Request", "using": USING, "methodCalls": calls}
    return json.dumps(request | more).encode()


async def opened(jmap: Jmap) -> tuple[Any, Peer]:
    answer = await jmap.http(
        "GET", "/jmap/ws", upgrade="websocket", sec_websocket_protocol="jmap"
    )
    assert answer.status == 101
    assert answer.upgrade is not None
    peer = Peer()
    return answer.upgrade(peer), peer


@with_jmap()
async def test_requests_without_an_id_are_answered_in_order(jmap):
    session, peer = await opened(jmap)
    session.received(echo("x" * BIG))
    session.received(echo("small"))
    words = []
    for _ in range(2):
        response = await asyncio.wait_for(peer.told.get(), 10)
        words.append(response["methodResponses"][0][1]["word"])
    assert words == ["x" * BIG, "small"]
    session.closed()


@with_jmap()
async def test_a_request_with_an_id_is_answered_with_it(jmap):
    session, peer = await opened(jmap)
    session.received(echo("x", id="R1"))
    response = await asyncio.wait_for(peer.told.get(), 10)
    assert response["requestId"] == "R1"
    session.received(echo("x", id=1))
    error = await asyncio.wait_for(peer.told.get(), 10)
    assert error["@type"] == "RequestError"
    assert error["requestId"] is None
    assert error["type"].endswith(":notRequest")
    session.closed()


@with_jmap()
async def test_nothing_is_watched_for_a_client_that_left(jmap):
    session, _ = await opened(jmap)
    watched = []
    changes, subscribe = jmap.services.changes, jmap.services.changes.subscribe
    changes.subscribe = lambda *args: watched.append(args) or subscribe(*args)
    before = asyncio.all_tasks()
    session.received(json.dumps({"@type": "WebSocketPushEnable"}).encode())
    session.closed()
    await asyncio.wait(asyncio.all_tasks() - before)
    assert not watched
