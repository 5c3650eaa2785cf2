"""DMARC: discovery, alignment, policies and what DNS failures may and may not do."""

from __future__ import annotations

import asyncio
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from auth.mail import dmarc
from auth.mail.dkim import DkimResult
from auth.mail.dmarc import DmarcRecord, DmarcResult, parse_record
from auth.mail.spf import SpfResult
from mailserverd.core.ports import DnsAnswer, DnsStatus
from tests.lib.zones import FAILED, ZoneResolver

REJECT = "v=DMARC1; p=reject"
HOST = DnsAnswer(DnsStatus.FOUND, ("192.0.2.1",))


def zone(**records: Any) -> ZoneResolver:
    """Make a resolver: ``example_com=...`` is the record of example.com."""
    found: dict[tuple[str, str], Any] = {}
    for key, value in records.items():
        name = key.replace("_", ".")
        record = [value.encode()] if isinstance(value, str) else value
        found[f"_dmarc.{name}", "TXT"] = record
        found[name, "A"] = HOST
    return ZoneResolver(found)


def evaluate(
    resolver: ZoneResolver,
    domain: str | list[str],
    spf: str = "",
    dkim: str = "",
    **results: str,
) -> DmarcResult:
    """Evaluate with SPF and DKIM passing for these domains, or as ``results`` say."""
    domains = [domain] if isinstance(domain, str) else domain
    spf_found = SpfResult(results.get("spf_result", "pass"), spf) if spf else None
    dkim_found = [
        DkimResult(results.get("dkim_result", "pass"), name) for name in dkim.split()
    ]
    return asyncio.run(dmarc.evaluate(resolver, domains, spf_found, dkim_found))


def test_pass_by_either() -> None:
    resolver = zone(example_com=REJECT)
    assert evaluate(resolver, "example.com", spf="example.com") == DmarcResult(
        "pass", "reject", "example.com", "spf", "", "example.com"
    )
    found = evaluate(resolver, "example.com", spf="other.net", dkim="a.b example.com")
    assert (found.result, found.aligned_by) == ("pass", "dkim")


def test_fail() -> None:
    found = evaluate(zone(example_com=REJECT), "example.com", spf="example.net")
    assert (found.result, found.policy, found.aligned_by) == ("fail", "reject", "")
    assert found.reason == "no aligned identifier"
    found = evaluate(zone(example_com=REJECT), "example.com")
    assert found.reason == "neither SPF nor DKIM passed"


@pytest.mark.parametrize("result", ["fail", "none", "neutral", "permerror", "policy"])
def test_only_pass_passes(result: str) -> None:
    found = evaluate(
        zone(example_com=REJECT),
        "example.com",
        spf="example.com",
        dkim="example.com",
        spf_result="softfail" if result == "policy" else result,
        dkim_result=result,
    )
    assert (found.result, found.policy) == ("fail", "reject")


def test_no_record_is_none() -> None:
    found = evaluate(zone(), "mail.example.com", spf="mail.example.com")
    assert (found.result, found.policy, found.undecided) == ("none", "", False)


@pytest.mark.parametrize(
    ("author", "identifier", "tags", "result"),
    [
        ("example.com", "news.example.com", "", "pass"),
        ("news.example.com", "example.com", "", "pass"),
        ("a.example.com", "b.c.example.com", "", "pass"),
        ("example.com", "example.com.evil.net", "", "fail"),
        ("example.com", "badexample.com", "", "fail"),
        ("example.com", "com", "", "fail"),
        ("example.com", "news.example.com", "; adkim=s; aspf=s", "fail"),
        ("example.com", "example.com", "; adkim=s; aspf=s", "pass"),
        ("example.com", "news.example.com", "; adkim=r; aspf=x", "pass"),
        ("EXAMPLE.com.", "example.COM", "", "pass"),
    ],
)
@pytest.mark.parametrize("kind", ["spf", "dkim"])
def test_alignment(
    author: str, identifier: str, tags: str, result: str, kind: str
) -> None:
    resolver = zone(example_com=REJECT + tags)
    identifier = identifier.lower()
    assert evaluate(resolver, author, **{kind: identifier}).result == result


def test_strictness_is_per_mechanism() -> None:
    resolver = zone(example_com=f"{REJECT}; aspf=s")
    assert evaluate(resolver, "example.com", spf="a.example.com").result == "fail"
    assert evaluate(resolver, "example.com", dkim="a.example.com").result == "pass"


def test_author_record_wins_but_does_not_make_an_organization() -> None:
    resolver = zone(mail_example_com="v=DMARC1; p=none", example_com=REJECT)
    assert evaluate(resolver, "mail.example.com").policy == "none"
    found = evaluate(resolver, "mail.example.com", dkim="other.example.com")
    assert (found.result, found.policy) == ("pass", "none")


