"""The queue's loop: schedule, giving up, notices, leases; time is moved, not waited."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Access, Envelope, Recipient
from mailserverd.net.smtp_out import TcpConnector
from mailserverd.services.queue import QueueRunner, QueueSettings
from mailserverd.services.relay import Relay
from mailserverd.services.routes import Router, RouteSettings
from mailserverd.services.submission import Submission
from protocols.smtp.delivery import SmtpDialer, Timeouts
from storage.queue import Outcome, Selection, State
from tests.lib.clock import ManualClock
from tests.lib.mailhost import HOSTNAME, PEER, MailHost, mail_host
from tests.lib.sink import CLOSE, SILENT, Sink
from tests.lib.waiting import until

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Awaitable, Callable

    from storage.queue import Entry, Finished, QueuedRecipient

ALICE, BOB, FRIEND = "alice@example.org", "bob@example.org", "friend@a.example"
MESSAGE = b"From: alice@example.org\r\nSubject: out\r\n\r\nHello\r\n"
FAST = Timeouts(connect=5, greeting=1, command=1, data=1, block=5, end=1)
HOUR = 3600.0


@dataclasses.dataclass(slots=True)
class Bench:
    """A host, its queue's runner, and the server of a.example."""

    host: MailHost
    clock: ManualClock
    runner: QueueRunner
    sink: Sink
    submission: Submission
    alice: Access

    async def submit(self, *to: str | Recipient, **how: Any) -> str:
        """Let alice send; returns the queue id."""
        recipients = tuple(r if isinstance(r, Recipient) else Recipient(r) for r in to)
        sent = await self.submission.submit(
            self.alice, Envelope(ALICE, recipients), MESSAGE, **how
        )
        return sent.queue_id

    async def step(self, seconds: float = 0) -> int:
        """Move time, do what is due, tell who is to be told; returns the attempts."""
        self.clock.move(seconds)
        started = 0
        while claimed := await self.runner.claim():
            started += claimed
            await self.runner.settle()
        await self.runner.send_notices()
        return started

    async def show(self, queue_id: str) -> Entry:
        return await self.host.queue.show(queue_id)

    async def recipient(self, queue_id: str) -> QueuedRecipient:
        return (await self.show(queue_id)).recipients[0]


@contextlib.asynccontextmanager
async def bench(
    directory: pathlib.Path, *features: str, **settings: Any
) -> AsyncIterator[Bench]:
    clock = ManualClock()
    async with Sink(*features) as sink:
        records = {
            ("a.example", "MX"): [(10, "mx.a.example")],
            ("b.example", "MX"): [(10, "mx.a.example")],
            ("mx.a.example", "A"): ["127.0.0.1"],
        }
        async with mail_host(directory, clock=clock, records=records) as host:
            routes = RouteSettings(HOSTNAME, port=sink.port, allow_loopback=True)
            router = Router(host.resolver, clock, routes)
            relay = Relay(router, SmtpDialer(TcpConnector(), HOSTNAME, FAST))
            runner = QueueRunner(
                host.queue, relay, host.receive, QueueSettings(**settings)
            )
            try:
                yield Bench(
                    host,
                    clock,
                    runner,
                    sink,
                    Submission(host.receive),
                    await host.account(ALICE),
                )
            finally:
                await host.receive.notices.close()
                await runner.drain()


def run(
    place: pathlib.Path,
    steps: Callable[[Bench], Awaitable[None]],
    *features: str,
    **settings: Any,
) -> None:
    async def main() -> None:
        async with bench(place, *features, **settings) as it:
            await steps(it)

    asyncio.run(main())


def rcpts(it: Bench) -> int:
    """Return how many recipients the server was asked for."""
    return sum(line.startswith("RCPT") for line in it.sink.commands)


