"""kill -9 under load: what was answered holds, once and byte for byte.

CRASH_ROUNDS is the number of crashes (15).  After every fifteenth everything is read
back.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.lib.crash import ACCOUNTS, PASSWORD, Sink, crash, look, say, world
from tests.lib.ledger import Ledger
from tests.lib.load import Load

if TYPE_CHECKING:
    import pathlib

    from tests.lib.daemon import Daemon

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "15"))
EVERY = 15  # rounds between looks at everything


async def one_round(ours: Daemon, load: Load, rng: random.Random) -> None:
    load.ledger.heard = asyncio.Event()
    heard = asyncio.create_task(load.ledger.heard.wait())
    running = asyncio.create_task(load.run(rng.getrandbits(40)))
    await asyncio.wait({running, heard}, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait({running}, timeout=rng.uniform(0, 1))
    if running.done():
        running.result()  # a client failed before the crash: say why
        raise AssertionError("the load ended by itself")
    await asyncio.to_thread(crash, ours)
    await asyncio.wait_for(running, 30)
    heard.cancel()


def crash_while_starting(ours: Daemon, sink: Sink, rng: random.Random) -> None:
    """Recovery may be cut off like all else; the queue goes on right after it."""
    sink.life += 1
    ours.start(wait=False)
    time.sleep(rng.uniform(0.2, 1.2))  # a random moment, not a wait
    crash(ours)


@pytest.mark.timeout(60 * max(ROUNDS, 10))
def test_what_was_answered_holds_after_kill_9(tmp_path: pathlib.Path) -> None:
    seed = int(os.environ.get("CRASH_SEED", random.SystemRandom().getrandbits(32)))
    say(f"CRASH_SEED={seed}")
    rng, ledger = random.Random(seed), Ledger()
    with world(tmp_path) as (ours, sink):
        load = Load(ours, ACCOUNTS, PASSWORD, ledger)
        try:
            for number in range(1, ROUNDS + 1):
                if rng.random() < 0.2:
                    crash_while_starting(ours, sink, rng)
                sink.life += 1
                ours.start()
                asyncio.run(one_round(ours, load, rng))
                if number % EVERY == 0 or number == ROUNDS:
                    look(ours, ledger, sink)
                    say(f"{number} crashes, answered: {dict(ledger.answers)}")
        finally:
            if ours.process is not None:
                ours.stop(signal.SIGKILL)
    assert ledger.answers.total() > 10 * ROUNDS
    assert len(ledger.answers) == 9 or ROUNDS < EVERY, "every way was taken"