def test_psd_n_is_an_organization_of_its_own() -> None:
    resolver = zone(mail_example_com=f"{REJECT}; psd=n", example_com=REJECT)
    assert evaluate(resolver, "a.mail.example.com", dkim="mail.example.com").result == (
        "pass"
    )
    assert evaluate(resolver, "mail.example.com", dkim="example.com").result == "fail"


def test_psd_y_separates_its_customers() -> None:
    resolver = zone(bank="v=DMARC1; p=reject; psd=y")
    assert evaluate(resolver, "one.bank", dkim="two.bank").result == "fail"
    found = evaluate(resolver, "one.bank", dkim="mail.one.bank")
    assert (found.result, found.policy_domain) == ("pass", "bank")
    assert evaluate(resolver, "bank", dkim="bank").result == "pass"


def test_suffix_without_psd_joins_as_the_standard_says() -> None:
    resolver = zone(com="v=DMARC1; p=none", example_com=REJECT)
    assert evaluate(resolver, "example.com", dkim="other.com").result == "pass"


def test_walk_asks_at_most_eight_questions() -> None:
    resolver = zone()
    evaluate(resolver, "a.b.c.d.e.f.g.h.i.j.mail.example.com")
    assert list(dict.fromkeys(resolver.asked)) == [
        (f"_dmarc.{name}", "TXT")
        for name in (
            "a.b.c.d.e.f.g.h.i.j.mail.example.com",
            "g.h.i.j.mail.example.com",
            "h.i.j.mail.example.com",
            "i.j.mail.example.com",
            "j.mail.example.com",
            "mail.example.com",
            "example.com",
            "com",
        )
    ]


def test_aligned_name_with_its_own_record_needs_one_question() -> None:
    resolver = zone(example_com=REJECT)
    evaluate(resolver, "example.com", dkim="example.com", spf="bounce.esp.net")
    assert resolver.asked == [("_dmarc.example.com", "TXT")]


@pytest.mark.parametrize(
    ("record", "author", "policy"),
    [
        ("v=DMARC1; p=reject; sp=quarantine; np=none", "example.com", "reject"),
        ("v=DMARC1; p=reject; sp=quarantine; np=none", "is.example.com", "quarantine"),
        ("v=DMARC1; p=reject; sp=quarantine; np=none", "no.example.com", "none"),
        ("v=DMARC1; p=none; np=reject", "is.example.com", "none"),
        ("v=DMARC1; p=none; np=reject", "no.example.com", "reject"),
        ("v=DMARC1; p=reject; sp=none", "no.example.com", "none"),
        ("v=DMARC1; p=quarantine", "no.example.com", "quarantine"),
        ("v=DMARC1; p=reject; t=y", "example.com", "quarantine"),
        ("v=DMARC1; p=quarantine; t=y", "example.com", "none"),
        ("v=DMARC1; p=reject; pct=0", "example.com", "quarantine"),
        ("v=DMARC1; p=reject; pct=5", "example.com", "reject"),
        ("v=DMARC1; p=reject; t=n", "example.com", "reject"),
    ],
)
def test_policies(record: str, author: str, policy: str) -> None:
    resolver = zone(example_com=record)
    resolver.records["is.example.com", "A"] = HOST
    found = evaluate(resolver, author)
    assert (found.result, found.policy) == ("fail", policy)


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("v=DMARC1", DmarcRecord()),
        ("v=DMARC1;", DmarcRecord()),
        ("V = DMARC1 ; P = Reject ;", DmarcRecord("reject")),
        ("v=DMARC1; p=none; ;; rubbish; =; x", DmarcRecord()),
        ("v=DMARC1; p=reject; p=none", DmarcRecord("reject")),
        ("v=DMARC1; adkim=s; aspf=S", DmarcRecord(strict_dkim=True, strict_spf=True)),
        ("v=DMARC1; p=monitor", DmarcRecord(valid=False)),
        ("v=DMARC1; p=monitor; rua=mailto:a@b.c", DmarcRecord()),
        ("v=DMARC1; p=reject; sp=all", DmarcRecord(valid=False)),
        ("v=DMARC1; p=reject; np=\ufffd", DmarcRecord(valid=False)),
        ("v=DMARC1; psd=Y", DmarcRecord(psd="y")),
        ("v=DMARC1; psd=maybe", DmarcRecord()),
        ("v=DMARC2; p=reject", None),
        ("v=dmarc1; p=reject", None),
        ("p=reject; v=DMARC1", None),
        (" ;v=DMARC1", None),
        ("v=DMARC1 p=reject", None),
        ("", None),
        ("v=spf1 -all", None),
    ],
)
def test_records(text: str, record: DmarcRecord | None) -> None:
    assert parse_record(text.encode()) == record


@hypothesis.given(st.binary(max_size=200))
def test_any_text_parses_or_is_none(text: bytes) -> None:
    parse_record(text)
    parse_record(b"v=DMARC1;" + text)


