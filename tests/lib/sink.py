"""A server that answers SMTP as it is told: polite, broken or hostile."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import ssl

CLOSE = "close"  # hang up instead of answering
SILENT = "silent"  # never answer
Reply = str | list[str]


@dataclasses.dataclass(slots=True)
class Taken:
    """A message that was taken."""

    mail: str
    rcpt: list[str]
    data: bytes
    tls: bool


class Sink:
    """Listens on ``address`` (port 0: a free one) inside ``async with``.

    ``answers`` by verb ("" is the greeting, "." the end of data): a reply, or a list
    of which each connection and command takes the next, the last for ever.
    ``features`` are EHLO's.  ``commands`` holds all lines of all connections.
    """

    def __init__(
        self,
        *features: str,
        answers: dict[str, Reply] | None = None,
        context: ssl.SSLContext | None = None,
        address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self.features = features
        self.answers = dict(answers or {})
        self.context = context
        self.host, self.port = address
        self.commands: list[str] = []
        self.taken: list[Taken] = []
        self.connections = 0
        self.dialers: list[Any] = []  # of the test: to be closed after it
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError, OSError):
                await _Talk(self, reader, writer).run()
        finally:
            self._tasks.discard(task)
            writer.close()

    def answer(self, verb: str, default: str) -> str:
        """Return the next answer to a verb."""
        found = self.answers.get(verb, default)
        if isinstance(found, str):
            return found
        return found.pop(0) if len(found) > 1 else found[0]


class _Talk:
    """One connection."""

    def __init__(
        self, sink: Sink, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.sink = sink
        self.reader = reader
        self.writer = writer
        self.tls = False
        self.mail = ""
        self.rcpt: list[str] = []

    async def run(self) -> None:
        await self.say("", "220 sink ESMTP")
        while line := await self.reader.readline():
            text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            self.sink.commands.append(text)
            verb = text.partition(" ")[0].upper()
            if verb == "EHLO":
                lines = ["sink", *self.sink.features]
                last = len(lines) - 1
                reply = "\r\n".join(
                    f"250{' ' if n == last else '-'}{one}"
                    for n, one in enumerate(lines)
                )
                await self.say("EHLO", reply)
            elif verb == "STARTTLS":
                await self.start_tls()
            elif verb == "MAIL":
                self.mail, self.rcpt = text, []
                await self.say("MAIL", "250 2.1.0 ok")
            elif verb == "RCPT":
                if (await self.say("RCPT", "250 2.1.5 ok")).startswith("2"):
                    self.rcpt.append(text)
            elif verb == "DATA":
                await self.data()
            else:
                await self.say(verb, "221 bye" if verb == "QUIT" else "250 ok")

    async def data(self) -> None:
        default = "354 go" if self.rcpt else "554 no valid recipients"
        if not (await self.say("DATA", default)).startswith("354"):
            return
        if "early" in self.sink.answers:  # refuses without reading on
            self.writer.write(self.sink.answer("early", "").encode() + b"\r\n")
            await self.writer.drain()
            raise ConnectionResetError
        data = b""
        while (line := await self.reader.readline()) != b".\r\n":
            if not line:
                raise ConnectionResetError
            data += line
        if (await self.say(".", "250 2.0.0 taken")).startswith("2"):
            taken = Taken(self.mail, self.rcpt, data, self.tls)
            self.sink.taken.append(taken)

    async def start_tls(self) -> None:
        if (await self.say("STARTTLS", "220 go")).startswith("220"):
            if self.sink.context is None:  # a broken one
                await self.reader.read(1)
                self.writer.write(b"what?\r\n")
                raise ConnectionResetError
            await self.writer.start_tls(self.sink.context)
            self.tls = True

    async def say(self, verb: str, default: str) -> str:
        reply = self.sink.answer(verb, default)
        if reply == CLOSE:
            raise ConnectionResetError
        if reply == SILENT:
            await asyncio.Event().wait()
        self.writer.write(reply.encode() + b"\r\n")
        await self.writer.drain()
        return reply
