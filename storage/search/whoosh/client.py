"""The daemon's side of search: Whoosh lives in processes of its own.

An indexing and a searching process are started when first needed and end by
themselves, so that an idle daemon holds neither Whoosh nor its readers in memory, a
merge never delays a search, and neither delays the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from array import array
from typing import TYPE_CHECKING

import storage
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from storage.search.whoosh.wire import (
    PREFIX,
    Head,
    check_query,
    decode,
    encode,
    encode_query,
    lengths,
)
from storage.text import Hits, Query

if TYPE_CHECKING:
    from collections.abc import Sequence

    Answer = tuple[Head, list[bytes]]

log = get_logger("search")
_GONE = (asyncio.IncompleteReadError, ConnectionError)
_SEARCH_LIMIT = 30.0  # seconds
_UPDATE_LIMIT = 600.0
_END_LIMIT = 5.0  # for a worker to end after its socket was closed
_AGAIN_AFTER = 1.0  # seconds after a worker that could not be started


class Process:
    """One worker process, started on demand; requests are answered in turn."""

    def __init__(self, root: str, role: str, idle: float) -> None:
        self._arguments = [root, role, str(idle)]
        self._turn = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._starting: asyncio.Future[None] | None = None
        self._failed_at = -_AGAIN_AFTER

    @property
    def pid(self) -> int:
        """The process id; 0 when there is none."""
        return self._process.pid if self._process else 0

    async def call(self, request: bytes, time_limit: float) -> Answer:
        """Send a request and return its answer.

        A worker that has ended meanwhile is started anew, once.  Whoever is
        cancelled or waits too long stops the worker, and with it the work.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(time_limit):
                    head, blobs = await self._exchange(request)
            except TimeoutError:
                await self._stop(at_once=True)
                raise MailError(Kind.UNAVAILABLE, "search took too long") from None
            except (*_GONE, OSError, ValueError) as e:  # ValueError: no JSON
                self._failed_at = asyncio.get_running_loop().time()
                log.error("search-worker-failed", role=self._arguments[1], error=str(e))  # noqa: TRY400 - a traceback says no more
                await self._stop(at_once=True)
                raise MailError(Kind.UNAVAILABLE, "search is unavailable") from e
            except BaseException:  # cancelled, not started, or no frame answered
                await self._stop(at_once=True)
                raise
        for note in head.pop("notes", ()):
            log.warning(note["event"], **note["facts"])
        if "error" in head:
            kind, text = head["error"]
            raise MailError(Kind[kind], text)
        return head, blobs

    async def _exchange(self, request: bytes) -> Answer:
        if self._streams:
            with contextlib.suppress(*_GONE):
                return await self._ask(request)
            await self._stop(at_once=False)
        await self._start()
        return await self._ask(request)

    async def _ask(self, request: bytes) -> Answer:
        if not self._streams:
            raise ConnectionError("no search worker")
        reader, writer = self._streams
        writer.write(request)
        await writer.drain()
        head, length = lengths(await reader.readexactly(PREFIX.size))
        return decode(await reader.readexactly(length), head)

    async def _start(self) -> None:
        """Start the process; one whose caller is cancelled starts all the same."""
        self._starting = asyncio.ensure_future(self._launch())
        await asyncio.shield(self._starting)

    async def _launch(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._failed_at + _AGAIN_AFTER:
            raise MailError(Kind.UNAVAILABLE, "search worker failed a moment ago")
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await loop.run_in_executor(None, self._spawn, theirs)
        ours.setblocking(False)
        self._streams = await asyncio.open_unix_connection(sock=ours)

    def _spawn(self, sock: socket.socket) -> subprocess.Popen[bytes]:
        above = os.path.dirname(os.path.dirname(os.path.abspath(storage.__file__)))
        path = [above, *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "storage.search.whoosh.worker"]
        return subprocess.Popen(
            [*command, *self._arguments],
            stdin=sock.fileno(),
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        )

    async def _stop(self, *, at_once: bool) -> None:
        """Close the socket and wait for the process; ``at_once`` kills it."""
        if self._starting:
            await asyncio.wait([self._starting])
            self._starting = None
        streams, self._streams = self._streams, None
        process, self._process = self._process, None
        if streams:
            streams[1].close()
        if process:
            if at_once:
                process.kill()
            loop = asyncio.get_running_loop()
            await asyncio.shield(loop.run_in_executor(None, _wait, process))

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            await self._stop(at_once=False)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def open_search(url: str) -> WhooshSearch:
    """Open the indexes under ``whoosh:///absolute``."""
    return WhooshSearch(url.partition("://")[2])


class WhooshSearch:
    """``SearchIndex`` on a local directory, one Whoosh index per account.

    ``idle`` is the time in seconds after which unused worker processes end.
    """

    def __init__(self, root: str, idle: float = 60.0) -> None:
        self.indexer = Process(root, "index", idle)
        self.searcher = Process(root, "search", idle)

    async def search(self, account: int, query: Query) -> Hits:
        """Return the emails whose indexed words match, and how far the index is."""
        check_query(query)
        request = encode(
            {"op": "search", "account": account, "query": encode_query(query)}
        )
        head, (ids,) = await self.searcher.call(request, _SEARCH_LIMIT)
        return Hits(array("Q", ids), head["watermark"])

    async def update(
        self,
        account: int,
        documents: Sequence[tuple[int, bytes]],
        removed: Sequence[int],
        since: int,
        watermark: int,
    ) -> None:
        """Index what changed between two modseqs, durably and as a whole."""
        head = {
            "op": "update",
            "account": account,
            "emails": [email for email, _ in documents],
            "removed": list(removed),
            "since": since,
            "watermark": watermark,
        }
        request = encode(head, [text for _, text in documents])
        await self.indexer.call(request, _UPDATE_LIMIT)

    async def watermark(self, account: int) -> int:
        """Return the modseq that the index has reached; 0 when there is none."""
        request = encode({"op": "watermark", "account": account})
        head, _ = await self.indexer.call(request, _UPDATE_LIMIT)
        return int(head["watermark"])

    async def drop(self, account: int) -> None:
        """Remove all that is indexed of an account."""
        await self.indexer.call(
            encode({"op": "drop", "account": account}), _UPDATE_LIMIT
        )

    async def close(self) -> None:
        """End the worker processes."""
        await self.indexer.close()
        await self.searcher.close()
