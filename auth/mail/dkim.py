"""DKIM (RFC 6376, with RFC 8301 and RFC 8463): verify and sign.

Refused, though the signature may be mathematically right: rsa-sha1, RSA keys under
1024 bits, and l= that leaves a part of the body uncovered.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
import hashlib
from typing import TYPE_CHECKING

from auth.mail.canonical import (
    MAX_HEADER,
    WSP,
    Header,
    body_hash,
    parse_tags,
    relax_field,
    split_header,
    without_signature,
)
from auth.mail.keys import (
    KeyRecord,
    PrivateKey,
    kind_of,
    parse_key_record,
    sign_data,
)
from mailserverd.core.names import a_labels
from mailserverd.core.ports import DnsAnswer, DnsStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from auth.mail.canonical import Octets
    from mailserverd.core.ports import Offload, Resolver

MAX_SIGNATURES = 10
MAX_KEYS = 4  # TXT records tried for one signature
MAX_SIGNED_FIELDS = 500  # names in h=
OFFLOAD_ABOVE = 128 << 10  # octets of message: above, hashing takes over 1 ms
CLOCK_SKEW = 3600  # seconds that t= may lie ahead
ALGORITHMS = {b"rsa-sha256": "rsa", b"ed25519-sha256": "ed25519"}
REQUIRED = (b"v", b"a", b"b", b"bh", b"d", b"h", b"s")

# Signed where present, and these once more, so that none can be added afterwards.
OVERSIGNED = (
    "From",
    "To",
    "Cc",
    "Subject",
    "Date",
    "Message-ID",
    "Reply-To",
    "In-Reply-To",
    "References",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
)
# Signed where present; relays and lists may legitimately add them.
SIGNED = (
    *OVERSIGNED,
    "Sender",
    "Content-ID",
    "Content-Disposition",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "Auto-Submitted",
)


@dataclasses.dataclass(frozen=True, slots=True)
class DkimResult:
    """What became of one signature, in the terms of RFC 8601 section 2.7.1.

    ``result``: pass; fail (does not verify, expired); policy (not acceptable here: see
    the module); neutral (syntax errors, unknown algorithm); permerror (no usable key,
    From not signed); temperror (DNS).  ``header_b`` is the start of the signature,
    which tells several apart (RFC 6008).  ``testing``: the key says t=y.
    """

    result: str
    domain: str = ""
    selector: str = ""
    algorithm: str = ""
    reason: str = ""
    header_b: str = ""
    testing: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class _Signature:
    field: bytes  # raw
    domain: str  # A-labels
    selector: str
    identity: str  # domain of i=
    algorithm: str
    kind: str
    relaxed_header: bool
    relaxed_body: bool
    names: tuple[bytes, ...]  # of h=, lower case
    length: int | None  # l=
    hash: bytes
    signature: bytes
    header_b: str

    def result(
        self, result: str, reason: str = "", *, testing: bool = False
    ) -> DkimResult:
        return DkimResult(
            result,
            self.domain,
            self.selector,
            self.algorithm,
            reason,
            self.header_b,
            testing,
        )


_Pending = tuple[_Signature, list[KeyRecord]]


async def verify(
    resolver: Resolver,
    message: Octets,
    now: float,
    *,
    offload: Offload | None = None,
) -> list[DkimResult]:
    """Verify the first ten DKIM-Signature fields of a message with CRLF line ends.

    ``now`` is seconds since the epoch.  Returns a result per signature, top first; []
    for an unsigned message.  Never raises for what a message or DNS contains.
    """
    header = split_header(message)
    indexes = header.names.get(b"dkim-signature", [])[:MAX_SIGNATURES]
    if not indexes:
        return []
    if header.body_start > MAX_HEADER:
        return [DkimResult("permerror", reason="header too large")]
    read = [_read_signature(header.fields[index], now) for index in indexes]
    answers = await _fetch_keys(
        resolver, [s for s in read if isinstance(s, _Signature)]
    )
    outcomes = [
        found if isinstance(found, DkimResult) else _usable_keys(found, answers)
        for found in read
    ]
    pending = [found for found in outcomes if isinstance(found, tuple)]
    if not pending:
        checked = []
    elif offload is not None and len(message) > OFFLOAD_ABOVE:
        checked = await offload(_check_all, message, header, pending)
    else:
        checked = _check_all(message, header, pending)
    rest = iter(checked)
    return [f if isinstance(f, DkimResult) else next(rest) for f in outcomes]


# --- reading a signature (RFC 6376 section 6.1.1)


class _BadSignature(Exception):
    def __init__(self, result: str, reason: str) -> None:
        super().__init__(reason)
        self.result, self.reason = result, reason


def _read_signature(field: bytes, now: float) -> _Signature | DkimResult:
    tags = parse_tags(field.partition(b":")[2]) or {}
    domain, selector = _text(tags.get(b"d", b"")), _text(tags.get(b"s", b""))
    header_b = _squeeze(tags.get(b"b", b""))[:8].decode("ascii", "replace")
    algorithm = _text(tags.get(b"a", b"")).lower()
    try:
        return _parse_signature(field, tags, now)
    except _BadSignature as bad:
        return DkimResult(bad.result, domain, selector, algorithm, bad.reason, header_b)


def _parse_signature(field: bytes, tags: dict[bytes, bytes], now: float) -> _Signature:
    if not tags:
        raise _BadSignature("neutral", "syntax error in signature")
    if missing := [name.decode() for name in REQUIRED if not tags.get(name)]:
        raise _BadSignature("neutral", f"{missing[0]}= is missing")
    if tags[b"v"] != b"1":
        raise _BadSignature("neutral", "unknown version")
    kind = _algorithm(tags[b"a"].lower())
    header, body = _canonicalization(tags.get(b"c", b"simple/simple"))
    domain, identity = _domains(tags)
    _check_times(tags, now)
    if b"q" in tags and b"dns/txt" not in _items(tags[b"q"]):
        raise _BadSignature("neutral", "unknown query method")
    names = tuple(_items(tags[b"h"]))
    if b"from" not in names:
        raise _BadSignature("permerror", "From is not signed")
    if len(names) > MAX_SIGNED_FIELDS:
        raise _BadSignature("neutral", "too many signed fields")
    return _Signature(
        field=field,
        domain=domain,
        selector=_text(tags[b"s"]).lower(),
        identity=identity,
        algorithm=_text(tags[b"a"]).lower(),
        kind=kind,
        relaxed_header=header,
        relaxed_body=body,
        names=names,
        length=_number(tags, b"l"),
        hash=_base64(tags[b"bh"]),
        signature=_base64(tags[b"b"]),
        header_b=_squeeze(tags[b"b"])[:8].decode("ascii", "replace"),
    )


def _algorithm(name: bytes) -> str:
    if name == b"rsa-sha1":  # RFC 8301 section 3.1
        raise _BadSignature("policy", "rsa-sha1 is not accepted")
    if name not in ALGORITHMS:
        raise _BadSignature("neutral", "unknown algorithm")
    return ALGORITHMS[name]


def _canonicalization(value: bytes) -> tuple[bool, bool]:
    header, _, body = value.lower().partition(b"/")
    body = body or b"simple"
    known = {b"simple", b"relaxed"}
    if header not in known or body not in known:
        raise _BadSignature("neutral", "unknown canonicalization")
    return header == b"relaxed", body == b"relaxed"


def _domains(tags: dict[bytes, bytes]) -> tuple[str, str]:
    """Return the domains of d= and i=, the second within the first."""
    domain = a_labels(_text(tags[b"d"]))
    selector = _text(tags[b"s"])
    if domain is None or a_labels(f"{selector}._domainkey.{domain}") is None:
        raise _BadSignature("neutral", "d= or s= is not a domain name")
    if b"i" not in tags:
        return domain, domain
    identity = a_labels(_text(tags[b"i"]).rpartition("@")[2])
    if identity is None or not f".{identity}".endswith(f".{domain}"):
        raise _BadSignature("permerror", "i= is not within d=")
    return domain, identity


def _check_times(tags: dict[bytes, bytes], now: float) -> None:
    signed, expires = _number(tags, b"t"), _number(tags, b"x")
    if signed is not None and signed > now + CLOCK_SKEW:
        raise _BadSignature("fail", "signed in the future")
    if expires is None:
        return
    if signed is not None and expires <= signed:
        raise _BadSignature("neutral", "expires before it was signed")
    if expires < now:
        raise _BadSignature("fail", "signature expired")


def _number(tags: dict[bytes, bytes], name: bytes) -> int | None:
    if name not in tags:
        return None
    value, digits = tags[name], 76  # section 3.5: up to 76 digits in l=
    if not value.isdigit() or len(value) > digits:
        raise _BadSignature("neutral", f"{name.decode()}= is not a number")
    return int(value)


def _base64(value: bytes) -> bytes:
    try:
        return base64.b64decode(_squeeze(value), validate=True)
    except binascii.Error:
        raise _BadSignature("neutral", "bad base64") from None


def _squeeze(value: bytes) -> bytes:
    return b"".join(value.split())


def _items(value: bytes) -> list[bytes]:
    return [item.strip(WSP).lower() for item in value.split(b":")]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")[:320]


# --- keys


async def _fetch_keys(
    resolver: Resolver, signatures: list[_Signature]
) -> dict[str, DnsAnswer]:
    names = list(dict.fromkeys(_key_name(signature) for signature in signatures))
    if len(names) == 1:  # a task each costs more than a cached answer
        return {names[0]: await resolver.query(names[0], "TXT")}
    answers = await asyncio.gather(*(resolver.query(name, "TXT") for name in names))
    return dict(zip(names, answers, strict=True))


def _key_name(signature: _Signature) -> str:
    return f"{signature.selector}._domainkey.{signature.domain}"


def _usable_keys(
    signature: _Signature, answers: dict[str, DnsAnswer]
) -> DkimResult | _Pending:
    """Choose the records that can verify, or say why there is none (section 6.1.2)."""
    answer = answers[_key_name(signature)]
    if answer.status is DnsStatus.FAILED:
        return signature.result("temperror", "key could not be fetched")
    texts = [text for text in answer.records if isinstance(text, bytes)]
    records = [record for text in texts if (record := parse_key_record(text))]
    if not records:
        return signature.result("permerror", "no key for signature")
    usable = [r for r in records if not _objection(signature, r)][:MAX_KEYS]
    if usable:
        return signature, usable
    first = records[0]
    result = "policy" if first.unacceptable else "permerror"
    return signature.result(result, _objection(signature, first), testing=first.testing)


def _objection(signature: _Signature, record: KeyRecord) -> str:
    if record.problem:
        return record.problem
    if record.kind != signature.kind:
        return "key of another type"
    if record.same_domain and signature.identity != signature.domain:
        return "i= must be d= for this key"
    return ""


# --- the computation (section 6.1.3); may run in a thread


def _check_all(
    message: Octets, header: Header, pending: list[_Pending]
) -> list[DkimResult]:
    bodies: dict[bool, tuple[bytes, int]] = {}
    relaxed: dict[int, bytes] = {}
    results = []
    for signature, records in pending:
        kind = signature.relaxed_body
        if kind not in bodies:
            bodies[kind] = body_hash(message, header.body_start, relaxed=kind)
        results.append(_check(signature, records, bodies[kind], header, relaxed))
    return results


def _check(
    signature: _Signature,
    records: list[KeyRecord],
    body: tuple[bytes, int],
    header: Header,
    relaxed: dict[int, bytes],
) -> DkimResult:
    testing = records[0].testing
    found, length = body
    if signature.length is not None and signature.length != length:
        if signature.length > length:
            return _failure(signature, "l= exceeds the body", testing=testing)
        return signature.result("policy", "l= leaves body uncovered", testing=testing)
    if found != signature.hash:
        return _failure(signature, "body hash did not verify", testing=testing)
    data = _signed_data(
        header,
        signature.names,
        signature.field,
        relaxed,
        simple=not signature.relaxed_header,
    )
    digest = hashlib.sha256(data).digest()
    for record in records:
        if record.verifies(signature.signature, data, digest):
            return signature.result("pass", testing=record.testing)
    return _failure(signature, "signature did not verify", testing=testing)


def _failure(signature: _Signature, reason: str, *, testing: bool) -> DkimResult:
    """A domain that tests its keys (t=y) must not suffer for it (section 3.6.1)."""
    return signature.result("neutral" if testing else "fail", reason, testing=testing)


def _signed_data(
    header: Header,
    names: Sequence[bytes],
    field: bytes,
    relaxed: dict[int, bytes],
    *,
    simple: bool,
) -> bytes:
    """Join the signed fields, each name taking the next instance from the bottom."""
    taken: dict[bytes, int] = {}
    parts = []
    for name in names:
        indexes = header.names.get(name, ())
        used = taken.get(name, 0)
        if used >= len(indexes):
            continue
        taken[name] = used + 1
        index = indexes[-1 - used]
        if simple:
            parts.append(header.fields[index])
            continue
        if index not in relaxed:
            relaxed[index] = relax_field(header.fields[index])
        parts.append(relaxed[index])
    own = without_signature(field)
    parts.append(own if simple else relax_field(own))
    return b"\r\n".join(parts)


# --- signing (section 5)


def sign(
    message: Octets,
    domain: str,
    selector: str,
    private_key: PrivateKey,
    headers: Sequence[str],
    now: float,
) -> bytes:
    """Return a DKIM-Signature field (with CRLF) to put on top of the message.

    ``headers`` are the names to sign where present (``SIGNED``); those in
    ``OVERSIGNED`` are signed once more.  relaxed/relaxed, SHA-256.  About 0.7 ms with
    RSA 2048: offload when that matters.  ValueError when there is no From field.
    """
    header = split_header(message)
    names = _names_to_sign(header, headers)
    hashed, _ = body_hash(message, header.body_start, relaxed=True)
    field = (
        f"DKIM-Signature: v=1; a={kind_of(private_key)}-sha256; c=relaxed/relaxed;\r\n"
        f"\td={domain};\r\n"
        f"\ts={selector}; t={int(now)};\r\n"
        f"\th={_fold(names)};\r\n"
        f"\tbh={base64.b64encode(hashed).decode()};\r\n"
        f"\tb="
    ).encode()
    data = _signed_data(
        header, [name.lower().encode() for name in names], field, {}, simple=False
    )
    signature = sign_data(private_key, data, hashlib.sha256(data).digest())
    encoded = base64.b64encode(signature)
    lines = [encoded[at : at + 72] for at in range(0, len(encoded), 72)]
    return field + b"\r\n\t ".join(lines) + b"\r\n"


def _names_to_sign(header: Header, headers: Sequence[str]) -> list[str]:
    if b"from" not in header.names:
        raise ValueError("a message without From cannot be signed")
    again = {name.lower() for name in OVERSIGNED}
    names = []
    for name in headers:
        count = len(header.names.get(name.lower().encode(), ()))
        names += [name] * (count + (name.lower() in again))
    return names


def _fold(names: list[str]) -> str:
    lines, line = [], ""
    for name in names:
        if line and len(line) + len(name) > 70:
            lines.append(line)
            line = ""
        line += name + ":"
    return "\r\n\t ".join([*lines, line])[:-1]
