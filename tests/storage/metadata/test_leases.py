"""Who does a piece of background work."""

from __future__ import annotations

import asyncio
import time

from storage.metadata import leases
from tests.lib import databases
from tests.lib.shard import Shard

ME, YOU = b"m" * 16, b"y" * 16


def test_one_at_a_time_until_it_ends_or_is_given_back():
    shard = Shard()
    assert shard.run(leases.take, ("prune", ME, 15)) == 1
    assert shard.run(leases.take, ("prune", YOU, 15)) is None
    shard.now += 15
    assert shard.run(leases.take, ("prune", YOU, 15)) is None  # not over yet
    assert shard.run(leases.take, ("other", YOU, 15)) == 1
    shard.now += 1
    assert shard.run(leases.take, ("prune", YOU, 15)) == 2
    assert not shard.run(leases.release, ("prune", ME))
    assert shard.run(leases.release, ("prune", YOU))
    assert shard.run(leases.take, ("prune", ME, 15)) == 3


def test_renewing_keeps_the_term_and_returning_does_not_bring_an_old_one_back():
    shard = Shard()
    assert shard.run(leases.take, ("prune", ME, 15)) == 1
    shard.now += 10
    assert shard.run(leases.take, ("prune", ME, 15)) == 1
    shard.now += 10
    assert shard.run(leases.take, ("prune", YOU, 15)) is None
    shard.run(leases.release, ("prune", ME))
    assert shard.run(leases.take, ("prune", ME, 15)) == 2


def test_a_lease_ends_by_the_time_of_its_database(place):
    """Which no process's own clock changes where the database has one."""

    async def run():
        database = await databases.make(place, "shard")
        try:
            assert await database.write(leases.take, 0, ("x", ME, 0.3)) == 1
            began, term = time.monotonic(), None
            while term is None:
                term = await database.write(leases.take, 0, ("x", YOU, 60))
                assert time.monotonic() - began < 20
                await asyncio.sleep(0.01)
            assert term == 2
            assert time.monotonic() - began > 0.2
            assert await database.write(leases.take, 0, ("x", ME, 1)) is None
            assert await database.write(leases.release, 0, ("x", YOU))
            assert await database.write(leases.take, 0, ("x", ME, 1)) == 3
        finally:
            await database.close()

    asyncio.run(run())
