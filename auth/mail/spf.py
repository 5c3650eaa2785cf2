"""SPF (RFC 7208): is this host allowed to use that domain in MAIL FROM or HELO?

pyspf decides; it is blocking, so it runs on DNS answers fetched beforehand: where one
is missing, the evaluation stops, the answer is awaited, and it starts again.  Records
made only of plain mechanisms (nearly all) take ``_Plain``, which walks a compiled form
and hands everything out of the ordinary (any error, limit or macro) back to pyspf, so
that the outcome is pyspf's in every case.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import ipaddress
import re
import socket
from typing import TYPE_CHECKING, NamedTuple

import spf  # type: ignore[import-untyped] # pyspf has no annotations

from mailserverd.core.names import MAX_LABEL, a_labels
from mailserverd.core.ports import DnsAnswer, DnsStatus

if TYPE_CHECKING:
    from mailserverd.core.ports import Resolver

TIME_LIMIT = 20.0  # seconds for one evaluation, RFC 7208 section 4.6.4
MAX_MECHANISMS = 10  # that ask DNS, per evaluation
MAX_VOID = 2  # questions without an answer
MAX_HOSTS = 10  # MX or PTR names that are followed
MAX_ROUNDS = 200  # restarts of pyspf: above what the limits let it ask
MAX_EXPLANATION = 200
MAX_RECORD = 4096  # octets; RFC 7208 section 3.4 asks for less than 450
MAX_NAMES = 40  # terms with names or macros in a record: it may use ten

_Key = tuple[str, str]
_Answers = dict[_Key, DnsAnswer]


@dataclasses.dataclass(frozen=True, slots=True)
class SpfResult:
    """What SPF says of a connection.

    ``result``: none neutral pass fail softfail temperror permerror (section 2.6).
    ``domain`` was checked (A-labels), as ``identity`` "mailfrom" or "helo".
    ``explanation`` is the domain's own words for a fail (exp=), a stranger's text cut
    to 200 printable ASCII characters; ``problem`` says why it is an error.
    """

    result: str
    domain: str
    explanation: str = ""
    problem: str = ""
    identity: str = "mailfrom"


async def check_host(
    resolver: Resolver, ip: str, mail_from: str, helo: str, *, plain: bool = True
) -> SpfResult:
    """Evaluate check_host() of RFC 7208 section 4 for a client at ``ip``.

    With the null reverse-path (``mail_from`` is ""), the HELO name is checked.
    Never raises: a DNS failure or an evaluation that takes over 20 s is temperror.
    ``plain=False`` sends everything through pyspf (the tests compare both).
    """
    identity = "mailfrom" if mail_from else "helo"
    local, _, domain = (mail_from or helo).rpartition("@")
    local = local or "postmaster"  # section 4.3
    name = a_labels(domain)
    client = _client(ip)
    if name is None or "." not in name or name.startswith("[") or client is None:
        problem = "no domain to check" if client else "no client address"
        return SpfResult("none", domain[:255], problem=problem, identity=identity)
    sender = f"{local}@{name}" if mail_from else ""
    try:
        async with asyncio.timeout(TIME_LIMIT):
            if plain and (found := await _Plain(resolver, client).evaluate(name)):
                return SpfResult(found, name, identity=identity)
            return await _pyspf(resolver, client, sender, helo if sender else name)
    except TimeoutError:
        return SpfResult("temperror", name, problem="took too long", identity=identity)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@functools.lru_cache(1024)
def _client(ip: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped  # section 5
    return address


# --- pyspf on prefetched answers


_ADDRESS_TERM = re.compile(rb"[-+?~]?ip[46]:[0-9a-f.:/]+", re.IGNORECASE).fullmatch


class _Missing(Exception):
    """pyspf needs answers that are not there yet; see ``_Query.missing``."""


async def _pyspf(
    resolver: Resolver, client: _Address, sender: str, helo: str
) -> SpfResult:
    answers: _Answers = {}
    for _ in range(MAX_ROUNDS):
        query = _Query(str(client), sender, helo, answers)
        with contextlib.suppress(_Missing):
            result, _code, explanation = query.check()
        # A _Missing within exp= is swallowed by pyspf: look at what was noted.
        if not query.missing:
            return SpfResult(
                result,
                query.o,
                "" if result != "fail" else _explain(explanation),
                _printable(query.prob) if result.endswith("error") else "",
                query.ident,
            )
        found = await asyncio.gather(*(resolver.query(*key) for key in query.missing))
        answers.update(zip(query.missing, found, strict=True))
    return SpfResult("permerror", query.o, problem="too many DNS questions")


class _Query(spf.query):  # type: ignore[misc] # pyspf has no annotations
    """One run of pyspf whose DNS is a dict; notes what the dict lacks."""

    def __init__(self, ip: str, sender: str, helo: str, answers: _Answers) -> None:
        super().__init__(i=ip, s=sender, h=helo, strict=True)
        if sender:  # pyspf splits at the first "@", which may be a quoted one
            self.l, _, self.o = sender.rpartition("@")
            self.d = self.o
        self.answers = answers
        self.missing: list[_Key] = []
        self.prob = ""

    def dns(
        self, name: str, qtype: str, cnames: object = None, ignore_void: bool = False
    ) -> list[object]:
        """Return the records from the answers, counting void look-ups."""
        key = _dns_key(name, qtype)
        if key is None:
            return []
        answer = self.answers.get(key)
        if answer is None:
            self.missing.append(key)
            raise _Missing
        if answer.status is DnsStatus.FAILED:
            raise spf.TempError(f"DNS {answer.error}")
        if not answer.records and not ignore_void:
            self.void_lookups += 1
            if self.void_lookups > MAX_VOID:
                raise spf.PermError(f"Void lookup limit of {MAX_VOID} exceeded")
        if qtype == "TXT":
            return _texts(answer.records)
        return list(answer.records)

    def cidrmatch(self, ipaddrs: list[object], n: int) -> bool:
        """Return True when the client is in a network; as pyspf's, without objects."""
        try:
            numbers = [int(ipaddress.ip_address(str(ip))) for ip in ipaddrs]
        except ValueError as error:
            raise spf.PermError(str(error)) from None
        shift = self.cidrmax - n
        client = int(self.ipaddr) >> shift
        return any(number >> shift == client for number in numbers)

    def dns_mx(self, domainname: str) -> list[object]:
        """Return the addresses of all MX hosts, asking for all at once."""
        hosts = [mx[1] for mx in sorted(self.dns(domainname, "MX"))]  # type: ignore[type-var,index] # (preference, host)
        if len(hosts) > MAX_HOSTS:
            raise spf.PermError(f"More than {MAX_HOSTS} MX records returned")
        self._want(hosts)
        return [address for host in hosts for address in self.dns_a(host, self.A)]

    def validated_ptrs(self) -> list[str]:
        """Return the client's names that lead back to it; errors skip, section 5.5."""
        try:
            names = [str(name) for name in self.dns_ptr(self.i)[:MAX_HOSTS]]
        except spf.TempError:
            return []
        self._want(names)
        return [name for name in names if self._leads_back(name)]

    def _leads_back(self, name: str) -> bool:
        try:
            return bool(self.cidrmatch(self.dns_a(name, self.A), self.cidrmax))
        except spf.TempError:
            return False

    def _want(self, hosts: list[str]) -> None:
        keys = [_dns_key(host, self.A) for host in hosts]
        lacking = [key for key in keys if key and key not in self.answers]
        if lacking:
            self.missing.extend(dict.fromkeys(lacking))
            raise _Missing


