"""Mail on engines that fail: what was acknowledged is there, nothing is there twice.

Every attempt to deliver has a token of its own.  A sender that is told of a failure
comes again with another one, as SMTP has it: what counts is that no attempt arrives
twice, and that one which was acknowledged arrives with everybody.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Access, Envelope, Recipient
from mailserverd.net.smtp_out import TcpConnector
from mailserverd.services import acceptances, queue, receive
from mailserverd.services.queue import QueueRunner, QueueSettings
from mailserverd.services.relay import Relay
from mailserverd.services.routes import Router, RouteSettings
from mailserverd.services.submission import Submission
from protocols.smtp.delivery import SmtpDialer, Timeouts
from storage.model import Flags
from storage.queue import FINAL, Page, State
from tests.lib.clock import ManualClock
from tests.lib.failing import MODES, Faults
from tests.lib.mailhost import HOSTNAME, MailHost, mail_host
from tests.lib.sink import Sink
from tests.lib.smtpsite import smtp_site

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

PEOPLE = tuple(f"user{n}@example.org" for n in range(4))
FRIEND, NOBODY = "friend@a.example", "nobody@b.example"
ROLES = ("shard-0", "queue", "directory", "blobs")
TOKEN = re.compile(rb"^X-Token: (\S+)\r\n", re.MULTILINE)
FAST = Timeouts(connect=5, greeting=2, command=2, data=2, block=5, end=2)


def message(token: str, sender: str = "s@example.net") -> bytes:
    """Return a message that is known by a token."""
    head = f"From: {sender}\r\nSubject: {token}\r\nX-Token: {token}\r\n"
    return f"{head}\r\ntext of {token}\r\n".encode()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pauses between tries be short."""
    monkeypatch.setattr(acceptances, "PATIENCE", 0.2)
    monkeypatch.setattr(acceptances, "AGAIN", 0.0)
    monkeypatch.setattr(receive, "QUOTA_LIMIT", 0.2)
    monkeypatch.setattr(queue, "RECORD_AGAIN", 0.01)
    monkeypatch.setattr(queue, "PAUSE", 0.02)


@dataclasses.dataclass
class Ledger:
    """Which attempts were made, and which of them acknowledged."""

    tried: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    done: set[str] = dataclasses.field(default_factory=set)

    async def attempt(self, send: Awaitable[Any], token: str, *to: str) -> bool:
        """Make one attempt; a failure is temporary, whatever fails."""
        self.tried[token] = to
        try:
            await send
        except MailError as error:
            assert error.temporary, error
            return False
        self.done.add(token)
        return True

    async def check(self, host: MailHost) -> None:
        """Compare mailboxes with what was acknowledged."""
        for address in PEOPLE:
            here = await tokens(host, address)
            assert max(here.values(), default=1) == 1, f"twice: {here}"
            for token, to in self.tried.items():
                if token in self.done and address in to:
                    assert token in here, f"{token} is lost for {address}"
                elif address not in to:
                    assert token not in here


async def tokens(host: MailHost, address: str) -> collections.Counter[str]:
    """Return the tokens of an account's inbox."""
    found = [TOKEN.search(raw) for raw in await host.mail(address)]
    return collections.Counter(one[1].decode() for one in found if one)


def recipients(number: int) -> tuple[str, ...]:
    """Return one, two (mostly of two shards) or all."""
    first = number % len(PEOPLE)
    return ((PEOPLE[first],), (PEOPLE[first], PEOPLE[first - 1]), PEOPLE)[number % 3]


def run(tmp_path: pathlib.Path, work: Any, **how: Any) -> None:
    """Run ``work(host, faults)`` on two shards."""

    async def whole() -> None:
        faults = Faults()
        async with (
            asyncio.timeout(20),
            mail_host(tmp_path, *PEOPLE, shards=2, wrap=faults.wrap, **how) as host,
        ):
            assert len({host.shards.shard_of(a) for a in range(1, 5)}) == 2
            await work(host, faults)

    asyncio.run(whole())


# --- the way in ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("role", [*ROLES, "all"])
def test_what_is_acknowledged_arrives_once_with_everybody(
    tmp_path: pathlib.Path, role: str, mode: str
) -> None:
    async def work(host: MailHost, faults: Faults) -> None:
        ledger = Ledger()

        async def send(token: str, number: int) -> bool:
            to = recipients(number)
            return await ledger.attempt(host.send(message(token), *to), token, *to)

        await send("first", 2)
        faults.set(mode, *([] if role == "all" else [role]))
        await asyncio.gather(*(send(f"fault{n}", n) for n in range(18)))
        assert faults.failed or role == "directory"  # whose answers are remembered
        faults.mend()
        while await host.acceptances.catch_up(host.deliver):
            pass
        assert not await host.queue.waiting_targets()
        assert all([await send(f"later{n}", n) for n in range(3)])
        await host.acceptances.close()
        await ledger.check(host)
        if mode == "slowly":
            assert len(ledger.done) == 22
        if mode == "always" and role in {"blobs", "all"}:
            assert len(ledger.done) == 4

    run(tmp_path, work)


