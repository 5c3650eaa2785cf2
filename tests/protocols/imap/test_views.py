"""The registry of views: loaded once, refreshed together, dropped in time."""

from __future__ import annotations

import asyncio
from array import array
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Access
from protocols.imap.view import Form
from protocols.imap.views import REST, MailboxGoneError, Views
from storage.model import AccountState, Mailbox, MailboxList, View, ViewDelta

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocols.imap.view import Selected

ACCESS = Access(1, 1)
COUNTS = (0,) * 8


class Source:
    """Mailboxes with messages 1..n; every message is one modseq."""

    def __init__(self) -> None:
        self.counts = {1: 3, 2: 5}
        self.uidvalidity = 7
        self.complete = True
        self.error: MailError | None = None
        self.views = self.deltas = self.lists = 0
        self.callbacks: list[Callable[[int, int], None]] = []

    async def view(self, _: Access, mailbox_id: int) -> View:
        self.views += 1
        await asyncio.sleep(0)
        count = self.counts[mailbox_id]
        numbers = range(1, count + 1)
        return View(
            mailbox_id,
            self.uidvalidity,
            count + 1,
            count,
            array("I", numbers),
            array("Q", numbers),
            array("Q", numbers),
            array("I", [0] * count),
            [],
        )

    async def delta(self, _: Access, mailbox_id: int, since: int) -> ViewDelta:
        self.deltas += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        count = self.counts[mailbox_id]
        changed = tuple((n, n, n, 0, ()) for n in range(since + 1, count + 1))
        return ViewDelta(count, count + 1, changed, (), complete=self.complete)

    async def list(self, _: Access) -> MailboxList:
        self.lists += 1
        state = AccountState(1, 9, 9, 9, 9, 0, 0, 0, 0, 0)
        return MailboxList(state, tuple(map(self.mailbox, self.counts)))

    def mailbox(self, number: int) -> Mailbox:
        modseq = self.counts[number]
        return Mailbox(
            number,
            f"m{number}",
            None,
            f"m{number}",
            "",
            True,
            0,
            self.uidvalidity,
            modseq + 1,
            modseq,
            9,
            1,
            1,
            *COUNTS,
        )

    def subscribe(
        self, account: int, callback: Callable[[int, int], None]
    ) -> Callable[[], None]:
        assert account == ACCESS.account
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def arrive(self, number: int, *, hint: bool = True) -> None:
        self.counts[number] += 1
        if hint:
            for callback in tuple(self.callbacks):
                callback(ACCESS.account, 100 + sum(self.counts.values()))


def make(**how: Any) -> tuple[Source, Views]:
    source = Source()
    return source, Views(source, source, source, **how)


async def select(source: Source, views: Views, number: int = 1) -> Selected:
    return await views.select(ACCESS, source.mailbox(number), read_only=False)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_sessions_share_one_load() -> None:
    async def main() -> None:
        source, views = make()
        chosen = await asyncio.gather(*(select(source, views) for _ in range(9)))
        assert source.views == 1
        assert len({id(selected.view) for selected in chosen}) == 1
        assert len(source.callbacks) == 1
        for selected in chosen:
            views.release(selected)
        assert not source.callbacks
        again = await select(source, views)
        assert source.views == 1
        assert again.count == 3

    asyncio.run(main())


def test_who_tries_a_failed_load_again_shares_the_next() -> None:
    async def main() -> None:
        source, views = make()
        load = source.view

        async def failing(_: Access, __: int) -> View:
            source.view = load  # type: ignore[method-assign] # mended
            await asyncio.sleep(0)
            raise MailError(Kind.UNAVAILABLE)

        source.view = failing  # type: ignore[method-assign] # once

        async def stubborn() -> Selected:
            try:
                return await select(source, views)
            except MailError:
                return await select(source, views)

        chosen = await asyncio.gather(stubborn(), select(source, views))
        assert source.views == 1
        assert chosen[0].view is chosen[1].view

    asyncio.run(main())


def test_a_rested_view_is_brought_up_to_date() -> None:
    async def main() -> None:
        source, views = make()
        views.release(await select(source, views))
        source.arrive(1)
        selected = await select(source, views)
        assert (selected.count, source.views, source.deltas) == (4, 1, 1)
        assert selected.sync(expunge=True, form=Form.PLAIN) == b""

    asyncio.run(main())