def _texts(records: tuple[object, ...]) -> list[object]:
    """Return TXT records as pyspf takes them: each a list of strings.

    A record that would keep pyspf busy for long is a permanent error.
    """
    texts = [text for text in records if isinstance(text, bytes)]
    if any(spf.RE_SPF.match(text) and _too_long(text) for text in texts):
        raise spf.PermError("SPF record too long")
    return [(text,) for text in texts if len(text) <= MAX_RECORD]


def _too_long(text: bytes) -> bool:
    named = sum(not _ADDRESS_TERM(word) for word in text[:MAX_RECORD].split())
    return len(text) > MAX_RECORD or named > MAX_NAMES


def _dns_key(name: str, qtype: str) -> _Key | None:
    name = name.removesuffix(".").lower()
    if not all(0 < len(label) <= MAX_LABEL for label in name.split(".")):
        return None
    return name, qtype


def _printable(text: object) -> str:
    return "".join(c for c in str(text) if " " <= c <= "~")[:MAX_EXPLANATION]


def _explain(text: str) -> str:
    return "" if text == spf.EXPLANATIONS["fail"] else _printable(text)


# --- plain records, compiled


class _Unusual(Exception):
    """Not an ordinary outcome: pyspf decides."""


class _Term(NamedTuple):
    kind: str  # all ip4 ip6 a mx include
    result: str  # when it matches
    domain: str  # "" is the current one
    network: int  # of ip4 and ip6
    bits4: int  # prefix lengths
    bits6: int


class _Policy(NamedTuple):
    terms: tuple[_Term, ...]
    redirect: str
    includes: frozenset[str]


_RESULTS = {"": "pass", "+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}
_NAME = (
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.){1,30}"
    r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
)
_HOST = re.compile(_NAME, re.IGNORECASE)
_HOSTS = re.compile(
    rf"([-+?~]?)(a|mx)(?::({_NAME}))?(?:/(0|[1-9]\d?))?(?://(0|[1-9]\d{{0,2}}))?",
    re.IGNORECASE,
)
_INCLUDE = re.compile(rf"([-+?~]?)include:({_NAME})", re.IGNORECASE)
_REDIRECT = re.compile(rf"redirect=({_NAME})")
_NETWORK = re.compile(
    r"([-+?~]?)(ip4|ip6):([0-9a-f.:]{2,45})(?:/(0|[1-9]\d{0,2}))?", re.IGNORECASE
)
_ALL = re.compile(r"([-+?~]?)all", re.IGNORECASE)
_BITS4, _BITS6 = 32, 128