@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.STORAGE_FULL])
def test_one_shard_that_fails_holds_up_its_own_mail_alone(
    tmp_path: pathlib.Path, kind: Kind
) -> None:
    async def work(host: MailHost, faults: Faults) -> None:
        ids = {a: (await host.account(a)).account for a in PEOPLE}
        theirs = [a for a in PEOPLE if host.shards.shard_of(ids[a]) == 1]
        ours = [a for a in PEOPLE if a not in theirs]
        ledger = Ledger()
        faults.set("always", "shard-1", kind=kind)
        for name, to in (("alone", theirs[:1]), ("ours", ours), ("all", PEOPLE)):
            sent = host.send(message(name), *to)
            assert await ledger.attempt(sent, name, *to) is (name != "alone")
        faults.mend()
        assert "all" not in await tokens(host, theirs[0])
        assert await host.acceptances.catch_up(host.deliver) == 0
        await ledger.check(host)
        assert "alone" not in await tokens(host, theirs[0])

    run(tmp_path, work)


def test_a_target_without_an_answer_does_not_hold_up_the_sender(
    tmp_path: pathlib.Path,
) -> None:
    async def work(host: MailHost, faults: Faults) -> None:
        ledger = Ledger()
        faults.set("slowly", "shard-1", only=("write",))
        faults["shard-1"].delay = 20.0
        began = time.monotonic()
        await ledger.attempt(host.send(message("all"), *PEOPLE), "all", *PEOPLE)
        assert "all" in ledger.done
        assert time.monotonic() - began < 2
        faults.mend()
        for task in host.acceptances._applying:  # the process ends
            task.cancel()
        await asyncio.wait(host.acceptances._applying)
        assert await host.acceptances.catch_up(host.deliver) == 0
        await ledger.check(host)

    run(tmp_path, work)


@pytest.mark.parametrize("mode", MODES)
def test_an_append_on_a_failing_engine_is_stored_or_refused(
    tmp_path: pathlib.Path, mode: str
) -> None:
    async def work(host: MailHost, faults: Faults) -> None:
        ledger = Ledger()
        access = await host.account(PEOPLE[0])
        for number in range(24):
            faults.set(mode, ("shard-0", "blobs")[number % 2])
            token = f"append{number}"
            put = host.receive.store_message(
                access, message(token), (1,), Flags(), 1_800_000_000
            )
            done = await ledger.attempt(put, token, PEOPLE[0])
            assert done is (mode == "slowly") or mode == "sometimes"
            faults.mend()
        await ledger.check(host)

    run(tmp_path, work)


# --- over SMTP ----------------------------------------------------------------------


async def dialog(port: int, token: str, *to: str) -> list[str]:
    """Send one message; return the replies to MAIL, RCPTs, DATA and its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def say(line: bytes) -> str:
        writer.write(line)
        while (reply := (await reader.readline()).decode())[3:4] == "-":
            pass
        return reply

    found = []
    with contextlib.closing(writer):
        await say(b"")
        await say(b"EHLO client.example.net\r\n")
        found.append(await say(b"MAIL FROM:<s@example.net>\r\n"))
        found += [await say(f"RCPT TO:<{one}>\r\n".encode()) for one in to]
        if any(reply.startswith("2") for reply in found[1:]):
            found.append(await say(b"DATA\r\n"))
            found.append(await say(message(token) + b".\r\n"))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_smtp_says_so_in_its_own_terms(tmp_path: pathlib.Path, mode: str) -> None:
    """2xx or 4xx for those who exist, and 5xx only for who does not."""

    async def whole() -> None:
        faults, ledger = Faults(), Ledger()
        how = {"wrap": faults.wrap}
        async with (
            asyncio.timeout(20),
            smtp_site(tmp_path, *PEOPLE, shards=2, host=how) as site,
        ):
            port = site.addresses["mx"][1]
            for number, role in enumerate(ROLES * 2):
                faults.set(mode, role)
                token, to = f"smtp{number}", recipients(number)
                replies = await dialog(port, token, *to, "unknown@example.org")
                faults.mend()
                *known, unknown = replies[1 : len(to) + 2]
                taken = [a for a, r in zip(to, known, strict=True) if r[0] == "2"]
                ledger.tried[token] = tuple(taken)
                assert {r[0] for r in known} <= {"2", "4"}, replies
                assert unknown[0] in ("45" if role == "directory" else "5"), replies
                if taken:
                    assert replies[-1][0] in "24", replies
                    if replies[-1][0] == "2":
                        ledger.done.add(token)
            while await site.host.acceptances.catch_up(site.host.deliver):
                pass
            await ledger.check(site.host)
            if mode == "slowly":
                assert len(ledger.done) == len(ledger.tried)

    asyncio.run(whole())


# --- the way out --------------------------------------------------------------------


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


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    while not condition():  # noqa: ASYNC110 - the peer's state, not ours
        await asyncio.sleep(0.005)
