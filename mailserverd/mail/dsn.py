"""Delivery status notifications (RFC 3464, as asked for by RFC 3461).

A report is a multipart/report (RFC 6522): text for people, message/delivery-status
for programs, and the original message or its header.  With SMTPUTF8 the parts are
of the message/global kind (RFC 6533).
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from mailserverd.mail.build import (
    Addresses,
    BodyPart,
    EmailSpec,
    Header,
    MessageIds,
    Raw,
    Text,
    build_email,
)
from mailserverd.mail.dates import format_date
from mailserverd.mail.encode import fold
from mailserverd.mail.headers import as_message_ids, get, header_end

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

MAX_RETURNED = 50_000  # octets of a message that is returned whole without being asked
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
_NOT_XCHAR = re.compile(r"[^!-*,-<>-~]")
_NOT_QCHAR = re.compile(r"[^!-*,-<>-\[\]-~]")
_UTF8_XTEXT = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_ACTIONS = {
    "failed": "5.0.0",
    "delayed": "4.0.0",
    "delivered": "2.0.0",
    "relayed": "2.0.0",
    "expanded": "2.0.0",
}
_SUBJECTS = {
    "failed": "Undelivered mail returned to sender",
    "delayed": "Mail is delayed, still trying",
    "delivered": "Mail was delivered",
    "relayed": "Mail was relayed",
    "expanded": "Mail was delivered",
}
_SAID = {
    "failed": (
        "Your message could not be delivered to the recipients below. It will not be"
        " tried again."
    ),
    "delayed": (
        "Your message could not be delivered to the recipients below yet. It is still"
        " being tried; you do not need to send it again."
    ),
    "delivered": "Your message was delivered to the recipients below.",
    "relayed": (
        "Your message was handed to the mail servers of the recipients below, which"
        " will not confirm that it is delivered."
    ),
    "expanded": "Your message was delivered to the recipients below.",
}


@dataclasses.dataclass(frozen=True, slots=True)
class DsnRecipient:
    """What happened for one recipient.

    ``action`` is failed, delayed, delivered, relayed or expanded; ``status`` an
    enhanced status code ("5.1.1"); ``original_recipient`` the ORCPT parameter as it
    came (``rfc822;joe@example.org`` in xtext); times in seconds since the epoch.
    """

    final_recipient: str
    action: str
    status: str = ""
    original_recipient: str = ""
    diagnostic: str = ""  # the remote reply, or our own words when remote_mta is ""
    remote_mta: str = ""
    last_attempt: float | None = None
    retry_until: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class DsnReport:
    """One report; all recipients have the same kind of outcome.

    ``original`` is the message as it was sent (CRLF line ends), or at least its
    header; ``ret`` FULL, HDRS or "" (RFC 3461 section 4.3), ``envid`` as it came.
    """

    hostname: str
    to: str  # the reverse-path of the message
    recipients: tuple[DsnRecipient, ...]
    original: bytes = b""
    ret: str = ""
    envid: str = ""
    arrived: float | None = None
    smtputf8: bool = False


def build_report(
    report: DsnReport, *, now: float, rng: random.Random | None = None
) -> bytes:
    """Return the report as a message; its envelope sender must be null.

    ValueError without recipients, or for an unknown action.
    """
    if not report.recipients or any(
        r.action not in _ACTIONS for r in report.recipients
    ):
        raise ValueError("a report needs recipients with known actions")
    kind = report.recipients[0].action
    postmaster = ("Mail Delivery System", f"MAILER-DAEMON@{report.hostname}")
    headers = [
        Header("From", Addresses(((None, (postmaster,)),))),
        Header("To", Addresses(((None, ((None, report.to),)),))),
        Header("Subject", Text(_SUBJECTS[kind])),
        Header("Auto-Submitted", Raw(" auto-replied")),  # RFC 3834 section 5
    ]
    ids = as_message_ids(get(_header_of(report.original), "message-id") or b"")
    if ids and ids[0].isascii() and ids[0].isprintable():
        headers.append(Header("In-Reply-To", MessageIds((ids[0],))))
    body = BodyPart(
        "multipart/report",
        children=(
            BodyPart("text/plain", _words(report, kind).encode(), charset="utf-8"),
            _status_part(report),
            *_original_part(report, kind),
        ),
        params=(("report-type", "delivery-status"),),
    )
    spec = EmailSpec(tuple(headers), body, eight_bit=report.smtputf8)
    return build_email(spec, now=now, hostname=report.hostname, rng=rng)


def _header_of(message: bytes) -> bytes:
    return message[: header_end(message)]


def _words(report: DsnReport, kind: str) -> str:
    """The part for people."""
    lines = [f"This is the mail server {report.hostname}.", "", _SAID[kind], ""]
    for recipient in report.recipients:
        lines.append(f"<{_clean(recipient.final_recipient)}>")
        said = _clean(recipient.diagnostic)
        if said and recipient.remote_mta:
            said = f"{_clean(recipient.remote_mta)} said: {said}"
        if said:
            lines.append(f"    {said}")
        if recipient.action == "delayed" and recipient.retry_until:
            lines.append(f"    Tried until {format_date(recipient.retry_until)}.")
        lines.append("")
    return "\n".join(lines)


def _status_part(report: DsnReport) -> BodyPart:
    blocks = [_message_fields(report)]
    blocks += [_recipient_fields(r, report.smtputf8) for r in report.recipients]
    text = "\r\n".join("".join(block) for block in blocks)
    subtype = "global-delivery-status" if report.smtputf8 else "delivery-status"
    return BodyPart(f"message/{subtype}", text.encode())


def _message_fields(report: DsnReport) -> Iterator[str]:
    """RFC 3464 section 2.2."""
    if report.envid:
        envid = _clean(decode_xtext(report.envid))
        yield _field("Original-Envelope-Id", envid, report.smtputf8)
    yield _field("Reporting-MTA", f"dns; {report.hostname}", report.smtputf8)
    if report.arrived is not None:
        yield f"Arrival-Date: {format_date(report.arrived)}\r\n"


def _recipient_fields(recipient: DsnRecipient, utf8: bool) -> Iterator[str]:
    """RFC 3464 section 2.3."""
    kind, _, original = recipient.original_recipient.partition(";")
    if original:
        yield _address_field("Original-Recipient", decode_orcpt(kind, original), utf8)
    yield _address_field("Final-Recipient", recipient.final_recipient, utf8)
    yield f"Action: {recipient.action}\r\n"
    known = _STATUS.fullmatch(recipient.status)
    yield f"Status: {recipient.status if known else _ACTIONS[recipient.action]}\r\n"
    if recipient.remote_mta:
        yield _field("Remote-MTA", f"dns; {recipient.remote_mta}", utf8)
    if recipient.diagnostic:
        source = "smtp" if recipient.remote_mta else "X-mailserverd"
        yield _field("Diagnostic-Code", f"{source}; {recipient.diagnostic}", utf8)
    if recipient.last_attempt is not None:
        yield f"Last-Attempt-Date: {format_date(recipient.last_attempt)}\r\n"
    if recipient.action == "delayed" and recipient.retry_until is not None:
        yield f"Will-Retry-Until: {format_date(recipient.retry_until)}\r\n"


def _address_field(name: str, address: str, utf8: bool) -> str:
    """Addresses beyond ASCII have type utf-8, escaped where the report is ASCII."""
    address = _clean(address)
    if address.isascii():
        return _field(name, f"rfc822; {address}", utf8)
    if not utf8:  # utf-8-addr-xtext of RFC 6533 section 3
        address = "".join(
            char if char.isascii() and char not in "\\+=" else f"\\x{{{ord(char):02X}}}"
            for char in address
        )
    return _field(name, f"utf-8; {address}", utf8)


def _field(name: str, value: str, utf8: bool) -> str:
    value = _clean(value)
    if not utf8:
        value = value.encode("ascii", "backslashreplace").decode()
    return fold(name, value.split(" "))


def _clean(value: str) -> str:
    return " ".join(_UNSAFE.sub(" ", value).split())


def decode_xtext(text: str) -> str:
    """Decode xtext (RFC 3461 section 4), octets as latin-1 characters."""
    return _XTEXT.sub(lambda match: chr(int(match[1], 16)), text)


def encode_xtext(text: str) -> str:
    """Encode printable ASCII as xtext (RFC 3461 section 4)."""
    return _NOT_XCHAR.sub(lambda match: f"+{ord(match[0]):02X}", text)


def encode_orcpt(kind: str, text: str) -> str:
    """Encode an ORCPT address, the opposite of ``decode_orcpt``."""
    if kind.strip().lower() != "utf-8":
        return encode_xtext(text)
    return _NOT_QCHAR.sub(lambda match: f"\\x{{{ord(match[0]):X}}}", text)


def decode_orcpt(kind: str, text: str) -> str:
    """Decode an ORCPT address; the utf-8 kind as RFC 6533 section 3 says."""
    if kind.strip().lower() != "utf-8":
        return decode_xtext(text)
    return _UTF8_XTEXT.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = int(match[1], 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    return chr(code)


def _original_part(report: DsnReport, kind: str) -> Iterator[BodyPart]:
    """The third part: the whole message only for failures (RFC 3461 section 6.2)."""
    if not report.original:
        return
    header = _header_of(report.original)
    whole = kind == "failed" and (
        report.ret == "FULL"
        or (not report.ret and len(report.original) <= MAX_RETURNED)
    )
    if whole and len(header) < len(report.original):
        subtype = "global" if report.smtputf8 else "rfc822"
        yield BodyPart(f"message/{subtype}", report.original)
    elif report.smtputf8:
        yield BodyPart("message/global-headers", header)
    else:
        yield BodyPart("text/rfc822-headers", header)
