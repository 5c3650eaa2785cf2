"""Work that one process does at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from mailserverd.core.ports import SystemClock
from mailserverd.services.leader import Leader
from storage.metadata import leases
from tests.lib import databases
from tests.lib.failing import FailingDatabase
from tests.lib.waiting import until

SHORT = 0.6  # seconds of a lease; a busy machine may pause for some tenths


class Job:
    """Background work that says when it runs."""

    def __init__(self):
        self.running = False
        self.runs = 0

    async def __call__(self):
        self.running = True
        self.runs += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.running = False


@contextlib.asynccontextmanager
async def running(leader, job):
    task = asyncio.create_task(leader.run(job))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait((task,))


def scenario(tmp_path, work):
    async def run():
        database = await databases.make(tmp_path, "shard")
        try:
            await work(database)
        finally:
            await database.close()

    asyncio.run(run())


def test_the_second_takes_over_when_the_first_ends(tmp_path):
    async def work(database):
        clock = SystemClock()
        one, two = (Leader(database, "x", clock, seconds=SHORT) for _ in range(2))
        first, second = Job(), Job()
        async with running(one, first) as ended, running(two, second):
            await until(lambda: first.running or second.running)
            assert first.running
            term = one.term
            await asyncio.sleep(2 * SHORT)  # it renews
            assert first.running
            assert not second.running
            ended.cancel()
            await until(lambda: second.running)
            assert not first.running
            assert two.term > term

    scenario(tmp_path, work)


def test_who_cannot_renew_stops_before_another_begins(tmp_path):
    async def work(database):
        clock = SystemClock()
        failing = FailingDatabase(database)
        one = Leader(failing, "x", clock, seconds=SHORT)
        two = Leader(database, "x", clock, seconds=SHORT)
        first, second = Job(), Job()
        both = []
        async with running(one, first), running(two, second):
            await until(lambda: first.running)
            failing.mode = "always"
            while not second.running:
                both.append(first.running and second.running)
                await asyncio.sleep(0.002)
            assert not first.running
            failing.mode = "never"
            await asyncio.sleep(2 * SHORT)
            assert second.running
            assert not first.running
        assert not any(both)

    scenario(tmp_path, work)


def test_a_renewal_that_hangs_leaves_time_for_stopping(tmp_path):
    class Hanging(FailingDatabase):
        """Once it ``refused``, a write is never answered."""

        refused = False

        async def write(self, work, account, args):
            if self.refused:
                await asyncio.Event().wait()
            self.refused = self.mode != "never"
            return await super().write(work, account, args)

    async def work(database):
        hanging = Hanging(database)
        leader = Leader(hanging, "x", SystemClock(), seconds=3 * SHORT)
        job = Job()
        async with running(leader, job):
            await until(lambda: job.running)
            hanging.mode = "always"
            until_then = time.monotonic() + 3 * SHORT  # at least: another's turn
            await until(lambda: not job.running)
            assert time.monotonic() < until_then - SHORT / 2

    scenario(tmp_path, work)


def test_a_lease_that_another_one_took_ends_the_work(tmp_path):
    async def work(database):
        job = Job()
        leader = Leader(database, "x", SystemClock(), owner=b"m" * 16, seconds=SHORT)
        async with running(leader, job):
            await until(lambda: job.running)
            await database.write(leases.release, 0, ("x", b"m" * 16))
            await database.write(leases.take, 0, ("x", b"o" * 16, 1.0))
            await until(lambda: not job.running)
            await until(lambda: job.running)  # the other one's has ended
            assert job.runs == 2

    scenario(tmp_path, work)


def test_work_that_ends_gives_the_lease_back(tmp_path):
    async def work(database):
        async def fail():
            raise ZeroDivisionError

        leader = Leader(database, "x", SystemClock())
        with pytest.raises(ZeroDivisionError):
            await leader.run(fail)
        other = ("x", b"o" * 16, 15)
        assert await database.write(leases.take, 0, other) == 2

    scenario(tmp_path, work)
