"""What every bus promises (``storage.api.Bus``), within a process and between them."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from storage.bus.local import LocalBus
from storage.bus.sockets import SocketBus
from tests.lib.failing import MODES, FailingBus
from tests.lib.sharing import run_dir
from tests.lib.waiting import until

LIMIT = 10.0


@contextlib.asynccontextmanager
async def local():
    """Publisher and subscriber are one."""
    bus = LocalBus()
    try:
        yield bus, bus
    finally:
        await bus.close()


@contextlib.asynccontextmanager
async def sockets():
    """Publisher and subscriber in two processes, of which there are three."""
    with run_dir() as place:
        slots = ["0", "1", "background"]
        buses = [
            await SocketBus.open(place, one, [s for s in slots if s != one])
            for one in slots
        ]
        try:
            await until(lambda: all(bus.whole for bus in buses))
            yield buses[0], buses[1]
        finally:
            for bus in buses:
                await bus.close()


ENGINES = {"local": local, "sockets": sockets}


@pytest.fixture(params=ENGINES)
def bus(request):
    """Return a function that runs work on a publisher's and a subscriber's end."""

    def run(work):
        async def opened():
            async with asyncio.timeout(LIMIT), ENGINES[request.param]() as ends:
                await work(*ends)

        asyncio.run(opened())

    return run


class Heard(list):
    """What a subscription heard; ready when hints arrive."""

    def __call__(self, account, modseq):
        self.append((account, modseq))


async def subscribed(publisher, subscriber, account):
    """Subscribe, and wait until the publisher knows."""
    heard = Heard()
    stop = subscriber.subscribe(account, heard)
    at = 1
    while not heard:
        publisher.publish(account, at)
        at += 1
        await asyncio.sleep(0.001)
    highest = at - 1
    await until(lambda: heard[-1][1] == highest)
    heard.clear()
    return heard, stop, at


def test_who_asked_for_an_account_hears_of_it_alone(bus):
    async def work(publisher, subscriber):
        seven, _, at = await subscribed(publisher, subscriber, 7)
        eight, _, _ = await subscribed(publisher, subscriber, 8)
        publisher.publish(7, at)
        publisher.publish(9, 3)
        publisher.publish(8, 1000)
        await until(lambda: seven and eight)
        assert seven == [(7, at)]
        assert eight == [(8, 1000)]

    bus(work)


def test_the_last_hint_arrives_whatever_came_before(bus):
    async def work(publisher, subscriber):
        heard, _, at = await subscribed(publisher, subscriber, 7)
        for modseq in range(at, at + 10_000):
            publisher.publish(7, modseq)
        await until(lambda: heard and heard[-1][1] == at + 9_999)
        assert heard == sorted(heard)

    bus(work)


def test_hints_that_are_not_of_accounts(bus):
    async def work(publisher, subscriber):
        directory, _, _ = await subscribed(publisher, subscriber, 0)
        queue, _, _ = await subscribed(publisher, subscriber, -1)
        publisher.publish(-1, 0)
        await until(lambda: queue)
        publisher.publish(-1, 0)  # the same again is news
        await until(lambda: len(queue) == 2)
        assert not directory

    bus(work)


def test_after_unsubscribing_nothing_is_heard(bus):
    async def work(publisher, subscriber):
        mine, stop, at = await subscribed(publisher, subscriber, 7)
        other, _, _ = await subscribed(publisher, subscriber, 8)
        assert sorted(subscriber.watched()) == [7, 8]
        stop()
        stop()
        assert subscriber.watched() == [8]
        publisher.publish(7, at)
        publisher.publish(8, 1000)
        await until(lambda: other)
        assert not mine

    bus(work)


def test_a_subscriber_that_fails_is_alone_with_it(bus):
    async def work(publisher, subscriber):
        def fail(account, modseq):
            raise RuntimeError

        subscriber.subscribe(7, fail)
        heard, _, at = await subscribed(publisher, subscriber, 7)
        publisher.publish(7, at)
        await until(lambda: heard == [(7, at)])

    bus(work)


def test_an_echo_stays_in_its_process(bus):
    async def work(publisher, subscriber):
        heard, _, at = await subscribed(publisher, subscriber, 7)
        subscriber.echo(7, at)
        assert heard == [(7, at)]

    bus(work)


def test_a_bus_that_lost_nothing_is_whole(bus):
    async def work(publisher, subscriber):
        assert publisher.whole
        assert subscriber.whole

    bus(work)


def test_a_closed_bus_takes_what_is_said(bus):
    async def work(publisher, subscriber):
        await subscribed(publisher, subscriber, 7)
        await publisher.close()
        publisher.publish(7, 1000)

    bus(work)


def test_a_new_subscription_hears_or_is_told_of_a_gap(bus):
    """What was published before other processes knew of it may be missing."""

    async def work(publisher, subscriber):
        gaps, heard = [], Heard()
        subscriber.on_gap(gaps.append)
        subscriber.subscribe(7, heard)
        publisher.publish(7, 5)
        await until(lambda: heard or any(one is None or 7 in one for one in gaps))

    bus(work)


def test_nothing_it_is_told_makes_it_raise(bus):
    async def work(publisher, subscriber):
        for account in (-1, 0, 1, 2**62):
            for modseq in (0, 1, 2**62):
                publisher.publish(account, modseq)
                subscriber.echo(account, modseq)
        heard, _, at = await subscribed(publisher, subscriber, 7)
        publisher.publish(7, at)
        await until(lambda: heard == [(7, at)])

    bus(work)


@pytest.mark.parametrize("mode", MODES)
def test_a_failing_bus_raises_nothing_and_makes_nothing_up(bus, mode):
    async def work(publisher, subscriber):
        heard, _, at = await subscribed(publisher, subscriber, 7)
        failing = FailingBus(publisher, mode)
        for modseq in range(at, at + 50):
            failing.publish(7, modseq)
        failing.mode = "never"
        if mode in {"slowly", "after"}:
            await until(lambda: max(heard, default=(7, 0))[1] == at + 49)
        failing.publish(7, at + 50)
        await until(lambda: (7, at + 50) in heard)
        assert {account for account, _ in heard} == {7}
        assert {modseq for _, modseq in heard} <= set(range(at, at + 51))
        assert failing.failed

    bus(work)
