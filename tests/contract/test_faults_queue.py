"""Mail that leaves on engines that fail: once, with one report of what cannot."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Access, Envelope, Recipient
from mailserverd.net.smtp_out import TcpConnector
from mailserverd.services import acceptances, queue
from mailserverd.services.queue import QueueRunner, QueueSettings
from mailserverd.services.relay import Relay
from mailserverd.services.routes import Router, RouteSettings
from mailserverd.services.submission import Submission
from protocols.smtp.delivery import SmtpDialer, Timeouts
from storage.queue import FINAL, Page, State
from tests.lib.attempts import PEOPLE, ROLES, TOKEN, message, tokens
from tests.lib.clock import ManualClock
from tests.lib.failing import MODES, Faults
from tests.lib.mailhost import HOSTNAME, MailHost, mail_host
from tests.lib.sink import Sink
from tests.lib.waiting import until

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Iterable

FRIEND, NOBODY = "friend@a.example", "nobody@b.example"
FAST = Timeouts(connect=5, greeting=2, command=2, data=2, block=5, end=2)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pauses between tries be short."""
    monkeypatch.setattr(acceptances, "PATIENCE", 0.2)
    monkeypatch.setattr(acceptances, "AGAIN", 0.0)
    monkeypatch.setattr(queue, "RECORD_AGAIN", 0.01)
    monkeypatch.setattr(queue, "PAUSE", 0.02)


@dataclasses.dataclass(slots=True)
class Outbound:
    """A host whose queue is run by hand, and the server of everybody outside."""

    host: MailHost
    faults: Faults
    clock: ManualClock
    runner: QueueRunner
    sink: Sink
    submission: Submission
    access: Access

    async def turn(self) -> None:
        """Do what is due; failures of the queue are its loops' to survive."""
        with contextlib.suppress(MailError):
            await self.runner.claim()
        if self.runner._running:
            await asyncio.wait(list(self.runner._running), timeout=0.1)
        with contextlib.suppress(MailError):
            await self.runner.send_notices()

    async def finish(self) -> None:
        """Let everything work again, and time pass, until nothing is left to do."""
        self.faults.mend()
        for _ in range(40):
            await self.runner.settle()
            while await self.host.acceptances.catch_up(self.host.deliver):
                pass
            await self.runner.send_notices()
            if not await self.left():
                return
            self.clock.move(3600)
            await self.runner.claim()
        raise AssertionError(await self.left())

    async def left(self) -> list[object]:
        """Return what is not over."""
        entries = await self.host.queue.list(Page(limit=1000))
        open_ = [r for e in entries for r in e.recipients if r.state not in FINAL]
        return [*open_, *await self.host.queue.notices()]


@contextlib.asynccontextmanager
async def outbound(directory: pathlib.Path) -> AsyncIterator[Outbound]:
    """Open everything for outgoing mail."""
    clock, faults = ManualClock(), Faults()
    records = {
        ("a.example", "MX"): [(10, "mx.a.example")],
        ("b.example", "MX"): [],
        ("b.example", "A"): [],
        ("mx.a.example", "A"): ["127.0.0.1"],
    }
    async with (
        Sink() as sink,
        mail_host(
            directory,
            *PEOPLE,
            shards=2,
            clock=clock,
            records=records,
            wrap=faults.wrap,
        ) as host,
    ):
        routes = RouteSettings(HOSTNAME, port=sink.port, allow_loopback=True)
        relay = Relay(
            Router(host.resolver, clock, routes),
            SmtpDialer(TcpConnector(), HOSTNAME, FAST),
        )
        runner = QueueRunner(host.queue, relay, host.receive, QueueSettings(drain=1))
        submission = Submission(host.receive)
        access = await host.account(PEOPLE[0])
        try:
            yield Outbound(host, faults, clock, runner, sink, submission, access)
        finally:
            faults.mend()
            await runner.drain()


