"""JMAP over WebSocket (RFC 8887): requests, their answers, and pushed changes.

Requests of one connection run side by side up to ``maxConcurrentRequests``; at the
limit the front end reads no more until one of them ends.  Those without an id run one
after the other, since only the order tells their answers apart.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mailserverd.core import metrics
from mailserverd.core.log import get_logger
from mailserverd.core.types import Access
from protocols.jmap.push import TYPES, Watch, parse_seen
from protocols.jmap.wire import ijson, request
from protocols.jmap.wire.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from auth.people.authenticate import Principal
    from protocols.jmap.api import Api
    from protocols.jmap.budget import Share
    from protocols.jmap.gate import Gate
    from protocols.jmap.services import Services
    from protocols.web import Socket

log = get_logger("jmap")
POLICY_VIOLATION = 1008  # RFC 6455 section 7.4.1


class JmapSocket:
    """The application's side of one WebSocket connection."""

    def __init__(
        self, services: Services, api: Api, gate: Gate, principal: Principal
    ) -> None:
        self._services = services
        self._api = api
        self._gate = gate
        self._principal = principal
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrival = asyncio.Lock()  # large messages are parsed in a thread
        self._turn = asyncio.Lock()
        self._reads = asyncio.Event()
        self._socket: Socket | None = None
        self._watch: Watch | None = None

    def attach(self, socket: Socket) -> JmapSocket:
        """The handshake is done; what is sent goes to ``socket``."""
        self._socket = socket
        log.info("websocket-opened", user=self._principal.address)
        return self

    # --- what the front end calls ---------------------------------------------

    def received(self, text: bytes) -> Awaitable[None] | None:
        """Take one message; the result, if any, is when to read the next."""
        if not self.valid():
            self._close("the login no longer holds")
            return None
        task = asyncio.get_running_loop().create_task(self._message(text))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if len(self._tasks) >= self._gate.size:
            return self._room()
        return None

    async def _room(self) -> None:
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def writable(self) -> None:
        """The client reads again: tell it what it missed."""
        self._reads.set()
        if self._watch is not None:
            self._watch.wake()

    def valid(self) -> bool:
        """Whether the password that opened this connection still holds."""
        return self._services.authenticator.still_valid(self._principal)

    def closed(self) -> None:
        """The connection is gone; requests under way run to their end."""
        self._socket = None
        self._reads.set()
        log.info("websocket-closed", user=self._principal.address)
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    # --- messages -------------------------------------------------------------

    async def _message(self, text: bytes) -> None:
        request_id: str | None = None
        try:
            async with self._arrival:
                document = await self._api.parse(text)
            request_id = request.request_id(document)
            match request.parse_socket_message(document):
                case request.SocketRequest(body=body):
                    await self._request(request_id, body)
                case request.PushEnable() as enable:
                    await self._enable(enable)
                case request.PushDisable():
                    self._disable()
        except RequestError as error:
            problem = {"@type": "RequestError", "requestId": request_id}
            self._send({**problem, **error.problem()})
        except Exception:
            log.exception("websocket-message-failed", user=self._principal.address)
            self._close("an internal error; it was logged")

    async def _request(self, request_id: str | None, body: dict[str, Any]) -> None:
        if request_id is None:
            async with self._turn:
                await self._run(None, body)
        else:
            await self._run(request_id, body)

    async def _run(self, request_id: str | None, body: dict[str, Any]) -> None:
        async with self._gate.waiting(self._principal.account):
            share = self._api.share()
            try:
                share.settle(await self._answer(request_id, body, share))
                await self._taken()
            finally:
                share.close()

    async def _answer(
        self, request_id: str | None, body: dict[str, Any], share: Share
    ) -> int:
        """Run a request and send what it says; returns how many octets that is."""
        response = await self._api.run(self._principal, body, share)
        head: dict[str, Any] = {"@type": "Response"}
        if request_id is not None:
            head["requestId"] = request_id
        return self._send({**head, **response})

    async def _taken(self) -> None:
        """Wait until the client has read what it was sent, or is gone.

        Who does not read has so many answers waiting as may run, and no more.
        """
        while self._socket is not None and not self._socket.writable:
            self._reads.clear()
            await self._reads.wait()

    async def _enable(self, enable: request.PushEnable) -> None:
        """RFC 8887 section 4.3.5.2; unknown types are none of ours: never pushed."""
        if self._socket is None:  # closed meanwhile: nobody would end the watch
            return
        account = self._principal.account
        if self._watch is None:
            access = Access(account, account)
            self._watch = Watch(self._services, access, self._push, self._ready)
        types = frozenset(TYPES if enable.types is None else enable.types)
        since = None if enable.push_state is None else parse_seen(enable.push_state)
        await self._watch.start(types, since)

    def _disable(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _ready(self) -> bool:
        return self._socket is not None and self._socket.writable

    def _push(self, change: dict[str, Any], token: str) -> None:
        if self.valid():
            self._send({**change, "pushState": token})
            metrics.REQUESTS.labels("jmap", "StateChange").inc()
        else:
            self._close("the login no longer holds")

    def _send(self, message: dict[str, Any]) -> int:
        if self._socket is None:
            return 0
        text = ijson.dumps(message)
        self._socket.send(text)
        return len(text)

    def _close(self, reason: str) -> None:
        if self._socket is not None:
            self._socket.close(POLICY_VIOLATION, reason)
