"""A database that could not be opened, in its place until it can be.

The daemon starts although a shard is down: those who live there get temporary
errors, everybody else is served.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeVar

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from storage.api import Database, Work

A = TypeVar("A")
R = TypeVar("R")
log = get_logger("storage")

FIRST, LAST = 0.5, 10.0  # seconds between tries: doubled from one to the other


class AbsentDatabase:
    """A ``Database`` that raises UNAVAILABLE until ``open_again`` has succeeded.

    ``uuid`` is what the database must turn out to have: another one in its place is
    closed again.  Call ``start`` on the event loop.
    """

    def __init__(
        self,
        name: str,
        uuid: bytes,
        open_again: Callable[[], Awaitable[Database]],
        problem: str,
    ) -> None:
        self.name = name
        self.uuid = uuid
        self._open_again = open_again
        self._problem = ""
        self._database: Database | None = None
        self._trying: asyncio.Task[None] | None = None
        self._note(problem)

    def start(self) -> None:
        """Begin to try, in the background."""
        self._trying = asyncio.get_running_loop().create_task(self._try())

    async def write(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a writing unit, or raise UNAVAILABLE at once."""
        return await self._opened().write(work, account, args)

    async def read(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a reading unit, or raise UNAVAILABLE at once."""
        return await self._opened().read(work, account, args)

    def stuck_for(self) -> float:
        """Return for how long the batch under way has been; 0 while absent."""
        return 0.0 if self._database is None else self._database.stuck_for()

    async def close(self) -> None:
        """End trying, or close what was opened."""
        if self._trying is not None:
            self._trying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._trying
        if self._database is not None:
            await self._database.close()

    def _opened(self) -> Database:
        if self._database is None:
            raise MailError(Kind.UNAVAILABLE, "storage is temporarily unavailable")
        return self._database

    async def _try(self) -> None:
        pause = FIRST
        while self._database is None:
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST)
            try:
                self._database = await self._attempt()
            except MailError as error:
                self._note(error.text)
            except Exception:
                log.exception("database-not-opened", database=self.name)
        log.info("database-up", database=self.name)

    async def _attempt(self) -> Database:
        found = await self._open_again()
        if found.uuid == self.uuid:
            return found
        await found.close()
        raise MailError(
            Kind.UNAVAILABLE,
            f"{self.name} has UUID {found.uuid.hex()}, not {self.uuid.hex()}",
        )

    def _note(self, problem: str) -> None:
        """Log what is wrong, once as long as it stays the same."""
        if problem != self._problem:
            self._problem = problem
            log.error("database-down", database=self.name, problem=problem)
