"""A plain WebSocket client: wsproto over an asyncio stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)


class Refused(Exception):
    """The handshake was refused with ``status``."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status, body)
        self.status = status


class WebSocketClient:
    """One connection; ``closed`` is the code that the server closed with."""

    def __init__(self, reader: asyncio.StreamReader, writer: Any) -> None:
        self.reader, self.writer = reader, writer
        self.wire = WSConnection(ConnectionType.CLIENT)
        self.events: list[Any] = []
        self.closed: int | None = None
        self.subprotocol: str | None = None

    @classmethod
    async def open(
        cls, host: str, port: int, path: str, headers: dict[str, str], **how: Any
    ) -> WebSocketClient:
        """Connect and shake hands; Refused otherwise."""
        client = cls(*await asyncio.open_connection(host, port, limit=1 << 24))
        request = Request(
            host=host,
            target=path,
            extra_headers=[(k.encode(), v.encode()) for k, v in headers.items()],
            subprotocols=how.get("subprotocols", ["jmap"]),
        )
        client.writer.write(client.wire.send(request))
        event = await client.event()
        if isinstance(event, RejectConnection):
            body = b""
            while isinstance(more := await client.event(), RejectData):
                body += more.data
                if more.body_finished:
                    break
            await client.hang_up()
            raise Refused(event.status_code, body)
        assert isinstance(event, AcceptConnection)
        client.subprotocol = event.subprotocol
        return client

    async def event(self) -> Any:
        """Return the next event; pings are answered."""
        while not self.events:
            data = await self.reader.read(65536)
            self.wire.receive_data(data or None)
            self.events += self.wire.events()
        event = self.events.pop(0)
        if isinstance(event, Ping):
            self.writer.write(self.wire.send(event.response()))
            return await self.event()
        if isinstance(event, CloseConnection):
            self.closed = event.code
        return event

    async def text(self) -> str:
        """Return the next whole message; ConnectionError when there is none."""
        pieces = []
        while True:
            event = await self.event()
            if isinstance(event, CloseConnection):
                raise ConnectionResetError(event.code)
            if isinstance(event, Pong):
                continue
            assert isinstance(event, TextMessage)
            pieces.append(event.data)
            if event.message_finished:
                return "".join(pieces)

    async def receive(self) -> Any:
        """Return the next message, parsed."""
        return json.loads(await self.text())

    def send(self, message: Any) -> None:
        """Send one message: JSON of a value, or a string as it is."""
        text = message if isinstance(message, str) else json.dumps(message)
        self.writer.write(self.wire.send(TextMessage(text)))

    def send_pieces(self, *pieces: str) -> None:
        """Send one message in several frames."""
        for number, piece in enumerate(pieces, 1):
            event: Message[str] = TextMessage(
                piece, message_finished=number == len(pieces)
            )
            self.writer.write(self.wire.send(event))

    def send_bytes(self, data: bytes) -> None:
        """Send a binary message."""
        self.writer.write(self.wire.send(BytesMessage(data)))

    def ping(self, payload: bytes) -> None:
        """Send a ping."""
        self.writer.write(self.wire.send(Ping(payload)))

    async def hang_up(self) -> None:
        """Close the socket, whatever was said."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def close(self) -> None:
        """Close politely."""
        self.writer.write(self.wire.send(CloseConnection(1000)))
        while self.closed is None:
            await self.event()
        await self.hang_up()
