"""kill -9 of workers, of the background process and of the supervisor, under load.

A process that died is replaced while the others serve on; what was answered holds, once
and byte for byte.  CRASH_KILLS is the number of deaths on each engine (4).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import random
import signal
from typing import TYPE_CHECKING

import pytest

from tests.lib import crash, databases, seaweedfs
from tests.lib.crash import ACCOUNTS, PASSWORD, look, say, world
from tests.lib.daemon import alive
from tests.lib.ledger import Ledger
from tests.lib.load import Load
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lib.crash import Sink
    from tests.lib.daemon import Daemon
    from tests.lib.databases import Engine

KILLS = int(os.environ.get("CRASH_KILLS", "4"))
LIVES = 4  # deaths of children before the supervisor dies, too
WORKERS = 2


@dataclasses.dataclass(slots=True)
class Place:
    """Where everything is stored."""

    engine: Engine
    settings: str


@pytest.fixture(params=["sqlite and files", "postgresql and s3"])
def place(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Place]:
    name = request.param.split()[0]
    settings = f"[server]\nworkers = {WORKERS}\n"
    if name != "sqlite":
        settings += f'[storage]\nblobs = "{seaweedfs.url(tmp_path.name)}"\n'
    with databases.engine(name) as engine:
        yield Place(engine, settings)


def children(ours: Daemon) -> set[int]:
    """Return the processes of the supervisor: workers, and the background one.

    The kernel's list may show one more for a moment: a child of theirs.
    """
    return {pid for pid in ours.children() if parent(pid) == ours.pid}


def parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[1])
    return 0


async def one_life(
    ours: Daemon, sink: Sink, load: Load, rng: random.Random, kills: int
) -> None:
    """Kill children under load, each replaced, and at last the supervisor."""
    load.ledger.heard = asyncio.Event()
    running = asyncio.create_task(load.run(rng.getrandbits(40)))
    try:
        await asyncio.wait_for(load.ledger.heard.wait(), 30)
        for _ in range(kills):
            await asyncio.sleep(rng.uniform(0.1, 1.5))
            await asyncio.to_thread(one_death, ours, sink, rng)
        await asyncio.sleep(rng.uniform(0, 1))
        if running.done():
            running.result()  # a client failed: say why
    finally:
        load.over.set()
        sink.life += 1
        await asyncio.to_thread(crash.crash, ours)
    await asyncio.wait_for(running, 30)


def one_death(ours: Daemon, sink: Sink, rng: random.Random) -> None:
    """Kill one process, and wait for the one that takes its place."""
    before = children(ours)
    assert len(before) == WORKERS + 1, before
    victim = rng.choice(sorted(before))
    sink.life += 1
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    eventually(lambda: not alive(victim), "it lives on")
    eventually(lambda: len(children(ours) - {victim}) > WORKERS, "nobody takes over")


@pytest.mark.timeout(60 + 60 * KILLS)
def test_what_was_answered_holds_when_processes_die(
    place: Place, tmp_path: pathlib.Path
) -> None:
    seed = int(os.environ.get("CRASH_SEED", random.SystemRandom().getrandbits(32)))
    say(f"CRASH_SEED={seed}")
    rng, ledger, killed = random.Random(seed), Ledger(), 0
    with world(tmp_path, place.settings, place.engine) as (ours, sink):
        load = Load(ours, ACCOUNTS, PASSWORD, ledger)
        load.lasting = True
        try:
            while killed < KILLS:
                sink.life += 1
                ours.start()
                asyncio.run(one_life(ours, sink, load, rng, LIVES - 1))
                killed += LIVES
                look(ours, ledger, sink)
                say(f"{killed} deaths, answered: {dict(ledger.answers)}")
        finally:
            if ours.process is not None:
                ours.stop(signal.SIGKILL)
    assert ledger.answers.total() > 10 * KILLS
