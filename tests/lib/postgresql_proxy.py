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

    Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]

SSL_REQUEST, CANCEL_REQUEST = 80877103, 80877102
BEFORE = "before"  # the server never gets the COMMIT
LATE = "late"  # the client is cut off; half a second later the server gets it
SILENT = "silent"  # the server gets it, the client no answer
HOW = (BEFORE, LATE, SILENT)
LATER = 0.5  # seconds
QUERY = b"Q"
COMMIT = b"Q\0\0\0\x0bCOMMIT\0"


class Way:
    """A connection through the proxy."""

    def __init__(
        self, client: asyncio.StreamWriter, server: asyncio.StreamWriter
    ) -> None:
        self.client, self.server = client, server
        self._answered: asyncio.Event | None = (
            None  # when the client is to hear nothing
        )

    async def answers(self, reader: asyncio.StreamReader) -> None:
        """Pass on what the server says, until the connection is cut."""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._answered is not None:
                    self._answered.set()
                    continue
                self.client.write(data)
                await self.client.drain()

    async def cut(self, how: str) -> None:
        """Cut off the client at its COMMIT."""
        self._answered = asyncio.Event()
        if how == SILENT:
            self.server.write(COMMIT)
            await self._answered.wait()
        self.client.transport.abort()
        if how == LATE:
            await asyncio.sleep(LATER)
            self.server.write(COMMIT)
            await self._answered.wait()


class Proxy:
    """Listens on ``port`` while it is open (a context manager)."""

    def __init__(self, cluster: postgresql.Cluster) -> None:
        self.cluster = cluster
        self.port = ports.free_base(range(10_000, 32_000), (0,))
        self.commits = 0  # seen
        self.cuts = 0  # made
        self.deaf = False  # what is asked gets no further, and no answer
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
                    "127.0.0.1", self.cluster.port
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

    async def _both(self, client: Ends, server: Ends) -> None:
        way = Way(client[1], server[1])
        back = asyncio.ensure_future(way.answers(server[0]))
        forth = asyncio.ensure_future(self._requests(client[0], way))
        await asyncio.wait({back, forth}, return_when=asyncio.FIRST_COMPLETED)
        for one in (back, forth):
            one.cancel()
        await asyncio.gather(back, forth, return_exceptions=True)

    async def _requests(self, reader: asyncio.StreamReader, way: Way) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await _startup(reader, way.server)
            while True:
                head = await reader.readexactly(5)
                (length,) = struct.unpack("!I", head[1:])
                body = await reader.readexactly(length - 4)
                if self.deaf and head[:1] == QUERY:
                    continue
                if head + body == COMMIT and (how := self._how()):
                    await way.cut(how)
                    return
                way.server.write(head + body)
                await way.server.drain()

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
