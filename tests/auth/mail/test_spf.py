"""SPF: the conformance suites through both paths, and what they leave out."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import yaml

from auth.mail import spf
from auth.mail.spf import SpfResult, check_host
from mailserverd.core.ports import DnsAnswer, DnsStatus
from tests.lib.zones import FAILED, ZoneResolver

SUITE = pathlib.Path(__file__).parents[4] / "shared/corpora/auth/spf-rfc7208"
SUITES = ("rfc7208-tests.yml", "rfc4408-tests.yml", "test.yml")


def check(
    resolver: Any, ip: str, mail_from: str, helo: str = "mx.example.net", **more: Any
) -> SpfResult:
    return asyncio.run(check_host(resolver, ip, mail_from, helo, **more))


# --- the suites


def zone(data: dict[str, list[Any]]) -> ZoneResolver:
    """Make a resolver of a suite's zonedata: SPF records stand for TXT ones."""
    records: dict[tuple[str, str], Any] = {}
    for name, entries in data.items():
        pairs = [next(iter(e.items())) for e in entries if isinstance(e, dict)]
        kinds = {kind for kind, _ in pairs}
        for kind, value in pairs:
            kinds_made = ["TXT"] if kind == "SPF" and "TXT" not in kinds else [kind]
            for made in kinds_made:
                if value != "NONE":
                    records.setdefault((name, made), []).append(shape(made, value))
        if "TIMEOUT" in entries:
            for kind in ("TXT", "A", "AAAA", "MX", "PTR", "SPF"):
                records.setdefault((name, kind), FAILED)
    return ZoneResolver(records)


def shape(kind: str, value: Any) -> Any:
    if kind in {"TXT", "SPF"}:
        parts = value if isinstance(value, list) else [value]
        return b"".join(str(part).encode("latin-1") for part in parts)
    if kind == "MX":
        return (int(value[0]), str(value[1]).removesuffix(".").lower())
    return str(value).removesuffix(".")


def scenarios() -> list[Any]:
    found = []
    for name in SUITES:
        path = SUITE / name
        if not path.exists():
            continue
        for number, part in enumerate(yaml.safe_load_all(path.read_text())):
            if part:
                found += [
                    pytest.param(part, test, id=f"{name}-{number}-{key}")
                    for key, test in part["tests"].items()
                    if test.get("strict", 1) == 1  # others are pyspf's own modes
                ]
    return found


@pytest.mark.skipif(not SUITE.exists(), reason="the shared SPF suites are not here")
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "pyspf"])
@pytest.mark.parametrize(("part", "test"), scenarios())
def test_suite(part: dict[str, Any], test: dict[str, Any], plain: bool) -> None:
    resolver = zone(part["zonedata"])
    found = check(
        resolver, test["host"], test["mailfrom"] or "", test["helo"], plain=plain
    )
    wanted = test["result"]
    assert found.result in (wanted if isinstance(wanted, list) else [wanted])
    if "explanation" in test and found.result == "fail":
        wanted = test["explanation"]
        assert found.explanation == ("" if wanted == "DEFAULT" else wanted)


# --- both paths agree


DOMAINS = [f"d{n}.example.com" for n in range(4)]
ADDRESSES = ["192.0.2.1", "192.0.2.77", "198.51.100.4", "2001:db8::1", "2001:db8:1::2"]
FOURS = [a for a in ADDRESSES if ":" not in a]
SIXES = [a for a in ADDRESSES if ":" in a]

qualifiers = st.sampled_from(["", "", "+", "-", "~", "?"])
names = st.sampled_from(["", *(f":{d}" for d in DOMAINS)])
fours = st.sampled_from(["", "", "/24", "/0", "/33", "/31"])
sixes = st.sampled_from(["", "", "//64", "//129", "//0"])
terms = st.one_of(
    st.tuples(qualifiers, st.sampled_from(["a", "mx", "A"]), names, fours, sixes),
    st.tuples(qualifiers, st.just("ip4:"), st.sampled_from(FOURS), fours),
    st.tuples(qualifiers, st.just("ip6:"), st.sampled_from(SIXES), st.just("/48")),
    st.tuples(qualifiers, st.just("include:"), st.sampled_from(DOMAINS)),
    st.tuples(qualifiers, st.sampled_from(["all", "all", "ptr", "exists:x.y", "b"])),
    st.tuples(st.just("redirect="), st.sampled_from(DOMAINS)),
    st.tuples(st.sampled_from(["moo=1", "exp=e.example.com", "a:%{d}", "", "mx:"])),
).map("".join)
records = st.lists(terms, max_size=5).map(lambda t: " ".join(["v=spf1", *t]).encode())


