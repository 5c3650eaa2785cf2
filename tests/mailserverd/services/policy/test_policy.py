"""The policy chain with a real resolver, a real DNS server and real signatures."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from auth.mail import dkim, keys
from mailserverd.core.errors import Kind
from mailserverd.core.ports import DnsAnswer, DnsStatus, SystemClock
from mailserverd.core.types import Envelope, Peer
from mailserverd.net.dns import CachingResolver
from mailserverd.services import policy, trace
from mailserverd.services.arrival import Action, Check, Finding
from mailserverd.services.policy import Arrival, Context, InboundPolicy, Verdict
from tests.lib.knot import Knot, available
from tests.lib.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not available(), reason="knotd is not installed")

NOW = 1_700_000_000.0
PEM, RECORD = keys.generate_key("ed25519")
KEY = keys.load_private_key(PEM)

ZONES = {
    "reject.test": f"""
@ TXT "v=spf1 ip4:192.0.2.1 -all"
_dmarc TXT "v=DMARC1; p=reject"
s._domainkey TXT "{RECORD}"
""",
    "quarantine.test": '@ TXT "v=spf1 -all"\n_dmarc TXT "v=DMARC1; p=quarantine"',
    "none.test": '@ TXT "v=spf1 -all"\n_dmarc TXT "v=DMARC1; p=none"',
    "plain.test": '@ TXT "v=spf1 -all exp=why.plain.test"\nwhy TXT "not %{i}, friend"',
    "bl.test": "2.0.0.127 A 127.0.0.2\n9.2.0.192 A 127.255.255.254\n"
    "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2 A 127.0.0.4",
    "2.0.192.in-addr.arpa": "1 PTR mx.reject.test.\n2 PTR mx.reject.test.",
    "mx.reject.test": "@ A 192.0.2.1",
}


@pytest.fixture(scope="module")
def knot() -> Iterator[Knot]:
    with Knot(ZONES) as server:
        yield server


def message(domain: str, *, sign_as: str = "", extra: str = "") -> bytes:
    raw = (
        f"From: Ann <ann@{domain}>\r\n{extra}To: bob@example.org\r\n"
        "Subject: hello\r\n\r\nHello\r\n"
    ).encode()
    if not sign_as:
        return raw
    return dkim.sign(raw, sign_as, "s", KEY, dkim.SIGNED, NOW) + raw


async def offload(work: Any, *args: Any) -> Any:
    return await asyncio.to_thread(work, *args)


def judge(
    server: str,
    raw: bytes,
    *,
    sender: str = "",
    address: str = "192.0.2.1",
    settings: InboundPolicy | None = None,
    kind: type[CachingResolver] = CachingResolver,
) -> Verdict:
    """Evaluate a message from ``address``; the refusal is not raised."""

    async def run() -> Verdict:
        resolver = kind([server], clock=SystemClock(), timeout=5.0)
        context = Context(resolver, offload, settings or InboundPolicy())
        arrival = Arrival(
            Peer(address, helo="mx.reject.test"),
            Envelope(sender, ()),
            raw,
            trace.inspect(raw, "mx.example.org").authors,
            NOW,
            "mx.example.org",
            "mx.example.org",
        )
        try:
            return await policy.evaluate(arrival, context)
        finally:
            await resolver.close()

    return asyncio.run(run())


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {result.method: result.result for result in verdict.results}


def test_authenticated_mail_is_accepted(knot: Knot) -> None:
    raw = message("reject.test", sign_as="reject.test")
    verdict = judge(
        knot.server,
        raw,
        sender="ann@reject.test",
        settings=InboundPolicy(iprev=True),
    )
    assert (verdict.action, verdict.kind, verdict.junk) == (Action.ACCEPT, None, False)
    assert outcomes(verdict) == dict.fromkeys(("iprev", "spf", "dkim", "dmarc"), "pass")
    header = verdict.header.decode()
    assert header.startswith("Authentication-Results: mx.example.org;\r\n\tiprev=pass")
    assert "(mx.reject.test) policy.iprev=192.0.2.1;" in header
    assert "spf=pass smtp.mailfrom=ann@reject.test;" in header
    assert "dkim=pass header.d=reject.test header.s=s" in header
    assert "dmarc=pass header.from=reject.test policy.dmarc=reject" in header


def test_forged_author_is_refused_with_the_reason(knot: Knot) -> None:
    verdict = judge(
        knot.server, message("reject.test"), sender="x@none.test", address="192.0.2.66"
    )
    assert (verdict.action, verdict.kind) == (Action.REJECT, Kind.POLICY)
    assert verdict.reason == (
        "DMARC policy of reject.test (p=reject) for mail from reject.test: "
        "neither SPF nor DKIM passed"
    )
    assert outcomes(verdict) == {"spf": "fail", "dkim": "none", "dmarc": "fail"}


def test_dkim_alone_carries_a_forwarded_message(knot: Knot) -> None:
    raw = message("reject.test", sign_as="reject.test")
    verdict = judge(knot.server, raw, sender="x@plain.test", address="192.0.2.66")
    assert verdict.action is Action.ACCEPT
    tampered = raw.replace(b"Hello\r\n", b"Hullo\r\n")
    verdict = judge(knot.server, tampered, sender="x@plain.test", address="192.0.2.66")
    assert verdict.action is Action.REJECT
    assert 'reason="body hash did not verify"' in verdict.header.decode()


def test_quarantine_goes_to_junk(knot: Knot) -> None:
    verdict = judge(knot.server, message("quarantine.test"), sender="a@quarantine.test")
    assert (verdict.action, verdict.kind, verdict.junk) == (Action.JUNK, None, True)


def test_policy_none_and_no_policy_are_only_marked(knot: Knot) -> None:
    verdict = judge(knot.server, message("none.test"), sender="a@none.test")
    assert verdict.action is Action.ACCEPT
    assert outcomes(verdict) == {"spf": "fail", "dkim": "none", "dmarc": "fail"}
    verdict = judge(knot.server, message("plain.test"), sender="a@plain.test")
    assert verdict.action is Action.ACCEPT
    assert outcomes(verdict)["dmarc"] == "none"


def test_spf_fail_refuses_where_asked_and_no_dmarc_speaks(knot: Knot) -> None:
    strict = InboundPolicy(spf_fail="reject")
    raw = message("plain.test")
    verdict = judge(knot.server, raw, sender="a@plain.test", settings=strict)
    assert verdict.kind is Kind.POLICY
    assert verdict.reason == (
        "SPF: plain.test does not send mail from 192.0.2.1 (not 192.0.2.1, friend)"
    )
    raw = message("none.test")
    verdict = judge(knot.server, raw, sender="a@none.test", settings=strict)
    assert verdict.action is Action.ACCEPT


@pytest.mark.parametrize(
    ("address", "listed"),
    [
        ("127.0.0.2", True),
        ("192.0.2.9", False),
        ("192.0.2.1", False),
        ("2001:db8::1", 1),
    ],
)
def test_dnsbl(knot: Knot, address: str, listed: bool) -> None:
    settings = InboundPolicy(dnsbl=("nowhere.test", "bl.test"))
    verdict = judge(
        knot.server, message("none.test"), address=address, settings=settings
    )
    if listed:
        assert verdict.kind is Kind.POLICY
        assert verdict.reason == f"client {address} is listed by bl.test"
    else:
        assert verdict.action is Action.ACCEPT


@pytest.mark.parametrize(
    ("address", "result"),
    [("192.0.2.1", "pass"), ("192.0.2.2", "fail"), ("192.0.2.3", "permerror")],
)
def test_iprev(knot: Knot, address: str, result: str) -> None:
    settings = InboundPolicy(iprev=True)
    verdict = judge(
        knot.server, message("none.test"), address=address, settings=settings
    )
    assert outcomes(verdict)["iprev"] == result


# --- DNS does not answer


def test_dead_dns_defers() -> None:
    before = time.monotonic()
    raw = message("reject.test", sign_as="reject.test")
    verdict = judge(
        f"127.0.0.1:{free_port()}", raw, sender="ann@reject.test", kind=Impatient
    )
    assert (verdict.action, verdict.kind) == (Action.DEFER, Kind.TEMPORARY_POLICY)
    assert outcomes(verdict) == dict.fromkeys(("spf", "dkim", "dmarc"), "temperror")
    assert "could not be checked" in verdict.reason
    assert time.monotonic() - before < 5


def test_dead_dns_is_accepted_and_marked_on_loopback_instances() -> None:
    settings = InboundPolicy(
        accept_temperror=True, spf_fail="reject", iprev=True, dnsbl=("bl.test",)
    )
    raw = message("reject.test", sign_as="reject.test")
    verdict = judge(
        f"127.0.0.1:{free_port()}",
        raw,
        sender="ann@reject.test",
        kind=Impatient,
        settings=settings,
    )
    assert (verdict.action, verdict.kind) == (Action.ACCEPT, None)
    assert verdict.header.count(b"=temperror") == 4


class Impatient(CachingResolver):
    """Gives up soon: for servers that are known to be dead."""

    def __init__(self, servers: list[str], **limits: Any) -> None:
        super().__init__(servers, **(limits | {"timeout": 0.2}))


class Lossy(CachingResolver):
    """Does not get answers for some names."""

    lost: frozenset[str] = frozenset()

    async def query(self, name: str, rdtype: str) -> DnsAnswer:
        if name in self.lost:
            return DnsAnswer(DnsStatus.FAILED, error="lost")
        return await super().query(name, rdtype)


@pytest.mark.parametrize(
    ("lost", "action", "results"),
    [
        # SPF is lost, but the aligned signature already passes
        (["plain.test"], Action.ACCEPT, "temperror pass pass"),
        # the key is lost, and would have decided
        (["s._domainkey.reject.test"], Action.DEFER, "fail temperror temperror"),
        # the policy is lost, but its own signature passes: it could not refuse
        (["_dmarc.reject.test"], Action.ACCEPT, "fail pass temperror"),
        (
            ["_dmarc.reject.test", "s._domainkey.reject.test"],
            Action.DEFER,
            "fail temperror temperror",
        ),
    ],
)
def test_a_lost_answer_defers_only_what_hangs_on_it(
    knot: Knot,
    monkeypatch: pytest.MonkeyPatch,
    lost: list[str],
    action: Action,
    results: str,
) -> None:
    monkeypatch.setattr(Lossy, "lost", frozenset(lost))
    raw = message("reject.test", sign_as="reject.test")
    verdict = judge(knot.server, raw, sender="x@plain.test", kind=Lossy)
    assert verdict.action is action
    assert " ".join(outcomes(verdict).values()) == results


# --- settings, strange messages, bugs


def test_nothing_enabled_marks_nothing(knot: Knot) -> None:
    settings = InboundPolicy(spf=False, dkim=False, dmarc=False)
    verdict = judge(knot.server, message("reject.test"), settings=settings)
    assert (verdict.action, verdict.results) == (Action.ACCEPT, ())
    assert verdict.header.endswith(b"\tnone\r\n")


def test_second_from_does_not_hide_the_first(knot: Knot) -> None:
    raw = message("none.test", extra="From: boss@reject.test\r\n")
    verdict = judge(knot.server, raw, sender="a@none.test", address="192.0.2.66")
    assert verdict.action is Action.REJECT
    many = "".join(f"From: a@d{n}.test\r\n" for n in range(9))
    verdict = judge(knot.server, message("none.test", extra=many))
    assert (verdict.action, verdict.reason) == (
        Action.REJECT,
        "too many domains in From",
    )


@pytest.mark.parametrize(
    "raw",
    [b"", b"\r\n", b"From:\r\n\r\n", b"From: \xff@\xff\r\n\r\nx", b"DKIM-Signature:"],
)
def test_strange_messages_get_a_verdict(knot: Knot, raw: bytes) -> None:
    verdict = judge(knot.server, raw, address="")
    assert verdict.action is Action.ACCEPT
    assert outcomes(verdict)["dmarc"] in {"permerror", "none"}


def test_a_bug_in_a_check_defers() -> None:
    async def broken(*_: object) -> Finding:
        raise ZeroDivisionError

    async def run() -> Verdict:
        resolver = CachingResolver(["127.0.0.1"], clock=SystemClock())
        context = Context(resolver, offload, InboundPolicy())
        arrival = Arrival(Peer(), Envelope("", ()), b"", (), NOW, "mx", "mx")
        check = Check("broken", lambda _: True, broken)
        return await policy.evaluate(arrival, context, [[check]])

    assert asyncio.run(run()).action is Action.DEFER
