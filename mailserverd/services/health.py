"""Which databases answer: for ``/readyz``, metrics, and who looks for a place."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import gauge
from storage.metadata import accounts, directory_read, queue_admin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.api import Database

ANSWER_LIMIT = 2.0  # seconds
STUCK = 30.0  # seconds after which a batch under way is a fault
INTERVAL = 5.0  # seconds between looks
UP = gauge("database_up", "1 while a database answers", ("database",))
# Asked every few seconds: nothing whose cost grows with the number of accounts.
ASK = {
    "directory": (directory_read.is_domain, ""),
    "queue": (queue_admin.stats, None),
}
SHARD = accounts.exists, None
log = get_logger("storage")


async def problem_of(database: Database) -> str:
    """Return why a database cannot be used just now; "" when it can."""
    if (seconds := database.stuck_for()) > STUCK:
        return f"a change has been waiting for {seconds:.0f} seconds"
    work: Any
    work, args = ASK.get(database.name, SHARD)
    try:
        async with asyncio.timeout(ANSWER_LIMIT):
            await database.read(work, 0, args)
    except TimeoutError:
        return "no answer in time"
    except MailError as error:
        return error.text
    return ""


async def shards_that_fail(shards: Sequence[Database]) -> str:
    """Name the shards that are down ("": none); UNAVAILABLE when no shard works.

    With one down the others go on, so that is no reason to take the daemon away.
    """
    problems = await asyncio.gather(*map(problem_of, shards))
    down = [s.name for s, why in zip(shards, problems, strict=True) if why]
    if len(down) == len(shards):
        raise MailError(Kind.UNAVAILABLE, "no shard works")
    return f"{', '.join(down)} down" if down else ""


async def watch(databases: Sequence[Database]) -> None:
    """Set the gauge of each database, log whenever one changes; until cancelled."""
    before = dict.fromkeys((one.name for one in databases), "")
    while True:
        problems = await asyncio.gather(*map(problem_of, databases))
        for database, problem in zip(databases, problems, strict=True):
            name = database.name
            UP.labels(name).set(0 if problem else 1)
            if bool(problem) != bool(before[name]):
                if problem:
                    log.error("database-fails", database=name, problem=problem)
                else:
                    log.info("database-works", database=name)
            before[name] = problem
        await asyncio.sleep(INTERVAL)
