"""DMARC (RFC 9989): does the domain in From stand behind this message?

The Organizational Domain is found by the DNS Tree Walk (at most eight questions,
section 4.10), not by a public suffix list: nothing to load, to keep in memory or to
update.  Records written for RFC 7489 are understood; of ``pct`` only ``pct=0`` has a
meaning, that of ``t=y`` (appendix A.6).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Literal

from mailserverd.core.names import a_labels
from mailserverd.core.ports import DnsStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from auth.mail.dkim import DkimResult
    from auth.mail.spf import SpfResult
    from mailserverd.core.ports import Resolver

MAX_LABELS = 8  # of a walk, which is also the number of questions
MAX_AUTHORS = 8  # domains of a From with several addresses
MAX_RECORD = 4096  # octets
TOO_MANY = "too many domains in From"
POLICIES = ("none", "quarantine", "reject")  # ascending
_WEAKER = {"reject": "quarantine", "quarantine": "none", "none": "none"}

Result = Literal["none", "pass", "fail", "temperror", "permerror"]


@dataclasses.dataclass(frozen=True, slots=True)
class DmarcResult:
    """What DMARC says of a message.

    ``policy`` is what the domain asks to do with a failing message, with ``t=y``
    applied ("none", "quarantine", "reject"; "" when there is no record or it could
    not be fetched), whatever the result.  ``domain`` is the author's (A-labels),
    ``policy_domain`` where the record was found, ``aligned_by`` "spf", "dkim" or "".
    """

    result: Result
    policy: str = ""
    domain: str = ""
    aligned_by: str = ""
    reason: str = ""
    policy_domain: str = ""

    @property
    def undecided(self) -> bool:
        """True when a DNS failure hides whether a policy is to be applied."""
        return self.result == "temperror" and self.policy != "none"


@dataclasses.dataclass(frozen=True, slots=True)
class DmarcRecord:
    """A policy record; ``valid`` is False when it says nothing that can be applied."""

    p: str = "none"
    sp: str = ""
    np: str = ""
    strict_dkim: bool = False
    strict_spf: bool = False
    testing: bool = False
    psd: str = "u"  # y n u
    valid: bool = True

    def policy(self, tag: str) -> str:
        """Return the policy of tag p, sp or np with its fall-backs (section 4.7)."""
        policy = self.p
        if tag == "np":
            policy = self.np or self.sp or self.p
        elif tag == "sp":
            policy = self.sp or self.p
        return _WEAKER[policy] if self.testing else policy


def parse_record(text: bytes) -> DmarcRecord | None:
    """Parse a TXT record; None unless it starts with v=DMARC1 (section 4.8).

    Unknown tags and bad values are ignored; a bad p, sp or np makes it p=none when
    reports are asked for, and else a record that cannot be applied (section 4.10.1).
    """
    return _parse_record(text) if len(text) <= MAX_RECORD else None


@functools.lru_cache(1024)
def _parse_record(text: bytes) -> DmarcRecord | None:
    pairs = [part.partition("=") for part in text.decode("utf-8", "replace").split(";")]
    tags: dict[str, str] = {}
    for name, _, value in pairs:
        tags.setdefault(name.strip(" \t").lower(), value.strip(" \t"))
    if pairs[0][0].strip(" \t").lower() != "v" or tags["v"] != "DMARC1":
        return None
    wanted = {name: tags.get(name, "").lower() for name in ("p", "sp", "np")}
    bad = any(value and value not in POLICIES for value in wanted.values())
    if bad:
        wanted = {"p": "none", "sp": "", "np": ""}
    psd = tags.get("psd", "u").lower()
    return DmarcRecord(
        p=wanted["p"] or "none",
        sp=wanted["sp"],
        np=wanted["np"],
        strict_dkim=tags.get("adkim", "").lower() == "s",
        strict_spf=tags.get("aspf", "").lower() == "s",
        testing=tags.get("t", "").lower() == "y" or tags.get("pct") == "0",
        psd=psd if psd in {"y", "n"} else "u",
        valid=not bad or ":" in tags.get("rua", ""),
    )


NO_AUTHOR = DmarcResult("permerror", reason="no valid domain in From")


async def evaluate(
    resolver: Resolver,
    from_domains: Sequence[str],
    spf: SpfResult | None,
    dkim: Sequence[DkimResult],
) -> DmarcResult:
    """Evaluate DMARC for the domains in From, with what SPF and DKIM found.

    Several domains: each is evaluated, and the one whose result asks for the strictest
    treatment counts (section 11.5); more than eight are a permerror.  Never raises.
    """
    domains = list(dict.fromkeys(a_labels(d) or "" for d in from_domains)) or [""]
    if len(domains) > MAX_AUTHORS:
        return DmarcResult("permerror", reason=TOO_MANY)
    walker = _Walker(resolver)
    results = [
        await _evaluate(walker, domain, spf, dkim) if domain else NO_AUTHOR
        for domain in domains
    ]
    return max(results, key=_severity)


def _severity(result: DmarcResult) -> tuple[int, int]:
    policy = POLICIES.index(result.policy or "reject")
    order = ("pass", "none", "permerror", "temperror", "fail").index(result.result)
    if result.result == "fail":
        return 2 * policy + 1, order
    return (2 * policy if result.result == "temperror" else 0), order


class _DnsFailureError(Exception):
    """An answer that is needed could not be had."""


class _Walker:
    """Looks records up, each name once per message."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._organizations: dict[str, str] = {}
        self.found: dict[str, list[tuple[str, DmarcRecord]]] = {}

    async def record(self, domain: str) -> DmarcRecord | None:
        """Return the one record at a domain; several are none."""
        answer = await self._resolver.query(f"_dmarc.{domain}", "TXT")
        if answer.status is DnsStatus.FAILED:
            raise _DnsFailureError(f"no answer for _dmarc.{domain}")
        texts = [text for text in answer.records if isinstance(text, bytes)]
        records = [record for text in texts if (record := parse_record(text))]
        return records[0] if len(records) == 1 else None

    async def walk(self, domain: str) -> list[tuple[str, DmarcRecord]]:
        """Return what the tree walk from a domain finds, longest name first."""
        if domain in self.found:
            return self.found[domain]
        labels = domain.split(".")
        found: list[tuple[str, DmarcRecord]] = []
        for count in (len(labels), *range(min(len(labels), MAX_LABELS) - 1, 0, -1)):
            name = ".".join(labels[-count:])
            record = await self.record(name)
            if record is not None:
                found.append((name, record))
                if record.psd != "u":
                    break
        self.found[domain] = found
        return found

    async def organization(self, domain: str) -> str:
        """Return the Organizational Domain (section 4.10.2)."""
        found = await self.walk(domain)
        for name, record in found:
            if record.psd == "n":
                return name
            if record.psd == "y" and name != domain:
                return ".".join(domain.split(".")[-(name.count(".") + 2) :])
        return found[-1][0] if found else domain

    async def exists(self, domain: str) -> bool:
        """Return False for NXDOMAIN (section 3.2.13)."""
        answer = await self._resolver.query(domain, "A")
        if answer.status is DnsStatus.FAILED:
            raise _DnsFailureError(f"no answer for {domain}")
        return answer.status is not DnsStatus.NO_NAME


