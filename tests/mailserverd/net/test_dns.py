"""The resolver against a real knotd, a dead port and a server that talks rubbish."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import dns.flags
import dns.message
import dns.rrset
import pytest

from mailserverd.core.ports import DnsAnswer, DnsStatus, SystemClock
from mailserverd.net import dns as net_dns
from mailserverd.net.dns import CachingResolver, parse_server
from tests.lib.knot import Knot, available, free_port

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = pytest.mark.skipif(not available(), reason="knotd is not installed")

BIG = " ".join(f'"{"x" * 250}"' for _ in range(20))
ZONE = f"""
@ MX 10 MX1
@ MX 20 mx2.example.net.
@ TXT "v=spf1 " "-all"
mx1 A 127.0.0.1
mx1 AAAA ::1
alias CNAME mx1
null MX 0 .
big TXT {BIG}
xn--bcher-kva A 192.0.2.7
short 7 TXT "brief"
zero 0 TXT "now"
_25._tcp.mx1 TLSA 3 1 1 {"ab" * 32}
_imaps._tcp SRV 0 1 993 mx1
"""


class MovedClock(SystemClock):
    """Monotonic time that tests move by hand."""

    def __init__(self) -> None:
        self.at = 1000.0

    def monotonic(self) -> float:
        return self.at


@pytest.fixture(scope="module")
def knot() -> Iterator[Knot]:
    with Knot(
        {"example.org": ZONE, "2.0.192.in-addr.arpa": "7 PTR Host.Example."}
    ) as k:
        yield k


def resolve(
    server: str,
    work: Callable[[CachingResolver], Awaitable[Any]],
    **limits: Any,
) -> Any:
    """Run ``work`` with a resolver that asks ``server``."""

    async def run() -> Any:
        limits.setdefault("clock", SystemClock())
        resolver = CachingResolver([server], **limits)
        try:
            return await work(resolver)
        finally:
            await resolver.close()

    return asyncio.run(run())


def ask(server: str, name: str, rdtype: str, **limits: Any) -> DnsAnswer:
    answer = resolve(server, lambda r: r.query(name, rdtype), **limits)
    assert isinstance(answer, DnsAnswer)
    return answer


@pytest.mark.parametrize(
    ("name", "rdtype", "records"),
    [
        ("example.org", "MX", {(10, "mx1.example.org"), (20, "mx2.example.net")}),
        ("Example.ORG.", "TXT", {b"v=spf1 -all"}),
        ("alias.example.org", "A", {"127.0.0.1"}),
        ("mx1.example.org", "AAAA", {"::1"}),
        ("null.example.org", "MX", {(0, "")}),
        ("bücher.example.org", "A", {"192.0.2.7"}),
        ("7.2.0.192.in-addr.arpa", "PTR", {"host.example"}),
        ("_25._tcp.mx1.example.org", "TLSA", {(3, 1, 1, b"\xab" * 32)}),
        ("_imaps._tcp.example.org", "SRV", {(0, 1, 993, "mx1.example.org")}),
    ],
)
def test_shapes(knot: Knot, name: str, rdtype: str, records: set[object]) -> None:
    answer = ask(knot.server, name, rdtype)
    assert answer.status is DnsStatus.FOUND
    assert set(answer.records) == records
    assert not answer.authenticated


@pytest.mark.parametrize(
    ("name", "rdtype", "status"),
    [
        ("nobody.example.org", "A", DnsStatus.NO_NAME),
        ("example.test", "MX", DnsStatus.NO_NAME),
        ("mx1.example.org", "TXT", DnsStatus.NO_DATA),
        ("a..example.org", "A", DnsStatus.NO_NAME),
        (f"{'x' * 64}.example.org", "A", DnsStatus.NO_NAME),
        ("", "A", DnsStatus.NO_NAME),
        ("\N{SNOWMAN}\ud800.example.org", "A", DnsStatus.NO_NAME),
        ("\\032.example.org", "A", DnsStatus.NO_NAME),
        ("example.org", "NONSENSE", DnsStatus.FAILED),
    ],
)
def test_absence(knot: Knot, name: str, rdtype: str, status: DnsStatus) -> None:
    assert ask(knot.server, name, rdtype).status is status


def test_truncated_answer_comes_by_tcp(knot: Knot) -> None:
    answer = ask(knot.server, "big.example.org", "TXT")
    assert answer.records == (b"x" * 5000,)


def test_dead_server_fails_in_time() -> None:
    before = time.monotonic()
    answer = ask(f"127.0.0.1:{free_port()}", "example.org", "A", timeout=0.3)
    assert answer.status is DnsStatus.FAILED
    assert answer.error
    assert time.monotonic() - before < 2


def test_second_server_answers_when_the_first_is_dead(knot: Knot) -> None:
    async def run() -> DnsAnswer:
        resolver = CachingResolver(
            [f"127.0.0.1:{free_port()}", knot.server],
            clock=SystemClock(),
            attempt_timeout=0.1,
        )
        return await resolver.query("mx1.example.org", "A")

    assert asyncio.run(run()).records == ("127.0.0.1",)


def test_ttl_of_answers_and_of_absence(knot: Knot) -> None:
    clock = MovedClock()

    async def work(resolver: CachingResolver) -> None:
        changing = {"changing.test": 'a 7 TXT "old"'}
        knot.update(changing)
        assert (await resolver.query("a.changing.test", "TXT")).records == (b"old",)
        missing = await resolver.query("b.changing.test", "TXT")
        assert missing.status is DnsStatus.NO_NAME
        knot.update({"changing.test": 'a 7 TXT "new"\nb 7 TXT "made"'})
        clock.at += 6.9
        assert (await resolver.query("a.changing.test", "TXT")).records == (b"old",)
        clock.at += 0.2
        assert (await resolver.query("a.changing.test", "TXT")).records == (b"new",)
        assert await resolver.query("b.changing.test", "TXT") == missing
        clock.at += 60
        assert (await resolver.query("b.changing.test", "TXT")).records == (b"made",)

    resolve(knot.server, work, clock=clock)


def sent() -> float:
    return sum(
        sample.value
        for metric in net_dns.LOOKUPS.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


def test_ttl_zero_is_not_kept_and_others_are(knot: Knot) -> None:
    async def work(resolver: CachingResolver) -> tuple[float, float]:
        before = sent()
        for _ in range(3):
            await resolver.query("zero.example.org", "TXT")
        zero = sent() - before
        for _ in range(3):
            await resolver.query("short.example.org", "TXT")
        return zero, sent() - before - zero

    assert resolve(knot.server, work) == (3, 1)


def test_identical_questions_are_asked_once(knot: Knot) -> None:
    async def work(resolver: CachingResolver) -> tuple[float, set[object]]:
        before = sent()
        asked = [resolver.query("mx1.example.org", "A") for _ in range(50)]
        return sent() - before, {a.records for a in await asyncio.gather(*asked)}

    before = sent()
    _, answers = resolve(knot.server, work)
    assert answers == {("127.0.0.1",)}
    assert sent() - before == 1


def test_caller_who_gives_up_does_not_take_the_answer_away(knot: Knot) -> None:
    async def work(resolver: CachingResolver) -> DnsAnswer:
        first = asyncio.create_task(resolver.query("mx1.example.org", "A"))
        second = asyncio.create_task(resolver.query("mx1.example.org", "A"))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert resolve(knot.server, work).records == ("127.0.0.1",)


def test_failures_are_kept_briefly() -> None:
    clock = MovedClock()

    async def work(resolver: CachingResolver) -> list[float]:
        counts = []
        for step in (0.0, 1.0, 10.0):
            clock.at += step
            before = sent()
            await resolver.query("example.org", "A")
            counts.append(sent() - before)
        return counts

    server = f"127.0.0.1:{free_port()}"
    assert resolve(server, work, clock=clock, timeout=0.05) == [1, 0, 1]


def test_cache_is_bounded(knot: Knot) -> None:
    async def work(resolver: CachingResolver) -> tuple[int, bool]:
        for number in range(40):
            await resolver.query(f"n{number}.example.org", "A")
        newest = ("n39.example.org", "A") in resolver._cache
        assert sum(e.cost for e in resolver._cache.values()) == resolver._used
        return resolver._used, newest

    used, newest = resolve(knot.server, work, cache_bytes=8000)
    assert 4000 < used <= 8000
    assert newest


def test_too_many_questions_fail_at_once() -> None:
    async def work(resolver: CachingResolver) -> list[DnsAnswer]:
        asked = [resolver.query(f"n{n}.example.org", "A") for n in range(20)]
        return await asyncio.gather(*asked)

    answers = resolve(f"127.0.0.1:{free_port()}", work, max_inflight=1, timeout=0.1)
    assert {a.status for a in answers} == {DnsStatus.FAILED}
    assert sum(a.error == "too many DNS questions" for a in answers) == 11


def test_close_answers_those_who_wait() -> None:
    async def work(resolver: CachingResolver) -> DnsAnswer:
        waiting = asyncio.create_task(resolver.query("example.org", "A"))
        await asyncio.sleep(0)
        await resolver.close()
        return await waiting

    answer = resolve(f"127.0.0.1:{free_port()}", work)
    assert (answer.status, answer.error) == (DnsStatus.FAILED, "resolver closed")


class Liar(asyncio.DatagramProtocol):
    """Answers every question with what ``reply`` makes of it."""

    def __init__(self, reply: Callable[[bytes], bytes]) -> None:
        self.reply = reply

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(self.reply(data), addr)


def ask_liar(reply: Callable[[bytes], bytes]) -> DnsAnswer:
    async def run() -> DnsAnswer:
        port = free_port()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: Liar(reply), ("127.0.0.1", port)
        )
        resolver = CachingResolver(
            [f"127.0.0.1:{port}"], clock=SystemClock(), timeout=0.2
        )
        try:
            return await resolver.query("a.test", "TXT")
        finally:
            await resolver.close()
            transport.close()

    return asyncio.run(run())


def authentic(question: bytes) -> bytes:
    query = dns.message.from_wire(question)
    reply = dns.message.make_response(query)
    if query.flags & dns.flags.AD:
        reply.flags |= dns.flags.AD
    reply.answer.append(dns.rrset.from_text("a.test.", 5, "IN", "TXT", '"yes"'))
    return reply.to_wire()


def servfail(question: bytes) -> bytes:
    reply = dns.message.make_response(dns.message.from_wire(question))
    reply.set_rcode(2)
    return reply.to_wire()


def test_authenticated_data_is_asked_for_and_told() -> None:
    answer = ask_liar(authentic)
    assert (answer.records, answer.authenticated) == ((b"yes",), True)


@pytest.mark.parametrize(
    "reply",
    [
        servfail,
        lambda q: b"",
        lambda q: b"\xff" * 600,
        lambda q: q,
        lambda q: q[:2] + b"\x81\x80" + q[4:6] + b"\xff\xff" + q[8:],
        lambda q: bytes([q[0] ^ 1]) + authentic(q)[1:],  # another question's id
    ],
)
def test_rubbish_is_a_failure_not_an_exception(reply: Callable[[bytes], bytes]) -> None:
    assert ask_liar(reply).status in {DnsStatus.FAILED, DnsStatus.NO_DATA}


def test_system_configuration_is_reread_when_it_changed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resolv.conf"
    monkeypatch.setattr(net_dns, "RESOLV_CONF", str(path))
    clock = MovedClock()

    async def run() -> None:
        resolver = CachingResolver([], clock=clock)
        answer = await resolver.query("example.org", "A")
        assert answer.status is DnsStatus.FAILED
        path.write_text("nameserver 127.0.0.2\n")
        os.utime(path, (1, 1))
        assert resolver._get_stub().nameservers == ["127.0.0.2"]
        path.write_text("nameserver 127.0.0.3\n")
        assert resolver._get_stub().nameservers == ["127.0.0.2"]
        clock.at += net_dns.RESOLV_CONF_CHECK
        assert resolver._get_stub().nameservers == ["127.0.0.3"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("127.0.0.1", ("127.0.0.1", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("[::1]:5353", ("::1", 5353)),
        ("[::1]", ("::1", 53)),
        ("2001:db8::1", ("2001:db8::1", 53)),
    ],
)
def test_servers(text: str, server: tuple[str, int]) -> None:
    assert parse_server(text) == server


@pytest.mark.parametrize(
    "text",
    [
        "localhost",
        "127.0.0.1:x",
        "127.0.0.1:0",
        "127.0.0.1:70000",
        "",
        "[::1",
        "[::1]53",
    ],
)
def test_bad_servers(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|port|literal"):
        parse_server(text)