def test_a_message_leaves_without_our_return_path(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        queue_id = await it.submit(FRIEND)
        assert await it.step() == 1
        (taken,) = it.sink.taken
        assert taken.mail.startswith("MAIL FROM:<alice@example.org>")
        assert taken.data.startswith(b"DKIM-Signature: ")
        assert taken.data.endswith(b"\r\n\r\nHello\r\n")
        assert b"Return-Path" not in taken.data
        recipient = await it.recipient(queue_id)
        assert recipient.state is State.DELIVERED
        assert recipient.reply == "250 2.0.0 taken"
        assert recipient.mta == "mx.a.example"
        assert await it.host.mail(ALICE) == []  # success is not reported unasked
        assert await it.step(10 * 86400) == 0

    run(place, steps)


def test_one_transaction_per_domain(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        await it.submit("x@a.example", "y@a.example", "z@b.example")
        await it.step()
        assert sorted(len(t.rcpt) for t in it.sink.taken) == [1, 2]

    run(place, steps)


def test_pauses_double_up_to_the_longest(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        it.sink.answers["RCPT"] = "451 4.7.1 greylisted"
        queue_id = await it.submit(FRIEND)
        pauses = []
        for _ in range(9):
            assert await it.step() == 1
            recipient = await it.recipient(queue_id)
            assert recipient.state is State.QUEUED
            pause = recipient.due - it.clock.now()
            pauses.append(pause)
            assert await it.step(pause - 2) == 0
            it.clock.move(2)
        assert pauses == [60, 120, 240, 480, 960, 1920, 3840, 7200, 7200]

    run(place, steps, retry_max=7200, delay_notice=0)


def test_jitter_spreads_by_a_quarter() -> None:
    settings = QueueSettings()
    assert settings.pause(1, 0.0) == 45
    assert settings.pause(1, 0.999) == pytest.approx(75, abs=0.1)
    assert settings.pause(500, 0.5) == 4 * HOUR


def test_a_delay_is_told_once_then_the_failure(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        it.sink.answers["RCPT"] = "451 4.2.1 later"
        queue_id = await it.submit(FRIEND)
        await it.step()
        assert await it.host.mail(ALICE) == []
        await it.step(5 * HOUR)
        (delayed,) = await it.host.mail(ALICE)
        assert delayed.startswith(b"Return-Path: <>")
        assert b"Action: delayed" in delayed
        assert b"Final-Recipient: rfc822; friend@a.example" in delayed
        assert b"Diagnostic-Code: smtp; 451 4.2.1 later" in delayed
        assert b"Will-Retry-Until" in delayed
        await it.step(5 * HOUR)
        assert len(await it.host.mail(ALICE)) == 1
        await it.step(5 * 86400)
        failed = (await it.host.mail(ALICE))[1]
        assert b"Action: failed" in failed
        assert b"Status: 4.4.7" in failed
        assert b"Subject: out" in failed
        recipient = await it.recipient(queue_id)
        assert recipient.state is State.FAILED
        assert await it.step(86400) == 0
        assert len(await it.host.mail(ALICE)) == 2

    run(place, steps)


def test_a_refusal_comes_back_at_once(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        it.sink.answers["RCPT"] = ["250 ok", "550 5.1.1 unknown"]
        await it.submit("good@a.example", "bad@a.example")
        await it.step()
        (report,) = await it.host.mail(ALICE)
        assert b"Final-Recipient: rfc822; bad@a.example" in report
        assert b"good@a.example" not in report.partition(b"delivery-status")[2][:2000]
        assert b"Status: 5.1.1" in report
        assert b"Remote-MTA: dns; mx.a.example" in report
        assert len(it.sink.taken) == 1

    run(place, steps)


@pytest.mark.parametrize(
    ("notify", "reply", "features", "action"),
    [
        (("NEVER",), "550 5.1.1 no", (), b""),
        (("SUCCESS",), "550 5.1.1 no", (), b""),
        (("FAILURE",), "550 5.1.1 no", (), b"failed"),
        (("SUCCESS",), "250 ok", (), b"relayed"),
        (("SUCCESS",), "250 ok", ("DSN",), b""),
        ((), "250 ok", (), b""),
    ],
)
def test_wishes_are_honoured(
    place: pathlib.Path,
    notify: tuple[str, ...],
    reply: str,
    features: tuple[str, ...],
    action: bytes,
) -> None:
    async def steps(it: Bench) -> None:
        it.sink.answers["RCPT"] = reply
        await it.submit(Recipient(FRIEND, notify, "rfc822;orig@a.example"))
        await it.step()
        reports = await it.host.mail(ALICE)
        assert len(reports) == bool(action)
        if action:
            assert b"Action: " + action in reports[0]
            assert b"Original-Recipient: rfc822; orig@a.example" in reports[0]

    run(place, steps, *features)


def test_a_bounce_is_never_bounced(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        it.sink.answers["RCPT"] = "550 5.1.1 no"
        await it.host.accounts.alias_add("out@example.org", [FRIEND])
        # An alias's forward fails; the report to the outside sender fails, too.
        await it.host.send(MESSAGE, "out@example.org", sender="x@b.example")
        assert await it.step() == 1  # the forward
        assert await it.step() == 1  # the report
        entries = await it.host.queue.list()
        assert entries == ()
        assert await it.step(86400) == 0
        senders = [c for c in it.sink.commands if c.startswith("MAIL")]
        assert senders[0].startswith("MAIL FROM:<x@b.example>")
        assert senders[1].startswith("MAIL FROM:<>")
        assert len(senders) == 2

    run(place, steps)


def test_a_report_to_a_sender_that_is_gone_is_dropped(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        it.sink.answers["RCPT"] = "550 5.1.1 no"
        await it.submit(FRIEND)
        await it.host.accounts.account_remove(ALICE)
        await it.step()
        assert (await it.host.queue.stats()).notices == 0
        assert await it.host.mail(BOB) == []

    run(place, steps)


def test_a_local_recipient_needs_no_smtp(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        queue_id = await it.submit(BOB, send_at=it.clock.now() + 60)
        assert await it.step() == 0
        assert await it.step(61) == 1
        (stored,) = await it.host.mail(BOB)
        assert stored.count(b"Return-Path:") == 1
        assert stored.count(b"Received:") == 2
        assert (await it.recipient(queue_id)).state is State.DELIVERED
        assert it.sink.connections == 0

    run(place, steps)


def test_commands_take_effect_at_once(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        queue = it.host.queue
        it.sink.answers["RCPT"] = ["451 later", "250 ok"]
        first = await it.submit(FRIEND)
        await it.step()
        assert await it.step() == 0
        assert await queue.retry(Selection(first)) == 1
        assert await it.step() == 1
        second = await it.submit(FRIEND)
        assert await queue.hold(Selection(domain="a.example")) == 1
        assert await it.step(HOUR) == 0
        assert await queue.release(Selection(second)) == 1
        assert await it.step() == 1
        third = await it.submit(FRIEND)
        assert await queue.cancel(Selection(third)) == (1, 0)
        assert await it.step(HOUR) == 0
        assert len(it.sink.taken) == 2
        assert await it.host.mail(ALICE) == []

    run(place, steps)


def test_what_a_crash_interrupted_is_tried_again(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        queue_id = await it.submit(FRIEND)
        (claim,) = await it.host.queue.claim()  # by a process that dies now
        assert await it.step() == 0
        await it.host.queue.start()
        assert await it.step() == 1
        assert (await it.recipient(queue_id)).state is State.DELIVERED
        # The dead one wakes up: its result is fenced off.
        done = await it.host.queue.finish(claim, [Outcome(0, State.FAILED)])
        assert done.fenced == (0,)

    run(place, steps)


def test_a_missing_blob_is_a_temporary_failure(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        queue_id = await it.submit(FRIEND)

        async def failing(*_: object, **__: object) -> bytes:
            raise MailError(Kind.UNAVAILABLE, "blob is missing")

        read = it.host.blobs.read
        it.host.blobs.read = failing  # type: ignore[method-assign] # damaged
        await it.step()
        assert (await it.recipient(queue_id)).state is State.QUEUED
        it.host.blobs.read = read  # type: ignore[method-assign] # mended
        await it.step(HOUR)
        assert (await it.recipient(queue_id)).state is State.DELIVERED

    run(place, steps)


def test_an_outcome_that_cannot_be_written_at_once_is_not_forgotten(
    place: pathlib.Path,
) -> None:
    async def steps(it: Bench) -> None:
        queue_id = await it.submit(FRIEND)
        write, failures = it.host.queue.finish, [0, 1]

        async def failing(*args: Any) -> Finished:
            if failures:
                failures.pop()
                raise MailError(Kind.STORAGE_FULL, "storage is full")
            return await write(*args)

        it.host.queue.finish = failing  # type: ignore[assignment] # a full disk
        assert await it.step() == 1
        assert (await it.recipient(queue_id)).state is State.DELIVERED
        assert it.sink.connections == 1

    run(place, steps)


def test_a_destination_has_its_share_and_no_more(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        it.sink.answers["DATA"] = SILENT
        for _ in range(6):
            await it.submit(FRIEND)
        await it.submit("x@b.example")
        assert await it.runner.claim() == 3  # two of a.example, one of b.example
        await until(lambda: it.sink.connections == 3)
        assert await it.runner.claim() == 0
        await it.runner.settle()
        assert it.sink.connections == 3

    run(place, steps, per_destination=2)


def test_the_loop_wakes_for_new_mail(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        loop = asyncio.ensure_future(it.runner.run())
        it.sink.answers["RCPT"] = ["250 ok", "550 5.1.1 no"]
        try:
            async with asyncio.timeout(10):
                for count in (1, 2):
                    await it.submit(FRIEND)
                    await until(lambda count=count: rcpts(it) == count)
                while not await it.host.mail(ALICE):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.005)
        finally:
            loop.cancel()
            await asyncio.wait([loop])

    run(place, steps)


def test_draining_lets_attempts_end(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        queue_id = await it.submit(FRIEND)
        await it.runner.claim()
        await it.runner.drain()
        assert (await it.recipient(queue_id)).state is State.DELIVERED
        it.sink.answers["RCPT"] = CLOSE
        second = await it.submit(FRIEND)
        await it.runner.claim()
        await it.runner.drain()
        assert (await it.recipient(second)).state is State.QUEUED

    run(place, steps)


def test_who_rests_begins_nothing_and_ends_what_is_begun(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        loop = asyncio.ensure_future(it.runner.run())
        try:
            it.sink.answers["RCPT"] = SILENT
            begun = await it.submit(FRIEND)
            await until(lambda: rcpts(it) == 1)
            resting = asyncio.ensure_future(it.runner.rest())
            await asyncio.sleep(0)
            left = await it.submit("x@b.example")
            await resting
            assert (await it.recipient(begun)).attempts == 1
            assert (await it.recipient(left)).attempts == 0
            assert it.sink.connections == 1
            assert not loop.done()
        finally:
            loop.cancel()
            await asyncio.wait([loop])

    run(place, steps)


def test_large_and_eight_bit_messages(place: pathlib.Path) -> None:
    async def steps(it: Bench) -> None:
        body = b"\xc3\xbc" * 400 + b"\r\n"
        message = MESSAGE + body * 2000  # more than is held in memory
        incoming = await it.host.receive.open(
            Envelope("x@b.example", (Recipient("out@example.org"),)), PEER
        )
        await it.host.accounts.alias_add("out@example.org", [FRIEND])
        await incoming.write(message)
        await incoming.finish()
        await it.step()
        (taken,) = it.sink.taken
        assert taken.mail.endswith(" BODY=8BITMIME")
        assert taken.data.endswith(message)
        assert taken.data.startswith(b"Authentication-Results:")

    run(place, steps, "8BITMIME", "SIZE 50000000")