async def keyed(
    it: Outbound, token: str, to: Iterable[str], *, later: bool = False
) -> bool:
    """Submit under a key, as EmailSubmission/set does; temporary failures alone."""
    envelope = Envelope(PEOPLE[0], tuple(map(Recipient, to)))
    raw = message(token, PEOPLE[0])
    try:
        await it.submission.submit(
            it.access,
            envelope,
            raw,
            key=token.encode(),
            send_at=it.clock.now() + 30 if later else None,
        )
    except MailError as error:
        assert error.temporary, error
        return False
    return True


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("role", [*ROLES, "all"])
def test_what_is_submitted_leaves_once_and_is_reported_once(
    tmp_path: pathlib.Path, role: str, mode: str
) -> None:
    roles = [] if role == "all" else [role]

    async def whole() -> None:
        async with asyncio.timeout(20), outbound(tmp_path) as it:
            orders: dict[str, tuple[str, ...]] = {
                "out": (FRIEND,),
                "both": (FRIEND, PEOPLE[1]),
                "here": (PEOPLE[1], PEOPLE[2]),
                "waits": (PEOPLE[1], FRIEND),
                "fails": (NOBODY, PEOPLE[3]),
            }
            it.faults.set(mode, *roles)
            left = dict(orders)
            for _ in range(4):  # the same again, by a client that was refused
                for token, to in list(left.items()):
                    if await keyed(it, token, to, later=token == "waits"):
                        del left[token]
                await it.turn()
            it.faults.mend()
            for token, to in left.items():
                assert await keyed(it, token, to, later=token == "waits")
            it.faults.set(mode, *roles)
            it.clock.move(3600)
            for _ in range(6):
                await it.turn()
                it.clock.move(700)
            assert it.faults.failed
            await it.finish()
            await outcome(it, orders)

    asyncio.run(whole())


async def outcome(it: Outbound, orders: dict[str, tuple[str, ...]]) -> None:
    """Everybody has what is theirs, once; the sender heard of what failed, once."""
    sent = [TOKEN.search(taken.data) for taken in it.sink.taken]
    out = collections.Counter(one[1].decode() for one in sent if one)
    assert out == {token: 1 for token, to in orders.items() if FRIEND in to}
    for address in PEOPLE[1:]:
        mine = {token: 1 for token, to in orders.items() if address in to}
        assert await tokens(it.host, address) == mine, address
    reports = await it.host.mail(PEOPLE[0])
    assert len(reports) == 1, [one[:300] for one in reports]
    assert NOBODY.encode() in reports[0]
    entries = await it.host.queue.list(Page(limit=100, finished=True))
    states = {r.address: r.state for e in entries for r in e.recipients}
    assert states[FRIEND] is State.DELIVERED
    assert states[NOBODY] is State.FAILED


def test_what_was_sent_is_not_sent_again_while_its_outcome_cannot_be_written(
    tmp_path: pathlib.Path,
) -> None:
    """The queue is away for longer than the lease, and when it is back the message
    seems to be due."""

    async def whole() -> None:
        async with asyncio.timeout(20), outbound(tmp_path) as it:
            assert await keyed(it, "once", (FRIEND,))
            finish, back = it.host.queue.finish, asyncio.Event()

            async def away(*args: Any) -> Any:
                if not back.is_set():
                    raise MailError(Kind.UNAVAILABLE)
                return await finish(*args)

            it.host.queue.finish = away  # type: ignore[method-assign] # goes away
            assert await it.runner.claim() == 1
            await until(lambda: len(it.sink.taken) == 1)
            it.clock.move(queue.LEASE + 1)
            await it.runner.claim()
            await it.runner._keep_leases()
            back.set()
            await it.finish()
            assert len(it.sink.taken) == 1

    asyncio.run(whole())


def test_the_runner_outlives_its_database(tmp_path: pathlib.Path) -> None:
    """Its loops, not steps by hand: while the queue is away, and when it is back."""

    async def whole() -> None:
        async with asyncio.timeout(20), outbound(tmp_path) as it:
            loops = asyncio.create_task(it.runner.run())
            assert await keyed(it, "before", (FRIEND,))
            await until(lambda: len(it.sink.taken) == 1)
            it.faults.set("always", "queue")
            assert not await keyed(it, "refused", (FRIEND,))
            it.host.queue.changed.set()
            seen = it.faults.failed + 3
            await until(lambda: it.faults.failed > seen)
            it.faults.mend()
            assert await keyed(it, "after", (FRIEND,))
            await until(lambda: len(it.sink.taken) == 2)
            assert not loops.done()
            loops.cancel()
            await asyncio.wait([loops])

    asyncio.run(whole())
