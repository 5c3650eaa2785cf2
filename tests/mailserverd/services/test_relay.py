"""Attempts against servers on loopback: next host, TLS, connections kept."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from mailserverd.core.types import Envelope, Recipient
from mailserverd.net.smtp_out import TcpConnector
from mailserverd.services.relay import Outbound, Relay, Said
from mailserverd.services.routes import Router, RouteSettings
from protocols.smtp.delivery import SmtpDialer, Timeouts
from tests.lib.clock import ManualClock
from tests.lib.ports import free_port
from tests.lib.sink import CLOSE, Sink
from tests.lib.smtpsite import server_context
from tests.lib.zones import ZoneResolver

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Awaitable, Callable

FAST = Timeouts(connect=5, greeting=1, command=1, data=1, block=5, end=1)
RECORDS = {
    ("a.example", "MX"): [(10, "mx1.example"), (20, "mx2.example")],
    ("mx1.example", "A"): ["127.0.0.1"],
    ("mx2.example", "A"): ["127.0.0.2"],
}


@contextlib.asynccontextmanager
async def relay_to(*sinks: Sink) -> AsyncIterator[Relay]:
    """Open the sinks on one port of 127.0.0.1, .2 ... and a relay to them."""
    port = free_port()
    settings = RouteSettings("mx.example.org", port=port, allow_loopback=True)
    router = Router(ZoneResolver(RECORDS), ManualClock(), settings)
    relay = Relay(router, SmtpDialer(TcpConnector(), "mx.example.org", FAST))
    async with contextlib.AsyncExitStack() as stack:
        for number, sink in enumerate(sinks, 1):
            sink.host, sink.port = f"127.0.0.{number}", port
            await stack.enter_async_context(sink)
        try:
            yield relay
        finally:
            await relay.close()


async def send(relay: Relay, domain: str = "a.example") -> Said:
    async def content() -> AsyncIterator[bytes]:
        yield b"Subject: x\r\n\r\nx\r\n"

    envelope = Envelope("s@example.org", (Recipient(f"r@{domain}"),))
    (said,) = await relay.attempt(domain, Outbound(envelope, 17, False, content))
    return said


def run(steps: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(steps())  # type: ignore[arg-type] # a coroutine function


def test_the_best_host_is_asked_first() -> None:
    async def steps() -> None:
        one, two = Sink(), Sink()
        async with relay_to(one, two) as relay:
            said = await send(relay)
            assert said == Said(250, "2.0.0", "taken", "mx1.example")
        assert (one.connections, two.connections) == (1, 0)

    run(steps)


def test_the_next_host_after_each_kind_of_failure() -> None:
    async def steps() -> None:
        for answers in ({"": "421 busy"}, {"": "554 no"}, {"": CLOSE}, {"EHLO": CLOSE}):
            one, two = Sink(answers=dict(answers)), Sink()
            async with relay_to(one, two) as relay:
                assert (await send(relay)).mta == "mx2.example"
            assert (one.connections, two.connections) == (1, 1)

    run(steps)


def test_a_refusal_is_final() -> None:
    async def steps() -> None:
        one, two = Sink(answers={"RCPT": "550 5.1.1 no"}), Sink()
        async with relay_to(one, two) as relay:
            said = await send(relay)
        assert said == Said(550, "5.1.1", "no", "mx1.example")
        assert two.connections == 0

    run(steps)


def test_nobody_answers() -> None:
    async def steps() -> None:
        async with relay_to() as relay:
            said = await send(relay)
            assert (said.code, said.status) == (451, "4.4.1")
            assert "mx2.example[127.0.0.2]" in said.text
            assert (await send(relay, "missing.example")).code == 550

    run(steps)


def test_tls_that_fails_is_done_without(tmp_path: pathlib.Path) -> None:
    async def steps() -> None:
        broken = Sink("STARTTLS")
        async with relay_to(broken) as relay:
            assert (await send(relay)).delivered
        assert broken.connections == 2
        assert not broken.taken[0].tls
        good = Sink("STARTTLS", context=server_context(tmp_path))
        async with relay_to(good) as relay:
            assert (await send(relay)).delivered
        assert good.connections == 1
        assert good.taken[0].tls

    run(steps)


def test_a_connection_serves_many_messages_and_several_domains() -> None:
    async def steps() -> None:
        RECORDS["b.example", "MX"] = [(10, "mx1.example")]
        sink = Sink("PIPELINING")
        async with relay_to(sink) as relay:
            for domain in ("a.example", "b.example", "a.example"):
                assert (await send(relay, domain)).delivered
            assert sink.connections == 1
        assert sink.commands[-1] == "QUIT"

    run(steps)


def test_a_connection_that_died_meanwhile_is_replaced() -> None:
    async def steps() -> None:
        sink = Sink(answers={".": ["250 ok", CLOSE, "250 ok"]})
        async with relay_to(sink) as relay:
            assert (await send(relay)).delivered
            assert (await send(relay)).code == 451  # died at the end: unknown
            assert (await send(relay)).delivered
            for task in list(sink._tasks):
                task.cancel()
            assert (await send(relay)).delivered
        assert sink.connections == 3

    run(steps)
