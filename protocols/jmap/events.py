"""Push over Server-Sent Events (RFC 8620 section 7.3)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mailserverd.core.types import Access
from protocols.jmap import replies
from protocols.jmap.push import TYPES, Watch, parse_seen
from protocols.jmap.wire import ijson
from protocols.jmap.wire.errors import RequestError
from protocols.web import Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from auth.people.authenticate import Principal
    from protocols.jmap.services import Services

MIN_PING, MAX_PING = 5, 3600  # seconds
CHECK = 5.0  # seconds between looks whether the login still holds
HEADERS = (
    ("Content-Type", "text/event-stream"),
    ("X-Accel-Buffering", "no"),
    *replies.NO_STORE,
    *replies.CORS,
)


def stream(
    services: Services, who: Principal, query: Mapping[str, str], last_id: str
) -> Response:
    """Open the event source; RequestError 400 for wrong variables."""
    types = _types(query.get("types", ""))
    close_after = query.get("closeafter", "no")
    ping = query.get("ping", "0")
    if close_after not in {"state", "no"} or not (ping.isascii() and ping.isdecimal()):
        raise RequestError(
            "about:blank", "closeafter is state or no, ping a number of seconds"
        )
    seconds = min(max(int(ping[:6]), MIN_PING), MAX_PING) if int(ping[:6]) else 0
    source = _Source(services, who, seconds, once=close_after == "state")
    return Response(200, HEADERS, stream=source.run(types, last_id))


def _types(text: str) -> frozenset[str]:
    if text == "*":
        return frozenset(TYPES)
    if not text:
        raise RequestError("about:blank", "types is * or a list of type names")
    return frozenset(text.split(","))


class _Source:
    """One open event source: what is to be told, and when."""

    def __init__(
        self, services: Services, who: Principal, ping: int, *, once: bool
    ) -> None:
        self._services = services
        self._who = who
        self._ping = ping
        self._once = once
        self._change: dict[str, Any] | None = None
        self._token = ""
        self._news = asyncio.Event()

    def _emit(self, change: dict[str, Any], token: str) -> None:
        """Remember a change; several are told as one to a client that reads slowly."""
        if self._change is not None:
            for account, types in change["changed"].items():
                self._change["changed"].setdefault(account, {}).update(types)
        else:
            self._change = change
        self._token = token
        self._news.set()

    async def run(self, types: frozenset[str], last_id: str) -> AsyncIterator[bytes]:
        access = Access(self._who.account, self._who.account)
        watch = Watch(self._services, access, self._emit)
        try:
            await watch.start(types, parse_seen(last_id) if last_id else None)
            yield b": connected\r\n\r\n"
            async for event in self._events():
                yield event
        finally:
            watch.stop()

    async def _events(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        spoke = loop.time()
        while self._services.authenticator.still_valid(self._who):
            due = spoke + self._ping - loop.time() if self._ping else CHECK
            if await self._wait(min(max(due, 0), CHECK)):
                if not self._services.authenticator.still_valid(self._who):
                    return
                yield self._state()
                spoke = loop.time()
                if self._once:
                    return
            elif self._ping and loop.time() - spoke >= self._ping:
                data = ijson.dumps({"interval": self._ping})
                yield b"event: ping\r\ndata: " + data + b"\r\n\r\n"
                spoke = loop.time()

    async def _wait(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def _state(self) -> bytes:
        change, self._change = self._change, None
        self._news.clear()
        head = f"event: state\r\nid: {self._token}\r\ndata: ".encode()
        return head + ijson.dumps(change) + b"\r\n\r\n"
