"""The owner's side alone: what its peers are told when it leaves."""

from __future__ import annotations

import asyncio

from mailserverd.core import ipc
from storage.metadata.owner.serving import Serving
from tests.lib import sqlite_units as units
from tests.lib.sharing import run_dir
from tests.lib.waiting import until


class Named:
    """No more than the name of a database: nothing may be written to it."""

    name = "shared"


def test_an_owner_that_leaves_answers_nothing_that_it_did_not_do():
    async def work(place):
        serving = Serving(Named(), lambda: None)
        await serving.start(place / "s")
        peer = await ipc.connect(place / "s", {"moving": lambda *_: None})
        try:
            await until(lambda: serving._server.peers)
            (served,) = serving._server.peers
            await serving.drain(to_preferred=True)
            answers = []
            unit = (b"k" * 16, units.add, 0, 1, False, 0)
            peer.request("unit", unit, lambda *_: answers.append(peer.closed))
            await until(lambda: served.under_way)
            peer._transport.pause_reading()  # what is said to it has to wait
            served.tell("moving", bytes(8 << 20))
            serving.end()
            for _ in range(10):
                await asyncio.sleep(0)
            peer._transport.resume_reading()
            await until(lambda: peer.closed)
            assert answers == [True]
        finally:
            peer.close()

    with run_dir() as place:
        asyncio.run(work(place))
