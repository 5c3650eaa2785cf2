"""Comparing a domain's records with the live DNS; blocking, for a thread.

SPF and DMARC are judged by checkdmarc, which knows what else can be wrong in them;
everything else is compared with what ``dns_records`` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import checkdmarc.dmarc  # type: ignore[import-untyped] # has no stubs
import checkdmarc.spf  # type: ignore[import-untyped] # has no stubs
import dns.exception
import dns.nameserver
import dns.resolver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.services.dns_records import Record

TIMEOUT = 5.0  # seconds for one look-up
PATIENCE = 2  # look-ups without any answer
Line = dict[str, Any]


def check(
    records: Sequence[Record], domain: str, hostname: str, servers: Sequence[str]
) -> list[Line]:
    """Return a line per record: name, type, ok, text (what is wrong, and how)."""
    live = _Live(servers)
    lines = [_host(live, hostname)]
    for record in records:
        if record.type == "MX":
            lines.append(_mx(live, record, hostname))
        elif record.type == "TXT":
            lines.append(_txt(live, record, _kind(record)))
        else:
            lines.append(_plain(live, record))
    return lines if live.silent else [*lines, *_judged(live.resolver, domain)]


class _Live:
    """The DNS as it is; gives up on servers that do not answer at all."""

    def __init__(self, servers: Sequence[str]) -> None:
        self.resolver = dns.resolver.Resolver(configure=not servers)
        if servers:
            self.resolver.nameservers = [_nameserver(server) for server in servers]
        self.resolver.timeout = self.resolver.lifetime = TIMEOUT
        self._unanswered = 0

    @property
    def silent(self) -> bool:
        """True when asking further would only cost time."""
        return self._unanswered >= PATIENCE

    def ask(self, name: str, kind: str) -> list[Any] | str:
        """Return the records, or what went wrong ("" when there are none)."""
        if self.silent:
            return "DNS failure: the servers do not answer"
        try:
            return list(self.resolver.resolve(name, kind, search=False))
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return ""
        except dns.resolver.LifetimeTimeout:
            self._unanswered += 1
            return "DNS failure: no answer in time"
        except dns.exception.DNSException as error:
            return f"DNS failure: {error}"


def _nameserver(server: str) -> dns.nameserver.Do53Nameserver:
    """Parse ``192.0.2.1``, ``192.0.2.1:5353``, ``[::1]:53``."""
    if server.startswith("["):
        address, _, port = server[1:].partition("]")
        return dns.nameserver.Do53Nameserver(address, int(port[1:] or 53))
    if server.count(":") == 1:
        address, _, port = server.partition(":")
        return dns.nameserver.Do53Nameserver(address, int(port))
    return dns.nameserver.Do53Nameserver(server)


def _line(name: str, kind: str, text: str, *, ok: bool) -> Line:
    return {"name": name, "type": kind, "ok": ok, "text": text}


def _missing(record: Record, why: str | list[Any]) -> Line:
    if isinstance(why, str) and why:
        return _line(record.name, record.type, why, ok=False)
    text = "not published (optional)" if record.optional else "not published"
    return _line(record.name, record.type, text, ok=record.optional)


def _host(live: _Live, hostname: str) -> Line:
    found = [live.ask(hostname, kind) for kind in ("A", "AAAA")]
    addresses = [str(rdata) for one in found if isinstance(one, list) for rdata in one]
    problem = next((one for one in found if isinstance(one, str) and one), "")
    text = ", ".join(addresses) or problem or "this server's name has no address"
    return _line(hostname, "A", text, ok=bool(addresses))


def _mx(live: _Live, record: Record, hostname: str) -> Line:
    found = live.ask(record.name, "MX")
    if isinstance(found, str) or not found:
        return _missing(record, found)
    hosts = [str(r.exchange).rstrip(".").lower() for r in found]
    text = ", ".join(hosts) if hostname in hosts else f"points to {', '.join(hosts)}"
    return _line(record.name, "MX", text, ok=hostname in hosts)


def _kind(record: Record) -> str:
    """Return the tag that tells this TXT record from others at its name."""
    return record.text.partition(";")[0].partition(" ")[0]


def _txt(live: _Live, record: Record, kind: str) -> Line:
    found = live.ask(record.name, "TXT")
    if isinstance(found, str) or not found:
        return _missing(record, found)
    texts = [b"".join(r.strings).decode("utf-8", "replace") for r in found]
    same = [text for text in texts if text.lower().startswith(kind.lower())]
    if not same:
        return _missing(record, "")
    if len(same) > 1:
        return _line(record.name, "TXT", f"{len(same)} {kind} records", ok=False)
    if _tags(same[0]) == _tags(record.text):
        return _line(record.name, "TXT", "as it should be", ok=True)
    if kind == "v=DKIM1":
        return _line(record.name, "TXT", "another key than this server's", ok=False)
    return _line(record.name, "TXT", f"differs: {same[0]}", ok=True)


def _tags(text: str) -> list[str]:
    return ["".join(tag.split()) for tag in text.split(";") if tag.strip()]


def _plain(live: _Live, record: Record) -> Line:
    found = live.ask(record.name, record.type)
    if isinstance(found, str) or not found:
        return _missing(record, found)
    values = [str(rdata).lower() for rdata in found]
    wanted = record.value.lower()
    text = "as it should be" if wanted in values else f"differs: {', '.join(values)}"
    return _line(record.name, record.type, text, ok=wanted in values)


def _judged(resolver: dns.resolver.Resolver, domain: str) -> list[Line]:
    """Return what checkdmarc says of the SPF and DMARC policies as published."""
    judges = (
        ("SPF", domain, checkdmarc.spf.check_spf),
        ("DMARC", f"_dmarc.{domain}", checkdmarc.dmarc.check_dmarc),
    )
    lines = []
    for kind, name, judge in judges:
        result: dict[str, Any] = dict(judge(domain, resolver=resolver, timeout=TIMEOUT))
        problems = [str(result["error"])] if result.get("error") else []
        problems += [str(w) for w in result.get("warnings", ())]
        text = "; ".join(problems) or "valid"
        lines.append(_line(name, kind, text, ok=bool(result.get("valid"))))
    return lines
