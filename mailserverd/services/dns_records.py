"""The DNS records that a domain needs: what ``domain dns`` prints, as plain data.

MX (RFC 5321), SPF (RFC 7208), DKIM (RFC 6376), DMARC (RFC 7489), MTA-STS (RFC 8461),
TLS reports (RFC 8460), SRV for clients (RFC 6186, RFC 8314, RFC 8620).
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.directory import DkimKey

MAX_STRING = 255  # octets of one character-string of a TXT record
SRV = (
    # service, port, comment
    ("_submissions", 465, "mail clients find where to send"),
    ("_submission", 587, ""),
    ("_imaps", 993, "mail clients find where to read"),
    ("_imap", 143, ""),
    ("_jmap", 443, "JMAP clients find the session"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One record; ``value`` as a zone file writes it, ``text`` a TXT's whole text."""

    name: str  # without final dot
    type: str
    value: str
    comment: str = ""
    text: str = ""
    optional: bool = False

    def as_dict(self) -> dict[str, object]:
        """Return what the command shows."""
        return {
            "name": self.name,
            "type": self.type,
            "value": self.value,
            "comment": self.comment,
            "optional": self.optional,
        }


def records(domain: str, hostname: str, keys: Sequence[DkimKey]) -> list[Record]:
    """Return every record of a domain whose mail ``hostname`` handles."""
    found = [
        Record(domain, "MX", f"10 {hostname}.", "mail for the domain comes here"),
        _txt(domain, "v=spf1 mx -all", "only this server sends for the domain"),
        _txt(hostname, "v=spf1 a -all", "for bounces, which name the host only"),
    ]
    found += [
        _txt(
            f"{key.selector}._domainkey.{domain}",
            key.txt,
            f"DKIM, {key.algorithm}: signatures of outgoing mail",
        )
        for key in keys
    ]
    found += [
        _txt(
            f"_dmarc.{domain}",
            f"v=DMARC1; p=quarantine; rua=mailto:postmaster@{domain}",
            "what others do with mail that fails both; p=none while you watch",
        ),
        _txt(
            f"_smtp._tls.{domain}",
            f"v=TLSRPTv1; rua=mailto:postmaster@{domain}",
            "reports of failed TLS",
            optional=True,
        ),
    ]
    return found + _mta_sts(domain, hostname) + _clients(domain, hostname)


def mta_sts_policy(hostname: str, *, mode: str = "testing") -> str:
    """Return the policy file (RFC 8461 section 3.2): testing, enforce or none."""
    lines = ("version: STSv1", f"mode: {mode}", f"mx: {hostname}", "max_age: 604800")
    return "".join(f"{line}\r\n" for line in lines)


def _mta_sts(domain: str, hostname: str) -> list[Record]:
    policy = mta_sts_policy(hostname)
    where = f"https://mta-sts.{domain}/.well-known/mta-sts.txt"
    hint = " / ".join(policy.split("\r\n")[:-1])
    return [
        _txt(
            f"_mta-sts.{domain}",
            f"v=STSv1; id={zlib.crc32(policy.encode())}",
            f"once a web server answers {where} with: {hint}",
            optional=True,
        ),
    ]


def _clients(domain: str, hostname: str) -> list[Record]:
    found = [
        Record(
            f"{service}._tcp.{domain}",
            "SRV",
            f"0 1 {port} {hostname}.",
            comment,
            optional=True,
        )
        for service, port, comment in SRV
    ]
    comment = "once a web server there answers: Thunderbird asks it for settings"
    return [
        *found,
        Record(f"autoconfig.{domain}", "CNAME", f"{hostname}.", comment, optional=True),
    ]


def _txt(name: str, text: str, comment: str, *, optional: bool = False) -> Record:
    parts = [text[n : n + MAX_STRING] for n in range(0, len(text), MAX_STRING)]
    value = " ".join(f'"{part}"' for part in parts)
    return Record(name, "TXT", value, comment, text, optional)
