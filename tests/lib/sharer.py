"""A process that shares a database of numbers and writes them without pause.

python -m tests.lib.sharer URL RUN_DIR SLOT WRITERS [prefer|candidate|remote|later]

Numbers are SLOT * 10**9 + 0, 1, 2 ... in the order of their writing.  Standard output
says "open", "owner" and "follower" as that changes, "wrote N" now and then, and at the
end, after SIGTERM, what it did in one line of JSON.  SIGUSR1 stops the writing alone.
A "later" candidate says "ready", and joins at SIGUSR2.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, column, insert, table, text

from mailserverd.core.errors import MailError
from mailserverd.core.ports import SystemClock
from storage.engines import open_database, open_reader
from storage.metadata.counters import COMMITS, UNITS
from storage.metadata.owner.shared import Share, SharedDatabase
from storage.metadata.sql import Sql, p
from tests.lib import databases
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    from storage.api import Tx

ROOT = pathlib.Path(__file__).parents[2]
SLOT = 10**9
NAME = "numbers"
NONE = Sql(text("DROP TABLE IF EXISTS counted"))
TABLE = Sql(text("CREATE TABLE counted (n BIGINT PRIMARY KEY)"))
ADD = Sql(insert(table("counted", column("n", BigInteger))).values(n=p("n")))
ALL = Sql(text("SELECT n FROM counted ORDER BY n"))


def create(tx: Tx, _account: int, _args: None) -> None:
    """Make the table; databases on a server are used again."""
    tx.run(NONE)
    tx.run(TABLE)


def add(tx: Tx, _account: int, n: int) -> int:
    """Add a number; twice the same is a constraint's error."""
    tx.run(ADD, {"n": n})
    return n


def all_numbers(tx: Tx, _account: int, _args: None) -> list[int]:
    """Return all numbers."""
    return [row[0] for row in tx.all(ALL)]


async def make(directory: pathlib.Path) -> str:
    """Make a shard on the directory's engine that has the table; returns its URL."""
    url = await databases.engine_of(directory).prepare(directory, "shard", NAME)
    database = await open_database(url, "shard", SystemClock(), name=NAME)
    try:
        await database.write(create, 0, None)
    finally:
        await database.close()
    return url


async def numbers(url: str) -> list[int]:
    """Return all numbers that are there."""
    reader = await open_reader(url, "shard", SystemClock(), name=NAME)
    try:
        return await reader.read(all_numbers, 0, None)
    finally:
        await reader.close()


class Sharer:
    """A child process, and what it said."""

    def __init__(self, url: str, place: pathlib.Path, slot: int, *how: object) -> None:
        self.slot = slot
        self.said: list[str] = []
        program = [sys.executable, "-m", "tests.lib.sharer", url, place, slot, *how]
        self.process = subprocess.Popen(
            [str(word) for word in program], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:  # as they come
                self.said += [line.rstrip()]

    def wait_for(self, word: str, count: int = 1) -> None:
        """Wait until it has said something."""
        eventually(
            lambda: sum(line.startswith(word) for line in self.said) >= count,
            f"{word} from {self.slot}",
        )

    @property
    def owns(self) -> bool:
        """Tell whether it said last that it is the owner."""
        states = [line for line in tuple(self.said) if line in {"owner", "follower"}]
        return bool(states) and states[-1] == "owner"

    def wrote(self) -> int:
        """Return how many numbers it said to have written."""
        lines = [line for line in tuple(self.said) if line.startswith("wrote ")]
        return int(lines[-1].split()[1]) if lines else 0

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self) -> dict[str, Any]:
        """Let it finish; return what it did."""
        self.signal(signal.SIGTERM)
        status = self.process.wait(30)
        self._reader.join(30)
        assert status == 0, f"sharer {self.slot} ended with {status}"
        found: dict[str, Any] = json.loads(self.said[-1])
        return found

    def kill(self) -> None:
        """End it at once; harmless when it has ended."""
        self.process.kill()
        self.process.wait(30)
        self._reader.join(30)


class _Process:
    """What runs in the child."""

    def __init__(self, database: SharedDatabase, slot: int) -> None:
        self._database = database
        self._count = itertools.count(slot * SLOT)
        self.writing = True
        self.acknowledged: list[int] = []
        self.failed: list[str] = []
        self.longest = 0.0

    async def write(self) -> None:
        """Write one number after the other."""
        while self.writing:
            n = next(self._count)
            began = time.monotonic()
            try:
                assert await self._database.write(add, 0, n) == n
            except MailError as error:
                self.failed.append(f"{n}: {error}")
                await asyncio.sleep(0.01)
            else:
                self.acknowledged.append(n)
            self.longest = max(self.longest, time.monotonic() - began)

    async def report(self) -> None:
        """Say what changed."""
        owned, wrote = None, 0
        while True:
            if owned != self._database.owns:
                owned = self._database.owns
                say("owner" if owned else "follower")
            if len(self.acknowledged) - wrote >= 50:
                wrote = len(self.acknowledged)
                say(f"wrote {wrote}")
            await asyncio.sleep(0.005)


def say(text: str) -> None:
    """Write a line at once."""
    os.write(1, f"{text}\n".encode())


async def _main(url: str, place: str, slot: str, writers: str, role: str) -> None:
    loop = asyncio.get_running_loop()
    if role == "later":
        join = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR2, join.set)
        say("ready")
        await join.wait()
    share = Share(
        pathlib.Path(place), prefer=role == "prefer", candidate=role != "remote"
    )
    database = await SharedDatabase.open(
        url, "shard", SystemClock(), name=NAME, share=share
    )
    say("open")
    process, stop = _Process(database, int(slot)), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: setattr(process, "writing", False))
    reporting = asyncio.create_task(process.report())
    tasks = [asyncio.create_task(process.write()) for _ in range(int(writers))]
    await stop.wait()
    process.writing = False
    await asyncio.gather(*tasks)
    worst = database._waits.worst()
    await database.close()
    reporting.cancel()
    done = {
        "acknowledged": process.acknowledged,
        "failed": process.failed,
        "longest": process.longest,
        "worst": worst,
        "commits": COMMITS.labels(NAME)._value.get(),
        "units": UNITS.labels(NAME)._value.get(),
    }
    say(json.dumps(done))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:6]))
