"""Hints between processes: who hears of what, and where hints may have been lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import time

from storage.bus import sockets
from storage.bus.sockets import SocketBus
from tests.lib.hearer import ANSWER
from tests.lib.sharing import run_dir
from tests.lib.waiting import until

ROOT = pathlib.Path(__file__).parents[3]
LIMIT = 30.0


class Hearer:
    """A child process on the bus."""

    def __init__(self, place, slot, peers, first, count):
        words = [place, slot, ",".join(peers), first, count]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.lib.hearer", *map(str, words)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )

    async def whole(self):
        line = await asyncio.to_thread(self.process.stdout.readline)
        assert line == b"whole\n"

    async def end(self):
        """Return what it counted."""
        self.process.terminate()
        line = await asyncio.to_thread(self.process.stdout.readline)
        self.kill()
        return json.loads(line)

    def kill(self):
        self.process.kill()
        self.process.wait(30)
        self.process.stdout.close()


@contextlib.asynccontextmanager
async def mesh(*slots):
    """Yield buses of one loop, all linked."""
    with run_dir() as place:
        buses = [
            await SocketBus.open(place, one, [s for s in slots if s != one])
            for one in slots
        ]
        try:
            await until(lambda: all(bus.whole for bus in buses))
            yield buses
        finally:
            for bus in buses:
                await bus.close()


@contextlib.asynccontextmanager
async def joined(place, slot, peers):
    """Yield a bus whose peers are other processes."""
    bus = await SocketBus.open(place, slot, peers)
    try:
        yield bus
    finally:
        await bus.close()
        await asyncio.sleep(0.01)  # transports close in the turns after


async def known(publisher, *accounts):
    """Wait until a publisher knows that somebody wants accounts."""
    await until(lambda: all(account in publisher._wanted for account in accounts))


def test_a_process_hears_of_the_accounts_that_it_serves_alone_and_soon():
    async def run():
        with run_dir() as place:
            async with contextlib.AsyncExitStack() as stack:
                slots = ["0", "1", "2"]
                hearers = []
                for slot, first in (("1", 100), ("2", 200)):
                    peers = [one for one in slots if one != slot]
                    hearers.append(Hearer(place, slot, peers, first, 100))
                    stack.callback(hearers[-1].kill)
                bus = await stack.enter_async_context(joined(place, "0", ["1", "2"]))
                took, answered = [], asyncio.Event()
                bus.subscribe(ANSWER + 100, lambda *_: answered.set())
                for hearer in hearers:
                    await hearer.whole()
                await known(bus, 100, 299)
                tries = 0  # until it is known there, too, what is wanted here
                while not answered.is_set():
                    tries += 1
                    bus.publish(100, tries)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(answered.wait(), 0.5)
                for modseq in range(tries + 1, tries + 201):
                    began = time.monotonic()
                    answered.clear()
                    bus.publish(100, modseq)
                    bus.publish(777, modseq)  # nobody's
                    async with asyncio.timeout(LIMIT):
                        await answered.wait()
                    took.append(time.monotonic() - began)
                assert statistics.median(took) < 0.04  # there and back
                one, two = [await hearer.end() for hearer in hearers]
                assert one["received"] == tries + 200
                assert 200 < one["sent"] <= tries + 200
                assert two["received"] == 0
                assert two["sent"] == 0

    asyncio.run(run())


def test_a_peer_that_does_not_read_loses_hints_and_is_told(monkeypatch):
    """Nothing grows without bound meanwhile."""
    monkeypatch.setattr(sockets, "MAX_KEPT", 1000)

    async def run():
        with run_dir() as place:
            async with contextlib.AsyncExitStack() as stack:
                hearer = Hearer(place, "1", ["0"], 1, 20_000)
                stack.callback(hearer.kill)
                bus = await stack.enter_async_context(joined(place, "0", ["1"]))
                await hearer.whole()
                await known(bus, 1, 20_000)
                (subscriber,) = bus._subscribers.values()
                hearer.process.send_signal(signal.SIGSTOP)
                largest = 0
                for modseq in range(40):
                    for account in range(1, 20_001):
                        bus.publish(account, modseq)
                        largest = max(largest, len(subscriber._waiting))
                        if not account % 500:
                            await asyncio.sleep(0)
                assert not subscriber.peer.writable
                assert subscriber._lost
                assert largest <= 1001
                hearer.process.send_signal(signal.SIGCONT)
                await until(lambda: not subscriber._lost)
                gap = await hearer.end()
                assert gap["gaps"] == 2  # the link's beginning, and this

    asyncio.run(run())


def test_a_link_that_ends_and_begins_makes_gaps():
    async def run():
        with run_dir() as place:
            async with contextlib.AsyncExitStack() as stack:
                bus = await stack.enter_async_context(joined(place, "0", ["1"]))
                gaps = []
                bus.on_gap(gaps.append)
                assert not bus.whole
                for round_ in range(1, 3):
                    hearer = Hearer(place, "1", ["0"], 1, 1)
                    stack.callback(hearer.kill)
                    await until(lambda n=round_: bus.whole and len(gaps) == 2 * n - 1)
                    hearer.kill()
                    await until(lambda n=round_: not bus.whole and len(gaps) == 2 * n)
                assert gaps == [None] * 4

    asyncio.run(run())


def test_a_new_subscription_has_a_gap_until_everybody_knows_of_it():
    async def run():
        async with mesh("0", "1", "2") as (one, two, three):
            gaps = []

            def note(accounts):
                if accounts is not None:  # of all, for a link that was just made
                    gaps.append(accounts)

            one.on_gap(note)
            await until(lambda: not one._new)
            stop = one.subscribe(7, lambda *_: None)
            one.subscribe(8, lambda *_: None)
            assert gaps == []
            await until(lambda: gaps)
            assert [sorted(accounts) for accounts in gaps] == [[7, 8]]
            for other in (two, three):
                assert {7, 8} <= other._wanted.keys()
            stop()
            one.subscribe(7, lambda *_: None)  # it is still heard of
            other = one.subscribe(9, lambda *_: None)
            await until(lambda: len(gaps) == 2)
            assert list(gaps[1]) == [9]
            other()

    asyncio.run(run())


def test_what_nobody_watches_any_more_is_withdrawn(monkeypatch):
    monkeypatch.setattr(sockets, "LINGER", 0.01)

    async def run():
        async with mesh("0", "1") as (one, two):
            stop = one.subscribe(7, lambda *_: None)
            one.subscribe(8, lambda *_: None)
            await known(two, 7, 8)
            stop()
            await until(lambda: 7 not in two._wanted)
            assert 8 in two._wanted
            assert one.watched() == [8]
            one.subscribe(7, lambda *_: None)
            await known(two, 7)

    asyncio.run(run())