async def _evaluate(
    walker: _Walker, domain: str, spf: SpfResult | None, dkim: Sequence[DkimResult]
) -> DmarcResult:
    passed = _identifiers(spf, dkim, "pass")
    try:
        record, policy_domain, tag = await _discover(walker, domain)
    except _DnsFailureError as error:
        # Its own name is authenticated: whatever the record says, nothing is to be done
        policy = "none" if any(name == domain for _, name in passed) else ""
        return DmarcResult("temperror", policy, domain, reason=str(error))
    if record is None:
        return DmarcResult("none", domain=domain, reason="no DMARC record")
    if not record.valid:
        reason = "record without a valid policy"
        return DmarcResult("permerror", "none", domain, "", reason, policy_domain)
    aligned, failure = await _attempt(_aligned(walker, domain, record, passed))
    if aligned:
        policy = record.policy(tag)
        return DmarcResult("pass", policy, domain, aligned, "", policy_domain)
    exact, unknown = await _attempt(_exact_tag(walker, domain, record, tag))
    tags = [exact] if exact else ["sp", "np"]  # unknown: what it may be at worst
    policy = max(map(record.policy, tags), key=POLICIES.index)
    if not failure:
        doubtful = _identifiers(spf, dkim, "temperror")
        aligned, failure = await _attempt(_aligned(walker, domain, record, doubtful))
        failure = "SPF or DKIM could not be checked" if aligned else failure
    if failure or unknown:
        reason = failure or unknown
        return DmarcResult("temperror", policy, domain, "", reason, policy_domain)
    reason = "no aligned identifier" if passed else "neither SPF nor DKIM passed"
    return DmarcResult("fail", policy, domain, "", reason, policy_domain)


async def _attempt(work: Awaitable[str]) -> tuple[str, str]:
    """Return (value, ""), or ("", what DNS did not answer)."""
    try:
        return await work, ""
    except _DnsFailureError as error:
        return "", str(error)


async def _exact_tag(
    walker: _Walker, domain: str, record: DmarcRecord, tag: str
) -> str:
    """Return "np" instead of "sp" for a name that does not exist, where it matters."""
    if tag == "sp" and record.policy("np") != record.policy("sp"):
        return "sp" if await walker.exists(domain) else "np"
    return tag


def _identifiers(
    spf: SpfResult | None, dkim: Sequence[DkimResult], result: str
) -> list[tuple[str, str]]:
    found = [("dkim", r.domain) for r in dkim if r.result == result]
    if spf is not None and spf.result == result:
        found.append(("spf", spf.domain))
    return list(dict.fromkeys(found))


async def _discover(
    walker: _Walker, domain: str
) -> tuple[DmarcRecord | None, str, str]:
    """Return the record that applies, where it is, and its tag (section 4.10.1)."""
    record = await walker.record(domain)
    if record is not None:
        return record, domain, "p"
    found = dict(await walker.walk(domain))
    organization = await walker.organization(domain)
    if organization in found:
        return found[organization], organization, "sp"
    for name, suffix in found.items():
        if suffix.psd == "y":
            return suffix, name, "sp"
    return None, "", ""


async def _aligned(
    walker: _Walker,
    domain: str,
    record: DmarcRecord,
    identifiers: list[tuple[str, str]],
) -> str:
    """Return by which mechanism an identifier is aligned, "" when none is."""
    for kind, name in identifiers:
        if name == domain:
            return kind
    relaxed = [
        (kind, name)
        for kind, name in identifiers
        if not (record.strict_dkim if kind == "dkim" else record.strict_spf)
    ]
    if not relaxed:
        return ""
    organization = await walker.organization(domain)
    for kind, name in relaxed:
        # An Organizational Domain is the end of every name that belongs to it.
        within = f".{name}".endswith(f".{organization}")
        if within and await walker.organization(name) == organization:
            return kind
    return ""
