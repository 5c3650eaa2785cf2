"""One connection to a PostgreSQL database: opened when needed, opened again when lost.

Every call is one round trip, and counted as such; two where statements cannot be kept
prepared.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import time
from typing import TYPE_CHECKING, Any

import asyncpg

from storage.metadata.counters import TRIPS
from storage.metadata.postgresql_errors import (
    DRIVER,
    describe,
    is_lost,
    is_temporary,
)
from storage.metadata.postgresql_tx import EACH, MANY, RUN, Ask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from storage.api import Row
    from storage.metadata.sql import PgSql

CONNECT_LIMIT = 5.0  # seconds
PATIENCE = 4.0  # seconds for which callers wait for a server that went away
RETRY = 0.1  # seconds between attempts to connect
PREPARED = 1000  # statements kept prepared per connection
NUMBER = re.compile(r"\$(\d+)")
SESSION = "SET jit = off"  # compiling costs more than any statement of ours


@dataclasses.dataclass(slots=True)
class Target:
    """Where a database is, and what is known of the way there.

    ``dsn`` holds the password and is shown nowhere; ``where`` is for messages.
    """

    dsn: str
    where: str
    prepared: bool = True  # False behind a pooler that changes connections
    synchronous: bool = True  # False when a commit has to ask for its sync
    down_since: float = 0.0  # on the monotonic clock; 0: it answered last time
    told: str = ""  # what the log says of a server that is away

    @property
    def away(self) -> bool:
        """Whether the server has been away for so long that nobody waits for it."""
        return bool(self.down_since) and time.monotonic() - self.down_since > PATIENCE

    def is_told(self, error: BaseException) -> bool:
        """Whether the log says so already: of a server that is away, once is enough."""
        away = self.down_since and is_temporary(error)
        before, self.told = self.told, describe(error) if away else ""
        return bool(self.told) and self.told == before

    async def connect(self) -> asyncpg.Connection[Any]:
        """Open a connection; raises what the driver does."""
        connection = await asyncpg.connect(
            self.dsn,
            timeout=CONNECT_LIMIT,
            statement_cache_size=PREPARED if self.prepared else 0,
            max_cached_statement_lifetime=0,
            server_settings={"application_name": "mailserverd"},
        )
        if self.prepared:
            try:
                await connection.execute(SESSION, timeout=CONNECT_LIMIT)
            except BaseException:
                connection.terminate()  # closing would wait for an answer, too
                raise
        return connection


class Link:
    """A connection of one user at a time, on the loop that uses it."""

    def __init__(self, target: Target, name: str) -> None:
        self.target = target
        self._trips = TRIPS.labels(name)
        self._each = 1 if target.prepared else 2
        self._connection: asyncpg.Connection[Any] | None = None
        self._wrapped: dict[Any, str] = {}

    async def open(self) -> bool:
        """Have a connection; True when it is a new one.

        Waits for a server that went away a moment ago; raises the driver's error
        when it has been away for ``PATIENCE``.
        """
        if self._connection is not None and not self._connection.is_closed():
            return False
        self._connection = None
        target = self.target
        while True:
            try:
                self._connection = await target.connect()
            except Exception as error:
                target.down_since = target.down_since or time.monotonic()
                if not is_lost(error) or target.away:
                    raise
                await asyncio.sleep(RETRY)
            else:
                target.down_since = 0.0
                return True

    def abort(self) -> None:
        """Drop the connection; whoever waits for an answer meets an error."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with contextlib.suppress(*DRIVER):
                await self._connection.close(timeout=CONNECT_LIMIT)
            self.abort()

    @contextlib.contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Drop the connection when what is done with it takes too long."""
        timer = asyncio.get_running_loop().call_later(seconds, self.abort)
        try:
            yield
        finally:
            timer.cancel()

    @property
    def _open(self) -> asyncpg.Connection[Any]:
        if self._connection is None:
            raise asyncpg.InterfaceError("the connection was given up")
        return self._connection

    async def _answer(
        self, call: Callable[..., Awaitable[Any]], *args: object, trips: int = 0
    ) -> Any:
        """Send something and wait for the answer."""
        self._trips.inc(trips or self._each)
        try:
            return await call(*args)
        except RuntimeError as error:  # of a transport that uvloop has closed
            raise ConnectionResetError(str(error)) from error

    # --- statements -------------------------------------------------------------

    async def script(self, text: str) -> str:
        """Run statements without parameters; return the last one's status."""
        status: str = await self._answer(self._open.execute, text, trips=1)
        return status

    async def fetch(self, text: str, *values: object) -> list[Row]:
        """Run one statement; return its rows."""
        rows = await self._answer(self._open.fetch, text, *values)
        return [tuple(row) for row in rows]

    async def send(self, ask: Ask) -> Any:
        """Execute what one unit waits for."""
        if ask.mode == EACH:
            return (await self._send_each([ask]))[0]
        sql: PgSql = ask.statement.postgresql
        if ask.mode == MANY:
            rows = [bound(sql, row) for row in ask.params]
            await self._answer(self._open.executemany, sql.text, rows)
            return None
        values = bound(sql, ask.params)
        if ask.mode == RUN and not sql.returns:
            status = await self._answer(self._open.execute, sql.text, *values)
            return _touched(status)
        found = await self.fetch(sql.text, *values)
        return len(found) if ask.mode == RUN else found

    async def send_alike(self, asks: Sequence[Ask]) -> list[Any]:
        """Execute one statement for several units, in one round trip."""
        if len(asks) == 1:
            return [await self.send(asks[0])]
        if asks[0].mode == EACH:
            return await self._send_each(asks)
        sql: PgSql = asks[0].statement.postgresql
        if asks[0].mode == MANY:
            rows = [bound(sql, row) for ask in asks for row in ask.params]
            await self._answer(self._open.executemany, sql.text, rows)
            return [None] * len(asks)
        counts = asks[0].mode == RUN
        text = self._numbered(sql, counts=counts)
        values = [(*bound(sql, ask.params), n) for n, ask in enumerate(asks)]
        answers: list[list[Row]] = [[] for _ in asks]
        for number, *row in await self._answer(self._open.fetchmany, text, values):
            answers[number].append(tuple(row))
        return [rows[0][0] for rows in answers] if counts else answers

    async def _send_each(self, asks: Sequence[Ask]) -> list[Any]:
        """Execute several SELECTs at once: each comes as an array of rows."""
        statements = [statement.postgresql for statement in asks[0].statement]
        text = self._joined(asks[0].statement, statements)
        values = [
            (number, *_flat(statements, ask.params)) for number, ask in enumerate(asks)
        ]
        rows = await self._answer(self._open.fetchmany, text, values)
        return [[part or [] for part in row[1:]] for row in rows]

    def _numbered(self, sql: PgSql, *, counts: bool) -> str:
        """Return the statement with the number of its execution in each row."""
        key = (sql.text, counts)
        if key not in self._wrapped:
            number, inner = f"${len(sql.names) + 1}::INTEGER", sql.text
            if counts:
                inner += "" if sql.returns else " RETURNING 1"
                text = f"WITH q AS ({inner}) SELECT {number}, count(*) FROM q"
            else:
                text = f"WITH q AS ({inner}) SELECT {number}, q.* FROM q"
            self._wrapped[key] = text
        return self._wrapped[key]

    def _joined(self, key: Any, statements: Sequence[PgSql]) -> str:
        """Return one SELECT of arrays, its parameters numbered through."""
        if key not in self._wrapped:
            parts, used = ["$1::INTEGER"], 1
            for sql in statements:
                inner = _shifted(sql.text, used)
                parts.append(f"(SELECT array_agg(q) FROM ({inner}) AS q)")
                used += len(sql.names)
            self._wrapped[key] = f"SELECT {', '.join(parts)}"
        return self._wrapped[key]


def bound(sql: PgSql, params: Any) -> tuple[Any, ...]:
    """Return the values in the order of ``$1``, ``$2`` ..."""
    return params if isinstance(params, tuple) else sql.values(params)


def _shifted(text: str, by: int) -> str:
    return NUMBER.sub(lambda match: f"${int(match[1]) + by}", text)


def _flat(statements: Sequence[PgSql], params: Sequence[Any]) -> list[Any]:
    return [
        value
        for sql, given in zip(statements, params, strict=True)
        for value in bound(sql, given)
    ]


def _touched(status: str) -> int:
    last = status.rpartition(" ")[2]
    return int(last) if last.isdigit() else 0