@functools.lru_cache(1024)
def _compile(text: bytes) -> _Policy | None:
    """Return a record of plain terms in compiled form, None for any other."""
    terms, redirect = [], ""
    if _too_long(text):
        return None
    for word in text.decode("ascii", "replace").split(" ")[1:]:
        if not word:
            continue
        if found := _REDIRECT.fullmatch(word):
            if redirect:
                return None
            redirect = found[1].lower()
        elif (term := _term(word)) is not None:
            terms.append(term)
        else:
            return None
    includes = frozenset(term.domain for term in terms if term.kind == "include")
    return _Policy(tuple(terms), redirect, includes)


def _term(word: str) -> _Term | None:
    if found := _ALL.fullmatch(word):
        return _Term("all", _RESULTS[found[1]], "", 0, 0, 0)
    if found := _INCLUDE.fullmatch(word):
        return _Term("include", _RESULTS[found[1]], found[2].lower(), 0, 0, 0)
    if found := _NETWORK.fullmatch(word):
        return _network(_RESULTS[found[1]], found[2].lower(), found[3], found[4])
    if found := _HOSTS.fullmatch(word):
        bits4, bits6 = int(found[4] or _BITS4), int(found[5] or _BITS6)
        if bits4 > _BITS4 or bits6 > _BITS6:
            return None
        domain = (found[3] or "").lower()
        return _Term(found[2].lower(), _RESULTS[found[1]], domain, 0, bits4, bits6)
    return None


def _network(result: str, kind: str, address: str, prefix: str | None) -> _Term | None:
    size = _BITS4 if kind == "ip4" else _BITS6
    bits = size if prefix is None else int(prefix)
    try:
        number = int(
            ipaddress.IPv4Address(address)
            if kind == "ip4"
            else ipaddress.IPv6Address(address)
        )
    except ValueError:
        return None
    return _Term(kind, result, "", number, bits, bits) if bits <= size else None


class _Plain:
    """Evaluates plain records; None means that pyspf has to."""

    def __init__(self, resolver: Resolver, client: _Address) -> None:
        self._query = resolver.query
        self._number = int(client)
        self._four = client.version == 4
        self._rdtype = "A" if self._four else "AAAA"
        self._family = socket.AF_INET if self._four else socket.AF_INET6
        self._size = _BITS4 if self._four else _BITS6
        self._asked = self._void = 0

    async def evaluate(self, domain: str) -> str | None:
        """Return the result, or None where it is not an ordinary one."""
        if not _HOST.fullmatch(domain):
            return None
        try:
            return await self._domain(domain)
        except _Unusual:
            return None

    async def _domain(self, domain: str, *, top: bool = True) -> str:
        while True:
            text = await self._record(domain)
            if text is None and top:
                return "none"
            policy = _compile(text) if text and len(text) <= MAX_RECORD else None
            if policy is None or domain in policy.includes:
                raise _Unusual
            if policy.redirect:
                self._count()
            for term in policy.terms:
                if await self._matches(term, domain):
                    return term.result
            if not policy.redirect:
                return "neutral"
            domain, top = policy.redirect, False

    async def _record(self, domain: str) -> bytes | None:
        texts: list[bytes] = [
            text
            for text in await self._records(domain, "TXT")
            if isinstance(text, bytes) and text[:7].lower() in {b"v=spf1", b"v=spf1 "}
        ]
        if len(texts) > 1:
            raise _Unusual
        return texts[0] if texts else None

    async def _matches(self, term: _Term, domain: str) -> bool:
        kind = term.kind
        if kind == "all":
            return True
        if kind in {"ip4", "ip6"}:
            own = (kind == "ip4") is self._four
            return own and self._within(term.network, term.bits4)
        self._count()
        target = term.domain or domain
        if kind == "include":
            return await self._domain(target, top=False) == "pass"
        bits = term.bits4 if self._four else term.bits6
        addresses = await self._addresses(kind, target)
        return any(self._within(self._parse(a), bits) for a in addresses)

    async def _addresses(self, kind: str, target: str) -> list[object]:
        if kind == "a":
            return list(await self._records(target, self._rdtype))
        exchanges = await self._records(target, "MX")
        if len(exchanges) > MAX_HOSTS:
            raise _Unusual
        found: list[object] = []
        for exchange in exchanges:
            host = str(exchange[1]) if isinstance(exchange, tuple) else ""
            if host:
                found += await self._records(host, self._rdtype)
        return found

    async def _records(self, name: str, rdtype: str) -> tuple[object, ...]:
        answer = await self._query(name, rdtype)
        if answer.status is DnsStatus.FAILED:
            raise _Unusual
        if not answer.records:
            self._void += 1
            if self._void > MAX_VOID:
                raise _Unusual
        return answer.records

    def _count(self) -> None:
        self._asked += 1
        if self._asked > MAX_MECHANISMS:
            raise _Unusual

    def _within(self, network: int, bits: int) -> bool:
        return (network ^ self._number) >> (self._size - bits) == 0

    def _parse(self, address: object) -> int:
        return int.from_bytes(socket.inet_pton(self._family, str(address)), "big")
