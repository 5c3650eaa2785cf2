"""IMAP for tests: the sessions on a socket without Twisted, and a strict client."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from mailserverd.services.search import Search
from protocols.imap.server import Server
from protocols.imap.services import ImapServices, ImapSettings
from tests.lib.mailhost import PASSWORD, MailHost, mail_host, offload

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator

    from protocols.imap.session import Session

USER = "alice@example.org"
TIME_LIMIT = 10.0
LITERAL = re.compile(rb"\{(\d+)\}\r\n\Z")


class NoIndex:
    """IMAP's substring search looks at texts: an index that is never asked."""

    async def search(self, *_: object) -> Any:
        raise MailError(Kind.UNAVAILABLE, "no index here")


def imap_services(host: MailHost, settings: ImapSettings) -> ImapServices:
    """Return what IMAP works with on a mail host."""
    return ImapServices(
        mailboxes=host.mailboxes,
        messages=host.messages,
        search=Search(host.shards, NoIndex(), host.messages, offload),
        receive=host.receive,
        authenticator=host.authenticator,
        changes=host.changes,
        clock=host.clock,
        settings=settings,
    )


class _Connection(asyncio.Protocol):
    """A session's transport on an asyncio socket."""

    def __init__(self, server: Server, sessions: set[_Connection], tls: bool) -> None:
        self._server = server
        self._sessions = sessions
        self.peer = "127.0.0.1"
        self.tls = tls
        self.can_start_tls = False
        self.transport: Any = None
        self.session: Session | None = None
        self.task: asyncio.Task[None] | None = None
        self.writes: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._sessions.add(self)
        self.session = self._server.connect(self)
        self.task = asyncio.get_running_loop().create_task(self.session.run())

    def data_received(self, data: bytes) -> None:
        assert self.session is not None
        self.session.channel.received(data)

    def connection_lost(self, _: Exception | None) -> None:
        assert self.session is not None
        self.session.channel.connection_lost()

    def pause_writing(self) -> None:
        assert self.session is not None
        self.session.channel.paused()

    def resume_writing(self) -> None:
        assert self.session is not None
        self.session.channel.resumed()

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self.transport.write(data)

    def pause_reading(self) -> None:
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self.transport.resume_reading()

    def start_tls(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.transport.close()

    def abort(self) -> None:
        self.transport.abort()


@dataclasses.dataclass(slots=True)
class ImapHost:
    """A mail host with IMAP on a port."""

    host: MailHost
    server: Server
    port: int
    connections: set[_Connection]
    clients: list[Client] = dataclasses.field(default_factory=list)

    async def client(self, user: str = USER, *, login: bool = True) -> Client:
        """Connect, read the greeting, and log in."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, limit=1 << 26
        )
        client = Client(reader, writer)
        self.clients.append(client)
        client.greeting = await client.response()
        if login:
            await client.ok(f'LOGIN {user} "{PASSWORD}"')
        return client


@contextlib.asynccontextmanager
async def imap_host(
    directory: pathlib.Path,
    settings: ImapSettings | None = None,
    *,
    tls: bool = False,
    **how: Any,
) -> AsyncIterator[ImapHost]:
    """Open a mail host that speaks IMAP; ``tls`` only pretends."""
    chosen = settings or ImapSettings(plaintext_auth=True)
    async with mail_host(directory, **how) as host:
        server = Server(imap_services(host, chosen))
        connections: set[_Connection] = set()
        listener = await asyncio.get_running_loop().create_server(
            lambda: _Connection(server, connections, tls), "127.0.0.1", 0
        )
        port = listener.sockets[0].getsockname()[1]
        opened = ImapHost(host, server, port, connections)
        try:
            yield opened
        finally:
            listener.close()
            for client in opened.clients:
                await client.close()
            for connection in connections:
                connection.abort()
            tasks = [c.task for c in connections if c.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=TIME_LIMIT)


class Client:
    """Reads whole responses, literals included; strict about what it reads."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self.writer = writer
        self._number = 0
        self.greeting = b""

    async def response(self) -> bytes:
        """Return one response without its final CRLF; b"" at the end."""
        data = b""
        async with asyncio.timeout(TIME_LIMIT):
            while True:
                line = await self._reader.readline()
                data += line
                match = LITERAL.search(line)
                if match is None:
                    break
                data += await self._reader.readexactly(int(match[1]))
        assert not data or data.endswith(b"\r\n"), data
        return data[:-2]

    def send(self, data: bytes) -> None:
        """Send octets as they are."""
        self.writer.write(data)

    def begin(self, command: str | bytes) -> str:
        """Send a command; return its tag."""
        self._number += 1
        tag = f"t{self._number}"
        text = command.encode() if isinstance(command, str) else command
        self.send(tag.encode() + b" " + text + b"\r\n")
        return tag

    async def finish(self, tag: str) -> tuple[bytes, list[bytes]]:
        """Return the tagged reply (without the tag) and what came before it."""
        untagged = []
        mark = tag.encode() + b" "
        while True:
            response = await self.response()
            if response.startswith(mark):
                return response[len(mark) :], untagged
            if not response:
                raise EOFError(untagged)
            untagged.append(response)

    async def run(self, command: str | bytes) -> tuple[bytes, list[bytes]]:
        """Send a command and return its outcome."""
        return await self.finish(self.begin(command))

    async def ok(self, command: str | bytes) -> list[bytes]:
        """Run a command that must succeed; return the untagged responses."""
        reply, untagged = await self.run(command)
        assert reply.startswith(b"OK"), (command, reply)
        return untagged

    async def no(self, command: str | bytes) -> bytes:
        """Run a command that must be refused; return the reply."""
        reply, _ = await self.run(command)
        assert not reply.startswith(b"OK"), (command, reply)
        return reply

    async def append(self, mailbox: str, message: bytes, extra: str = "") -> bytes:
        """APPEND with a synchronising literal; return the tagged reply."""
        tag = self.begin(f"APPEND {mailbox} {extra}{{{len(message)}}}")
        assert (await self.response()).startswith(b"+")
        self.send(message + b"\r\n")
        reply, _ = await self.finish(tag)
        return reply

    async def close(self) -> None:
        """Drop the connection."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
