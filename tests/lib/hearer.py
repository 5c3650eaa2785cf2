"""A process on the bus that answers each hint of an account with one of ANSWER more.

python -m tests.lib.hearer RUN_DIR SLOT PEERS FIRST COUNT

subscribes to COUNT accounts from FIRST on.  Standard output says "whole" when all peers
are there, and after SIGTERM in one line of JSON what was counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import signal
import sys

from storage.bus.sockets import HINTS, SocketBus

ANSWER = 1_000_000


async def _main(place: str, slot: str, peers: str, first: str, count: str) -> None:
    bus = await SocketBus.open(pathlib.Path(place), slot, peers.split(","))
    heard: dict[int, int] = {}
    gaps: list[bool] = []

    def hint(account: int, modseq: int) -> None:
        heard[account] = modseq
        bus.publish(account + ANSWER, modseq)

    bus.on_gap(lambda accounts: gaps.append(accounts is None))
    for account in range(int(first), int(first) + int(count)):
        bus.subscribe(account, hint)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    while not bus.whole:  # noqa: ASYNC110 - it says so to nobody
        await asyncio.sleep(0.005)
    os.write(1, b"whole\n")
    await stop.wait()
    await bus.close()
    done = {
        "heard": len(heard),
        "gaps": gaps.count(True),
        "received": HINTS.labels("received")._value.get(),
        "sent": HINTS.labels("sent")._value.get(),
    }
    os.write(1, json.dumps(done).encode() + b"\n")


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:6]))
