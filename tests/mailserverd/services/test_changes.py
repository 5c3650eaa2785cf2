"""Hints that may have been lost are made up for by looking."""

from __future__ import annotations

import asyncio
import contextlib

from mailserverd.core.errors import Kind, MailError
from mailserverd.services import changes as module
from mailserverd.services.changes import DIRECTORY, Changes
from storage.bus.local import LocalBus
from tests.lib.waiting import until


class LossyBus(LocalBus):
    """A bus whose gaps a test makes."""

    def __init__(self):
        super().__init__()
        self.links_up = True
        self.gap = None

    def on_gap(self, callback):
        self.gap = callback

    @property
    def whole(self):
        return self.links_up


def scenario(work, look):
    async def run():
        bus = LossyBus()
        changes = Changes(bus, look)
        task = asyncio.create_task(changes.watch())
        try:
            await work(bus, changes)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())


def test_after_a_gap_each_watched_account_is_looked_at_once():
    looked, at_once, most = [], 0, 0

    async def look(account):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1
        looked.append(account)
        if account == 5:
            raise MailError(Kind.UNAVAILABLE)
        return account * 10

    async def work(bus, changes):
        heard = []
        for account in [*range(1, 51), DIRECTORY]:
            changes.subscribe(account, lambda *hint: heard.append(hint))
        bus.gap(None)
        await until(lambda: len(heard) == 50)
        assert sorted(looked) == list(range(1, 51))
        rest = [(one, one * 10) for one in range(1, 51) if one != 5]
        assert sorted(heard) == [(DIRECTORY, 0), *rest]
        assert most <= module.LOOKS

    scenario(work, look)


def test_a_gap_of_some_accounts_looks_at_these_alone():
    looked = []

    async def look(account):
        looked.append(account)
        return 1

    async def work(bus, changes):
        for account in (1, 2, 3):
            changes.subscribe(account, lambda *hint: None)
        bus.gap([2])
        await until(lambda: looked)
        assert looked == [2]

    scenario(work, look)


def test_while_a_link_is_down_accounts_are_looked_at_again_and_again(monkeypatch):
    monkeypatch.setattr(module, "POLL", 0.01)
    looked = []

    async def look(account):
        looked.append(account)
        return 1

    async def work(bus, changes):
        changes.subscribe(1, lambda *hint: None)
        bus.links_up = False
        bus.gap(None)
        await until(lambda: len(looked) > 3)
        bus.links_up = True
        bus.gap(None)
        await asyncio.sleep(0.05)
        seen = len(looked)
        await asyncio.sleep(0.05)
        assert len(looked) == seen

    scenario(work, look)


def test_watching_ends_when_it_is_cancelled_just_as_there_is_a_gap():
    """asyncio.wait_for of Python 3.11 would go on with what it waited for."""

    async def look(_account):
        return 1

    async def run():
        for turns in range(6):
            bus = LossyBus()
            bus.links_up = False
            task = asyncio.create_task(Changes(bus, look).watch())
            for _ in range(6):
                await asyncio.sleep(0)
            bus.gap(None)
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,), timeout=5)
            assert task.cancelled(), turns

    asyncio.run(run())