@st.composite
def zones(draw: st.DrawFn) -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    for domain in DOMAINS:
        found[domain, "TXT"] = draw(
            st.one_of(
                st.lists(records, min_size=1, max_size=1),
                st.sampled_from([FAILED, [], [b"other"], [b"v=spf1", b"V=SPF1 -all"]]),
            )
        )
        hosts = draw(
            st.lists(st.sampled_from([*DOMAINS, "", "no.example"]), max_size=3)
        )
        found[domain, "MX"] = [(n, host) for n, host in enumerate(hosts)]
        found[domain, "A"] = draw(st.lists(st.sampled_from(FOURS), max_size=2))
        found[domain, "AAAA"] = draw(st.lists(st.sampled_from(SIXES), max_size=2))
    return found


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(zones(), st.sampled_from(ADDRESSES), st.sampled_from(DOMAINS))
def test_plain_path_says_what_pyspf_says(
    data: dict[tuple[str, str], Any], ip: str, domain: str
) -> None:
    resolver = ZoneResolver(data)
    direct = check(resolver, ip, f"x@{domain}")
    assert direct == check(resolver, ip, f"x@{domain}", plain=False)


def test_ordinary_records_take_the_plain_path() -> None:
    resolver = ZoneResolver(
        {
            ("example.com", "TXT"): [
                b"google-site-verification=1",
                b"v=spf1 mx a:a.example.com ip4:198.51.100.0/24 "
                b"include:_spf.esp.net ~all",
            ],
            ("example.com", "MX"): [(10, "a.example.com")],
            ("a.example.com", "A"): ["192.0.2.9"],
            ("_spf.esp.net", "TXT"): [b"v=spf1 redirect=_net.esp.net"],
            ("_net.esp.net", "TXT"): [b"v=spf1 ip6:2001:db8::/32 ip4:203.0.113.7 -all"],
        }
    )

    def plain(ip: str) -> str | None:
        client = spf._client(ip)
        assert client is not None
        return asyncio.run(spf._Plain(resolver, client).evaluate("example.com"))

    assert plain("192.0.2.9") == "pass"
    assert plain("198.51.100.200") == "pass"
    assert plain("203.0.113.7") == "pass"
    assert plain("::ffff:203.0.113.7") == "pass"
    assert plain("192.0.2.1") == "softfail"


# --- what the suites leave out


def test_dns_failure_is_temperror_never_pass() -> None:
    failing = ZoneResolver({("example.com", "TXT"): FAILED})
    assert check(failing, "192.0.2.1", "a@example.com").result == "temperror"
    behind = ZoneResolver(
        {
            ("example.com", "TXT"): [
                b"v=spf1 include:b.example.com ip4:192.0.2.1 -all"
            ],
            ("b.example.com", "TXT"): FAILED,
        }
    )
    found = check(behind, "192.0.2.1", "a@example.com")
    assert (found.result, found.identity) == ("temperror", "mailfrom")
    assert "timed out" in found.problem


def test_null_sender_checks_helo() -> None:
    resolver = ZoneResolver({("mx.example.net", "TXT"): [b"v=spf1 ip4:192.0.2.1 -all"]})
    assert check(resolver, "192.0.2.1", "") == SpfResult(
        "pass", "mx.example.net", identity="helo"
    )
    assert check(resolver, "192.0.2.2", "", plain=False).identity == "helo"


@pytest.mark.parametrize("helo", ["[192.0.2.1]", "localhost", "", "a..b", "\udcff.x"])
def test_helo_that_is_no_name_is_none(helo: str) -> None:
    assert check(ZoneResolver({}), "192.0.2.1", "", helo).result == "none"


def test_no_client_address_is_none() -> None:
    found = check(ZoneResolver({}), "", "a@example.com")
    assert (found.result, found.problem) == ("none", "no client address")


def test_utf8_domain_is_checked_as_a_labels() -> None:
    resolver = ZoneResolver({("xn--bcher-kva.example", "TXT"): [b"v=spf1 -all"]})
    found = check(resolver, "192.0.2.1", "jürgen@bücher.example")
    assert (found.result, found.domain) == ("fail", "xn--bcher-kva.example")


