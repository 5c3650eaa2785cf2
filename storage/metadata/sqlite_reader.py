"""Reading a SQLite file that another process owns (WAL: readers need no writer)."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from typing import TYPE_CHECKING, TypeVar

from mailserverd.core.errors import Kind, MailError
from storage.metadata.meta import EMPTY, check_meta, read_meta
from storage.metadata.sqlite_file import (
    BUSY,
    Readers,
    SqliteTx,
    code_of,
    connect_reader,
    snapshot,
    translate,
)

if TYPE_CHECKING:
    from mailserverd.core.ports import Clock
    from storage.api import Work

A = TypeVar("A")
R = TypeVar("R")


class SqliteReader:
    """``storage.api.Reader`` of a database of a kind at this release's schema.

    A snapshot that begins after a write returned to its caller, in whichever
    process, includes that write: the writer's commit is in the shared log by then.
    """

    def __init__(self, path: str, clock: Clock, *, name: str, kind: str) -> None:
        self.path = path
        self.name = name
        self._clock = clock
        self._closed = False
        if not os.path.exists(path):
            check_meta(EMPTY, kind, path)
        try:
            self._inline = connect_reader(path)
            try:
                meta = read_meta(self._inline)
                check_meta(meta, kind, path)
                self._inline.execute("PRAGMA busy_timeout=0")  # the loop never waits
            except BaseException:
                self._inline.close()
                raise
        except sqlite3.Error as error:
            problem = translate(error, path).kind
            raise MailError(problem, f"cannot open {path}: {error}") from error
        self.uuid = meta.uuid
        self._readers = Readers(path, name, clock)

    async def read(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a reading unit on one snapshot."""
        if self._closed:
            raise MailError(Kind.UNAVAILABLE, "shutting down")
        if getattr(work, "inline", False) is True:
            tx = SqliteTx(self._inline, self._clock.now())
            try:
                return snapshot(self._inline, tx, work, account, args)
            except sqlite3.Error as error:
                if code_of(error) not in BUSY:  # else a thread can wait for it
                    raise translate(error, self.name) from error
        return await self._readers.run(work, account, args)

    async def close(self) -> None:
        """Finish what runs, then close."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._readers.close)
            self._inline.close()