def test_refreshes_are_shared_by_those_who_came_before() -> None:
    async def main() -> None:
        source, views = make()
        sessions = [await select(source, views) for _ in range(10)]
        source.arrive(1)
        await asyncio.gather(*(views.refresh(selected) for selected in sessions))
        assert source.deltas == 2  # the first, and one for all who came meanwhile
        news = [s.sync(expunge=True, form=Form.PLAIN) for s in sessions]
        assert news == [b"* 4 EXISTS\r\n"] * 10

    asyncio.run(main())


def test_hints_wake_listeners_and_ask_once() -> None:
    async def main() -> None:
        source, views = make()
        first, second = await select(source, views), await select(source, views, 2)
        told: list[bytes] = []
        first.listener = lambda: told.append(first.sync(expunge=True, form=Form.PLAIN))
        second.listener = lambda: told.append(b"second")
        for _ in range(5):
            source.arrive(1)
        await settled()
        assert told[-1] == b"* 8 EXISTS\r\n"
        assert b"second" not in told
        assert source.deltas <= 2
        assert source.lists >= 1
        assert not views.behind(second)

    asyncio.run(main())


def test_without_listeners_nothing_is_read() -> None:
    async def main() -> None:
        source, views = make()
        selected = await select(source, views)
        source.arrive(1)
        await settled()
        assert source.deltas == 0
        assert views.behind(selected)
        await views.refresh(selected)
        assert not views.behind(selected)

    asyncio.run(main())


def test_a_lost_hint_loses_nothing() -> None:
    async def main() -> None:
        source, views = make()
        selected = await select(source, views)
        woken: list[int] = []
        selected.listener = lambda: woken.append(1)
        source.arrive(1, hint=False)
        await settled()
        assert not woken
        await views.poll()
        assert woken

    asyncio.run(main())


def test_a_failing_store_is_tried_again() -> None:
    async def main() -> None:
        source, views = make()
        selected = await select(source, views)
        woken: list[int] = []
        selected.listener = lambda: woken.append(1)
        source.error = MailError(Kind.UNAVAILABLE, "down")
        source.arrive(1)
        await settled()
        await views.poll()
        assert not woken
        source.error = None
        source.arrive(1)
        await settled()
        assert woken

    asyncio.run(main())


def test_an_incomplete_delta_loads_anew() -> None:
    async def main() -> None:
        source, views = make()
        selected = await select(source, views)
        source.complete = False
        source.arrive(1)
        await views.refresh(selected)
        assert source.views == 2
        assert selected.sync(expunge=True, form=Form.PLAIN) == b"* 4 EXISTS\r\n"

    asyncio.run(main())


def test_a_mailbox_that_is_gone_or_new() -> None:
    async def main() -> None:
        source, views = make()
        selected = await select(source, views)
        source.uidvalidity, source.complete = 8, False
        with pytest.raises(MailboxGoneError):
            await views.refresh(selected)
        fresh = await select(source, views)
        assert fresh.view.uidvalidity == 8
        with pytest.raises(MailboxGoneError):
            views.behind(selected)
        views.release(selected)
        assert not views.behind(fresh)
        source.error = MailError(Kind.NOT_FOUND)
        with pytest.raises(MailboxGoneError):
            await views.refresh(fresh)

    asyncio.run(main())


def test_rested_views_are_bounded_by_messages() -> None:
    async def main() -> None:
        source, views = make(max_messages=7)
        views.release(await select(source, views, 1))
        views.release(await select(source, views, 2))
        assert list(views._resting) == [(1, 2)]
        views.release(await select(source, views, 1))
        assert source.views == 3
        assert list(views._resting) == [(1, 1)]
        assert views._resting_messages == 3

    asyncio.run(main())


def test_rested_views_are_let_go_after_a_while() -> None:
    async def main() -> None:
        source, views = make()
        views.release(await select(source, views, 1))
        views.sweep(1000.0)
        views.release(await select(source, views, 2))
        views.sweep(1000.0 + REST)
        assert list(views._resting) == [(1, 1), (1, 2)]
        again = await select(source, views, 1)  # taken back: its time begins anew
        views.release(again)
        del again
        views.sweep(1001.0 + REST)
        assert list(views._resting) == [(1, 2), (1, 1)]
        assert views.sweep(1002.0 + 2 * REST) == 3 + 5
        assert not views._resting
        assert views._resting_messages == 0
        assert source.views == 2

    asyncio.run(main())


def test_a_failed_load_leaves_nothing() -> None:
    async def main() -> None:
        source, views = make()
        mailbox = source.mailbox(1)
        del source.counts[1]
        with pytest.raises(KeyError):
            await views.select(ACCESS, mailbox, read_only=False)
        assert not source.callbacks
        assert not views._watches

    asyncio.run(main())
