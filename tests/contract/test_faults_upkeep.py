"""The collector and ``storage check`` on engines that fail.

Whatever fails, and whenever: nothing that anybody needs is removed or "mended" away,
a run says that it could not be made, and the next one does what is left.
"""

from __future__ import annotations

import asyncio
import functools
import random
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.core.errors import MailError
from mailserverd.core.types import Recipient, system
from mailserverd.services.collector import Collector, Plan
from mailserverd.services.pruning import Pruning
from mailserverd.services.upkeep import Upkeep
from storage.compaction import Policy
from storage.metadata.deliver import add_email
from storage.queue import NewQueued
from tests.lib.failing import MODES, Failing, Faults
from tests.lib.mailhost import MailHost, mail_host
from tests.lib.shard import delivery

if TYPE_CHECKING:
    import pathlib

    from storage.model import BlobRef

PEOPLE = tuple(f"user{n}@example.org" for n in range(3))
ROLES = ("shard-0", "shard-1", "queue", "directory", "blobs")
EAGER = Plan(Policy(grace=0.0, linger=0.0), rate=0)


def message(number: int) -> bytes:
    text = random.Random(number).randbytes(250).hex()
    return f"From: s@example.net\r\nSubject: {number}\r\n\r\n{text}\r\n".encode()


async def remove_most(host: MailHost, address: str) -> None:
    """Destroy two messages of three of an account."""
    access = await host.account(address)
    boxes = (await host.mailboxes.list(access)).mailboxes
    inbox = next(b.mailbox_id for b in boxes if b.role == "inbox")
    view = await host.messages.view(access, inbox)
    ids = list(view.email_ids)
    del ids[::3]
    await host.messages.destroy(access, ids)


class World:
    """A host with garbage among what is needed, and what is needed."""

    def __init__(self, host: MailHost) -> None:
        self.host = host
        self.needed: dict[str, list[bytes]] = {}
        self.queued = ""
        self.stale: list[BlobRef] = []  # of writers that take their time

    def seal(self) -> None:
        """End a segment: the next message begins another."""
        files: Any = self.host.blobs
        files._inner._appender.seal_active()

    def collector(self) -> Collector:
        host = self.host
        return Collector(host.databases, host.queue, host.blobs, host.clock, EAGER)

    def upkeep(self) -> Upkeep:
        host = self.host
        return Upkeep(host.directory, host.shards, host.queue, host.blobs, host.changes)

    async def fill(self) -> None:
        host = self.host
        for number in range(12):
            await host.send(message(number), PEOPLE[number % 3])
            if number % 4 == 3:
                self.stale.append(await host.blobs.put(b"stale %d" % number))
                self.seal()
        await host.send(message(99), *PEOPLE)
        await host.acceptances.settle()
        ref = await host.blobs.put(message(100))
        to = (Recipient("friend@example.com"),)
        new = NewQueued(PEOPLE[0], to, ref, expires=1 << 40)
        self.queued = await host.queue.enqueue(new)
        self.seal()
        await host.blobs.put(b"the next segment")
        for address in PEOPLE:
            await remove_most(host, address)
            self.needed[address] = await host.mail(address)

    async def check_needed(self) -> None:
        for address, mail in self.needed.items():
            assert await self.host.mail(address) == mail
        entry = await self.host.queue.show(self.queued)
        assert await self.host.blobs.read(entry.message.blob) == message(100)

    async def check_stale(self) -> None:
        """Whoever comes late with a place is refused, or what lies there is kept."""
        for account in range(1, len(PEOPLE) + 1):
            for ref in self.stale:
                late = delivery(account, blob=ref, size=ref.size)
                if await self.attempt(
                    self.host.shards.write(system(account), add_email, late)
                ):
                    assert await self.host.blobs.read(ref)

    async def attempt(self, work: Any) -> Any:
        """Do something that may fail for now, and no other way."""
        try:
            return await work
        except MailError as error:
            assert error.temporary, error
            return None


def run(tmp_path: pathlib.Path, work: Any) -> None:
    async def whole() -> None:
        faults = Faults()
        async with (
            asyncio.timeout(30),
            mail_host(tmp_path, *PEOPLE, shards=2, wrap=faults.wrap) as host,
        ):
            world = World(host)
            await world.fill()
            await work(world, faults)

    asyncio.run(whole())


@pytest.mark.parametrize("mode", MODES)
def test_a_collection_that_fails_removes_nothing_that_is_needed(
    tmp_path: pathlib.Path, mode: str
) -> None:
    async def work(world: World, faults: Faults) -> None:
        for role in ROLES:
            faults.set(mode, role)
            done = await world.attempt(world.collector().run())
            failed = faults[role].failed
            faults.mend()
            assert done is None or mode in {"slowly", "sometimes"} or not failed
            await world.check_needed()
        assert faults.failed
        for _ in range(3):
            last = await world.collector().run()
        await world.check_needed()
        octets = sum(info.octets for info in await world.host.blobs.segments())
        assert last.garbage < octets / 2, last
        report = await world.upkeep().check(lambda _: None)
        assert report["faults"] == []

    run(tmp_path, work)


class Once:
    """Lets one call fail, the ``at``-th of all engines together."""

    def __init__(self, engines: list[Any], at: int, mode: str) -> None:
        self.left = at
        self._mode = mode
        for engine in engines:
            engine._call = functools.partial(self._call, engine)

    async def _call(self, engine: Any, name: str, *args: Any) -> Any:
        self.left -= 1
        engine.mode = self._mode if self.left == -1 else "never"
        return await Failing._call(engine, name, *args)


@pytest.mark.parametrize("mode", ["always", "after"])
def test_a_collection_that_fails_anywhere_goes_on_from_there(
    tmp_path: pathlib.Path, mode: str
) -> None:
    """Each call of a run fails once, one after the other."""

    async def work(world: World, faults: Faults) -> None:
        host, step = world.host, 0
        engines = [*host.databases, host.queue.database, host.blobs]
        while (once := Once(engines, step, mode)).left >= 0:
            done = await world.attempt(world.collector().run())
            if once.left >= 0:  # it needed fewer
                assert done is not None
                break
            step += 1
        assert step > 12
        faults.mend()
        for engine in engines:
            del engine._call
        await world.check_needed()
        assert (await world.upkeep().check(lambda _: None))["faults"] == []
        await world.check_stale()

    run(tmp_path, work)


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_check_on_failing_engines_calls_nothing_missing_and_mends_nothing_away(
    tmp_path: pathlib.Path, mode: str, repair: bool
) -> None:
    async def work(world: World, faults: Faults) -> None:
        for role in ROLES:
            faults.set(mode, role)
            report = await world.attempt(
                world.upkeep().check(lambda _: None, repair=repair)
            )
            faults.mend()
            if report is not None:
                untrue = [f for f in report["faults"] if "made to fail" not in f]
                assert untrue == report["repaired"] == [], (role, report)
            await world.check_needed()
        for address in PEOPLE:
            assert await world.host.account(address)
        report = await world.upkeep().check(lambda _: None)
        assert report["faults"] == []

    run(tmp_path, work)


@pytest.mark.parametrize("mode", MODES)
def test_pruning_that_fails_is_made_up_for(tmp_path: pathlib.Path, mode: str) -> None:
    async def work(world: World, faults: Faults) -> None:
        pruning = Pruning(world.host.databases, world.host.queue, world.host.clock)
        for role in ("shard-0", "queue"):
            faults.set(mode, role)
            await world.attempt(pruning.run())
            faults.mend()
            await world.check_needed()
        await pruning.run()
        await world.check_needed()

    run(tmp_path, work)
