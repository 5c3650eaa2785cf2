"""The process that holds Whoosh: ``python -m storage.search.whoosh.worker ROOT ROLE``.

Standard input is a socket to the daemon; one request is answered at a time.  The role
"index" writes and, when nothing is asked of it, merges; the role "search" reads.  It
ends when the daemon does (the socket is then at its end), or after ``IDLE`` seconds
without a request, giving its memory back.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from storage.search.whoosh.index import Indexes
from storage.search.whoosh.wire import (
    PREFIX,
    Head,
    check_query,
    decode,
    decode_query,
    encode,
    lengths,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = tuple[Head, list[bytes]]

IDLE = 60.0  # seconds without a request after which the process ends
KEEP_OPEN = 10.0  # seconds without a request after which readers are closed
QUIET = 1.0  # seconds without a request after which segments are merged
MEMORY = 2 << 30  # octets of address space: beyond, a request fails
NICENESS = {"index": 19, "search": 0}


class Worker:
    """Answers requests about the indexes below ``root``."""

    def __init__(self, root: str) -> None:
        self._notes: list[Head] = []
        self._indexes = Indexes(root, self._note)
        self._touched: set[int] = set()
        self._work: dict[str, Callable[[Head, list[bytes]], Answer]] = {
            "search": self._search,
            "update": self._update,
            "watermark": self._watermark,
            "drop": self._drop,
        }

    def _note(self, event: str, **facts: object) -> None:
        self._notes.append({"event": event, "facts": facts})

    def answer(self, head: Head, blobs: list[bytes]) -> bytes:
        """Return the frame that answers a request."""
        out: list[bytes] = []
        try:
            result, out = self._work[head["op"]](head, blobs)
        except MailError as e:
            result = {"error": [e.kind.name, e.text]}
        except (MemoryError, RecursionError):
            result = {"error": [Kind.UNAVAILABLE.name, "search is too large"]}
        result["notes"], self._notes = self._notes, []
        return encode(result, out)

    def rest(self, waited: float) -> None:
        """Use a quiet moment: merge what was written to, then close what was read."""
        while self._touched:
            with contextlib.suppress(MailError):
                account = self._touched.pop()
                if self._indexes.merge(account):
                    self._touched.add(account)
                    return
        if waited >= KEEP_OPEN:
            self._indexes.close()

    @property
    def busy(self) -> bool:
        """True while there is something left to merge."""
        return bool(self._touched)

    def _search(self, head: Head, _blobs: list[bytes]) -> Answer:
        query = decode_query(head["query"])
        check_query(query)
        ids, watermark = self._indexes.search(head["account"], query)
        return {"watermark": watermark}, [ids.tobytes()]

    def _update(self, head: Head, blobs: list[bytes]) -> Answer:
        documents = zip(head["emails"], blobs, strict=True)
        span = (head["since"], head["watermark"])
        self._indexes.update(head["account"], documents, head["removed"], *span)
        self._touched.add(head["account"])
        return {}, []

    def _watermark(self, head: Head, _blobs: list[bytes]) -> Answer:
        return {"watermark": self._indexes.watermark(head["account"])}, []

    def _drop(self, head: Head, _blobs: list[bytes]) -> Answer:
        self._indexes.drop(head["account"])
        return {}, []


def serve(sock: socket.socket, worker: Worker, idle: float) -> None:
    """Answer requests until the daemon is gone, or nothing came for ``idle``."""
    waited = 0.0
    while waited < idle:
        pause = 0.0 if worker.busy and waited >= QUIET else min(QUIET, idle)
        if select.select([sock], [], [], pause)[0]:
            request = _receive(sock)
            if not request:
                return
            sock.sendall(worker.answer(*request))
            waited = 0.0
        else:
            waited += pause
            worker.rest(waited)


def _receive(sock: socket.socket) -> tuple[Head, list[bytes]] | None:
    """Return the next request; None at the end."""
    prefix = _exactly(sock, PREFIX.size)
    if not prefix:
        return None
    head, length = lengths(prefix)
    data = _exactly(sock, length)
    return decode(data, head) if data else None


def _exactly(sock: socket.socket, count: int) -> bytes:
    """Return so many octets; b"" at the end."""
    data = bytearray(count)
    view: Any = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if not got:
            return b""
        view = view[got:]
    return bytes(data)


def main(root: str, role: str, idle: str = str(IDLE)) -> None:
    """Serve the socket that is standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the daemon's to act on
    os.nice(NICENESS[role])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    gone = contextlib.suppress(BrokenPipeError, ConnectionResetError)
    with socket.socket(fileno=0) as sock, gone:
        serve(sock, Worker(root), float(idle))


if __name__ == "__main__":
    main(*sys.argv[1:])