def test_unusable_record_applies_nothing() -> None:
    found = evaluate(zone(example_com="v=DMARC1; p=monitor"), "example.com")
    assert (found.result, found.policy) == ("permerror", "none")


def test_two_records_are_none() -> None:
    resolver = zone(example_com=[REJECT.encode(), b"v=DMARC1; p=none"])
    assert evaluate(resolver, "example.com").result == "none"
    resolver = zone(example_com=[REJECT.encode(), b"verification=1"])
    assert evaluate(resolver, "example.com").result == "fail"


# --- DNS failures


def test_record_that_cannot_be_fetched_is_temperror() -> None:
    found = evaluate(zone(example_com=FAILED), "example.com", spf="other.net")
    assert (found.result, found.policy, found.undecided) == ("temperror", "", True)
    found = evaluate(zone(example_com=FAILED), "example.com", dkim="example.com")
    assert (found.result, found.undecided) == ("temperror", False)


def test_failure_up_the_tree_is_temperror_only_where_it_matters() -> None:
    resolver = zone(mail_example_com=REJECT, example_com=FAILED)
    found = evaluate(resolver, "mail.example.com", dkim="mail.example.com")
    assert found.result == "pass"
    found = evaluate(resolver, "mail.example.com", dkim="x.example.com")
    assert (found.result, found.undecided) == ("temperror", True)
    assert evaluate(resolver, "mail.example.com").result == "fail"


def test_failed_inputs_defer_only_what_they_would_decide() -> None:
    resolver = zone(example_com=REJECT, example_net="v=DMARC1; p=none")
    found = evaluate(
        resolver, "example.com", dkim="a.example.com", dkim_result="temperror"
    )
    assert (found.result, found.policy, found.undecided) == (
        "temperror",
        "reject",
        True,
    )
    found = evaluate(resolver, "example.com", spf="example.com", spf_result="temperror")
    assert found.undecided
    found = evaluate(resolver, "example.com", spf="esp.org", spf_result="temperror")
    assert found.result == "fail"
    found = evaluate(
        resolver,
        "example.com",
        spf="example.com",
        spf_result="temperror",
        dkim="example.com",
    )
    assert found.result == "pass"
    found = evaluate(resolver, "example.net", spf="example.net", spf_result="temperror")
    assert (found.result, found.undecided) == ("temperror", False)
    found = evaluate(zone(), "example.com", spf="example.com", spf_result="temperror")
    assert found.result == "none"


def test_unknown_existence_is_temperror() -> None:
    resolver = zone(example_com="v=DMARC1; p=none; np=reject")
    resolver.records["no.example.com", "A"] = FAILED
    found = evaluate(resolver, "no.example.com")
    assert (found.result, found.undecided) == ("temperror", True)


# --- several and strange authors


@pytest.mark.parametrize(
    ("domains", "result", "policy"),
    [
        (["good.example", "example.com"], "fail", "reject"),
        (["example.com", "good.example"], "fail", "reject"),
        (["example.net", "good.example"], "fail", "none"),
        (["example.org", "example.net"], "fail", "quarantine"),
        (["example.edu", "example.org"], "temperror", ""),
        (["example.edu", "example.com"], "fail", "reject"),
        (["nothing.example", "good.example"], "none", ""),
        (["good.example", "GOOD.example"], "pass", "reject"),
    ],
)
def test_several_authors_take_the_strictest(
    domains: list[str], result: str, policy: str
) -> None:
    resolver = zone(
        example_com=REJECT,
        example_net="v=DMARC1; p=none",
        example_org="v=DMARC1; p=quarantine",
        example_edu=FAILED,
        good_example=REJECT,
    )
    found = evaluate(resolver, domains, dkim="good.example")
    assert (found.result, found.policy) == (result, policy)


@pytest.mark.parametrize("domains", [[], [""], ["a..b"], ["example.com", "\udcff"]])
def test_no_valid_author_is_permerror(domains: list[str]) -> None:
    found = evaluate(zone(example_com=REJECT), domains, spf="example.com")
    assert (found.result, found.policy) == ("permerror", "")


def test_invalid_author_does_not_hide_another() -> None:
    found = evaluate(zone(example_com=REJECT), ["a..b", "example.com"])
    assert (found.result, found.policy) == ("fail", "reject")


def test_many_authors_are_limited() -> None:
    resolver = zone()
    found = evaluate(resolver, [f"d{n}.example" for n in range(9)])
    assert (found.result, found.reason) == ("permerror", "too many domains in From")
    assert resolver.asked == []


def test_utf8_author() -> None:
    resolver = ZoneResolver(
        {("_dmarc.xn--bcher-kva.example", "TXT"): [REJECT.encode()]}
    )
    found = evaluate(resolver, "bücher.example", dkim="xn--bcher-kva.example")
    assert (found.result, found.domain) == ("pass", "xn--bcher-kva.example")
