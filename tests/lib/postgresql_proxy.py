"""A proxy before PostgreSQL that cuts a connection at its COMMIT.

It follows the messages of the wire protocol (PostgreSQL manual, section 55.7), since a
COMMIT is to be cut off at one of its edges: before the server has it, while the server
has yet to get it and the client is gone already, or when only the answer is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from typing import TYPE_CHECKING

from tests.lib import ports, postgresql

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

SSL_REQUEST, CANCEL_REQUEST = 80877103, 80877102
BEFORE = "before"  # the server never gets the COMMIT
LATE = "late"  # the client is cut off; half a second later the server gets it
SILENT = "silent"  # the server gets it, the client no answer
HOW = (BEFORE, LATE, SILENT)
LATER = 0.5  # seconds
COMMIT = b"Q\0\0\0\x0bCOMMIT\0"


class Cut(Exception):
    """This connection ends now."""


class Proxy:
    """Listens on ``port`` while it is open (a context manager)."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = ports.free_base(range(10_000, 32_000), (0,))
        self.commits = 0  # seen
        self.cuts = 0  # made
        self._armed: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._ends: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._server = self._call(
            asyncio.start_server(self._session, "127.0.0.1", self.port)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        ports.release(self.port)

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _close(self) -> None:
        self._server.close()
        while self._ends:
            await self._drop()
            await asyncio.sleep(0.01)

    def url(self, name: str) -> str:
        """Return a database's URL through the proxy."""
        return postgresql.url_of(self.port, name)

    def cut(self, *how: str) -> None:
        """Cut the next commits, one after the other, in these ways."""
        self._armed.extend(how)

    def drop(self) -> None:
        """Cut all connections that there are now."""
        self._call(self._drop())

    async def _drop(self) -> None:
        for writer in self._ends:
            writer.transport.abort()

    # --- a connection ----------------------------------------------------------------

    async def _session(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._ends.add(writer)
        try:
            with contextlib.suppress(OSError):
                there, to_there = await asyncio.open_connection(
                    "127.0.0.1", self.target
                )
                self._ends.add(to_there)
                try:
                    await self._both((reader, writer), (there, to_there))
                finally:
                    self._ends.discard(to_there)
                    to_there.close()
        finally:
            self._ends.discard(writer)
            writer.transport.abort()

    async def _both(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        back = asyncio.ensure_future(_copy(server[0], client[1]))
        forth = asyncio.ensure_future(self._requests(client, server[1], back))
        _done, rest = await asyncio.wait(
            {back, forth}, return_when=asyncio.FIRST_COMPLETED
        )
        if forth.done() and isinstance(forth.exception(), Cut):
            return
        for one in rest:
            one.cancel()
        await asyncio.gather(back, forth, return_exceptions=True)

    async def _requests(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        there: asyncio.StreamWriter,
        back: asyncio.Future[None],
    ) -> None:
        reader, writer = client
        with contextlib.suppress(asyncio.IncompleteReadError):
            await _startup(reader, there)
            while True:
                head = await reader.readexactly(5)
                (length,) = struct.unpack("!I", head[1:])
                body = await reader.readexactly(length - 4)
                if head + body == COMMIT and (how := self._how()):
                    await _cut(how, writer, there, back)
                there.write(head + body)
                await there.drain()

    def _how(self) -> str:
        """Return how this commit is to be cut, if it is."""
        self.commits += 1
        if not self._armed:
            return ""
        self.cuts += 1
        return self._armed.pop(0)


async def _startup(reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
    """Pass on what comes before the first message with a type."""
    while True:
        head = await reader.readexactly(8)
        length, code = struct.unpack("!II", head)
        there.write(head + await reader.readexactly(length - 8))
        await there.drain()
        if code != SSL_REQUEST:  # that is answered with one octet
            return


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def _cut(
    how: str,
    writer: asyncio.StreamWriter,
    there: asyncio.StreamWriter,
    back: asyncio.Future[None],
) -> None:
    """End the connection at its COMMIT; raises ``Cut``."""
    back.cancel()  # no answer goes back from here on
    await asyncio.wait({back})
    writer.transport.abort()
    if how == LATE:
        await asyncio.sleep(LATER)
    if how != BEFORE:
        there.write(COMMIT)
        await there.drain()
        there.write_eof()  # the server works off what it got
        await asyncio.sleep(LATER)
    raise Cut