def test_quoted_at_sign_does_not_choose_the_domain() -> None:
    resolver = ZoneResolver(
        {
            ("evil.example", "TXT"): [b"v=spf1 +all"],
            ("example.com", "TXT"): [b"v=spf1 -all exp=e.example.com"],
            ("e.example.com", "TXT"): [b"%{o} refuses"],
        }
    )
    sender = '"x@evil.example "@example.com'
    assert check(resolver, "192.0.2.1", sender).result == "fail"
    assert check(resolver, "192.0.2.1", sender).explanation == "example.com refuses"


def test_explanation_is_cut_to_harmless_text() -> None:
    resolver = ZoneResolver(
        {
            ("example.com", "TXT"): [b"v=spf1 -all exp=e.example.com"],
            ("e.example.com", "TXT"): [b"bad\r\n250 ok \x1b[31m" + b"x" * 1000],
        }
    )
    text = check(resolver, "192.0.2.1", "a@example.com").explanation
    assert text.startswith("bad250 ok [31mxxx")
    assert len(text) == spf.MAX_EXPLANATION


def test_failing_explanation_does_not_change_the_result() -> None:
    resolver = ZoneResolver(
        {
            ("example.com", "TXT"): [b"v=spf1 -all exp=e.example.com"],
            ("e.example.com", "TXT"): FAILED,
        }
    )
    assert check(resolver, "192.0.2.1", "a@example.com") == SpfResult(
        "fail", "example.com"
    )


def test_ptr_errors_skip() -> None:
    data = {
        ("example.com", "TXT"): [b"v=spf1 ptr:example.com -all"],
        ("1.2.0.192.in-addr.arpa", "PTR"): ["bad.example.com", "good.example.com"],
        ("bad.example.com", "A"): FAILED,
        ("good.example.com", "A"): ["192.0.2.1"],
    }
    assert check(ZoneResolver(data), "192.0.2.1", "a@example.com").result == "pass"
    data["1.2.0.192.in-addr.arpa", "PTR"] = FAILED
    assert check(ZoneResolver(data), "192.0.2.1", "a@example.com").result == "fail"


@pytest.mark.parametrize(
    "record",
    [b"v=spf1 " + b"ip4:192.0.2.1 " * 400 + b"+all", b"v=spf1 " + b"a " * 50 + b"+all"],
)
def test_records_that_would_keep_us_busy_are_permerror(record: bytes) -> None:
    resolver = ZoneResolver({("example.com", "TXT"): [record]})
    for plain in (True, False):
        found = check(resolver, "192.0.2.1", "a@example.com", plain=plain)
        assert (found.result, found.problem) == ("permerror", "SPF record too long")


def test_questions_are_bounded() -> None:
    class Endless(ZoneResolver):
        async def query(self, name: str, rdtype: str) -> DnsAnswer:
            self.asked.append((name, rdtype))
            if rdtype == "MX":
                hosts = tuple((n, f"h{n}.{name}") for n in range(10))
                return DnsAnswer(DnsStatus.FOUND, hosts)
            if rdtype != "TXT":
                return DnsAnswer(DnsStatus.FOUND, ("203.0.113.1",))
            deeper = " ".join(f"mx:m{n}.{name} include:i{n}.{name}" for n in range(9))
            return DnsAnswer(DnsStatus.FOUND, (f"v=spf1 {deeper} -all".encode(),))

    resolver = Endless({})
    assert check(resolver, "192.0.2.1", "a@e.com").result == "permerror"
    assert len(set(resolver.asked)) <= 10 * 11 + 11


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(ZoneResolver):
        async def query(self, name: str, rdtype: str) -> DnsAnswer:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(spf, "TIME_LIMIT", 0.05)
    found = check(Silent({}), "192.0.2.1", "a@example.com")
    assert (found.result, found.problem) == ("temperror", "took too long")


def test_evaluations_that_interleave_do_not_mix() -> None:
    class Slow(ZoneResolver):
        async def query(self, name: str, rdtype: str) -> DnsAnswer:
            await asyncio.sleep(0)
            return await super().query(name, rdtype)

    resolver = Slow(
        {
            ("a.example", "TXT"): [b"v=spf1 exists:%{i}.a.example -all"],
            ("192.0.2.1.a.example", "A"): ["127.0.0.2"],
        }
    )

    async def run() -> list[str]:
        checks = (
            check_host(resolver, f"192.0.2.{n}", "x@a.example", "h.example")
            for n in (1, 2) * 20
        )
        return [r.result for r in await asyncio.gather(*checks)]

    assert asyncio.run(run()) == ["pass", "fail"] * 20
