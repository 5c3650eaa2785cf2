"""Units and a small program for tests of the SQLite engine.

python tests/lib/sqlite_units.py PATH acknowledge WRITERS COUNT
    WRITERS tasks add COUNT numbers each; "N" is written for each that is durable
python tests/lib/sqlite_units.py PATH fill
    adds blobs until storage is full, tells what the next operations did
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ports import SystemClock
from storage.metadata.sql import Sql, heavy, inline
from storage.metadata.sqlite import SqliteDatabase

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.api import Tx

SCHEMA = "CREATE TABLE number (n INTEGER PRIMARY KEY, body BLOB)"
ADD = Sql(text("INSERT INTO number (n, body) VALUES (:n, :body)"))
ALL = Sql(text("SELECT n FROM number ORDER BY n"))
COUNT = Sql(text("SELECT count(*) FROM number"))
SLOW = Sql(
    text(
        "WITH RECURSIVE c(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM c "
        "WHERE x < :n) SELECT max(x) FROM c"
    )
)
ROLLBACK = Sql(text("ROLLBACK"))


def add(tx: Tx, _account: int, n: int) -> int:
    """Add a number."""
    tx.run(ADD, {"n": n, "body": b""})
    return n


def add_body(tx: Tx, n: int, body: bytes) -> None:
    """Add a number (the account) with a body."""
    tx.run(ADD, {"n": n, "body": body})


def add_then(tx: Tx, _account: int, args: tuple[int, Callable[[], Any]]) -> Any:
    """Add a number, then do something that may raise."""
    add(tx, 0, args[0])
    return args[1]()


def add_then_roll_back(tx: Tx, _account: int, n: int) -> None:
    """Add a number and lose the whole transaction, as SQLite does on some errors."""
    add(tx, 0, n)
    tx.run(ROLLBACK)


@heavy
def add_slowly(tx: Tx, _account: int, n: int) -> None:
    """Add a number after a while."""
    tx.one(SLOW, {"n": 3_000_000})
    add(tx, 0, n)


@inline
def numbers(tx: Tx, _account: int, _args: None) -> list[int]:
    """Return all numbers."""
    return [row[0] for row in tx.all(ALL)]


def numbers_in_thread(tx: Tx, _account: int, _args: None) -> list[int]:
    """Return all numbers."""
    return numbers(tx, 0, None)


def read_for_ever(tx: Tx, _account: int, _args: None) -> None:
    """Read one statement after the other, without end."""
    while True:
        tx.one(SLOW, {"n": 10_000})


def add_in_reader(tx: Tx, _account: int, n: int) -> None:
    """Try to write where only reading is allowed."""
    add(tx, 0, n)


async def acknowledge(path: str, writers: int, count: int) -> None:
    """Write "N" and a newline for every number that is durable."""
    database = SqliteDatabase(path, SystemClock())

    async def writer(first: int) -> None:
        for n in range(first, first + count):
            await database.write(add, 0, n)
            os.write(1, b"%d\n" % n)

    await asyncio.gather(*(writer(w * 1_000_000) for w in range(writers)))
    os.write(1, b"end\n")
    await database.close()


async def fill(path: str) -> None:
    """Fill the disk, then free some of it."""
    database = SqliteDatabase(path, SystemClock())
    ballast = os.path.join(os.path.dirname(path), "ballast")
    done, kinds = 0, set()
    for round_ in range(1000):
        batch = [
            database.write(add_body, round_ * 4 + n, b"x" * 20_000) for n in range(4)
        ]
        for result in await asyncio.gather(*batch, return_exceptions=True):
            if isinstance(result, MailError):
                kinds.add(result.kind)
            elif result is None:
                done += 1
        if kinds:
            break
    assert kinds == {Kind.STORAGE_FULL}, kinds
    assert len(await database.read(numbers, 0, None)) == done
    os.remove(ballast)
    await database.write(add, 0, 10**9)
    assert len(await database.read(numbers, 0, None)) == done + 1
    await database.close()
    os.write(1, b"survived")


if __name__ == "__main__":
    if sys.argv[2] == "fill":
        asyncio.run(fill(sys.argv[1]))
    else:
        asyncio.run(acknowledge(sys.argv[1], int(sys.argv[3]), int(sys.argv[4])))
