"""Delivery reports."""

from __future__ import annotations

import dataclasses
import email
import random
from typing import TYPE_CHECKING

import pytest

from mailserverd.mail.dsn import (
    MAX_RETURNED,
    DsnRecipient,
    DsnReport,
    build_report,
    decode_orcpt,
    decode_xtext,
)
from tests.lib.mail_checks import check_parsed

if TYPE_CHECKING:
    from mailserverd.mail.model import Part

ORIGINAL = (
    b"From: joe@x.example\r\nMessage-ID: <1@x>\r\nSubject: s\r\n\r\nbody \xc3\xbc\r\n"
)
FAILED = DsnRecipient(
    "no@there.example",
    "failed",
    "5.1.1",
    "rfc822;n+6F@there.example",
    "550-5.1.1 No such\r\n550 5.1.1 user",
    "mx.there.example",
    1e9,
)
REPORT = DsnReport(
    "mx.example", "joe@x.example", (FAILED,), ORIGINAL, envid="Q+2B1", arrived=9e8
)


def build(report: DsnReport) -> bytes:
    return build_report(report, now=1e9, rng=random.Random(3))


def parts(raw: bytes) -> tuple[Part, ...]:
    return check_parsed(raw).parts


def body(raw: bytes, number: int) -> str:
    part = parts(raw)[number]
    return raw[part.body_start : part.body_end].decode()


def test_failure() -> None:
    raw = build(REPORT)
    assert [f"{p.type}/{p.subtype}" for p in parts(raw)] == [
        "multipart/report",
        "text/plain",
        "message/delivery-status",
        "message/rfc822",
        "text/plain",
    ]
    assert parts(raw)[0].param("report-type") == "delivery-status"
    assert body(raw, 2) == (
        "Original-Envelope-Id: Q+1\r\nReporting-MTA: dns; mx.example\r\n"
        "Arrival-Date: Thu, 9 Jul 1998 16:00:00 +0000\r\n\r\n"
        "Original-Recipient: rfc822; no@there.example\r\n"
        "Final-Recipient: rfc822; no@there.example\r\nAction: failed\r\n"
        "Status: 5.1.1\r\nRemote-MTA: dns; mx.there.example\r\n"
        "Diagnostic-Code: smtp; 550-5.1.1 No such 550 5.1.1 user\r\n"
        "Last-Attempt-Date: Sun, 9 Sep 2001 01:46:40 +0000\r\n"
    )
    assert ORIGINAL in raw
    check_parsed(raw)
    head = raw.partition(b"\r\n\r\n")[0]
    assert b"Auto-Submitted: auto-replied" in head
    assert b"In-Reply-To: <1@x>" in head
    assert b"From: Mail Delivery System <MAILER-DAEMON@mx.example>" in head


def test_the_standard_library_reads_it() -> None:
    message = email.message_from_bytes(build(REPORT))
    assert message.get_content_type() == "multipart/report"
    status = message.get_payload(1).get_payload()
    assert [block["Action"] for block in status] == [None, "failed"]


def test_what_is_returned() -> None:
    def third(report: DsnReport) -> str:
        found = parts(build(report))[3]
        return f"{found.type}/{found.subtype}"

    headers, whole = "text/rfc822-headers", "message/rfc822"
    large = ORIGINAL + b"x\r\n" * MAX_RETURNED
    assert third(dataclasses.replace(REPORT, ret="HDRS")) == headers
    assert third(dataclasses.replace(REPORT, original=large)) == headers
    assert third(dataclasses.replace(REPORT, original=large, ret="FULL")) == whole
    head = ORIGINAL.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert third(dataclasses.replace(REPORT, original=head)) == headers
    delivered = dataclasses.replace(FAILED, action="delivered", status="")
    report = dataclasses.replace(REPORT, recipients=(delivered,), ret="FULL")
    assert third(report) == headers
    assert len(parts(build(dataclasses.replace(REPORT, original=b"")))) == 3


@pytest.mark.parametrize(
    ("action", "status"),
    [
        ("delayed", "4.0.0"),
        ("delivered", "2.0.0"),
        ("relayed", "2.0.0"),
        ("expanded", "2.0.0"),
    ],
)
def test_other_kinds(action: str, status: str) -> None:
    recipient = DsnRecipient("a@b", action, "nonsense", retry_until=2e9)
    raw = build(dataclasses.replace(REPORT, recipients=(recipient,)))
    text = body(raw, 2)
    assert f"Action: {action}\r\nStatus: {status}\r\n" in text
    assert ("Will-Retry-Until: Wed, 18 May 2033" in text) == (action == "delayed")


def test_smtputf8_uses_the_global_types() -> None:
    recipient = DsnRecipient(
        "jürgen@x.example", "failed", original_recipient="utf-8;j\\x{FC}@x"
    )
    report = dataclasses.replace(REPORT, recipients=(recipient,), smtputf8=True)
    raw = build(report)
    assert [f"{p.type}/{p.subtype}" for p in parts(raw)][2:4] == [
        "message/global-delivery-status",
        "message/global",
    ]
    assert "Original-Recipient: utf-8; jü@x\r\n" in body(raw, 2)
    assert "Final-Recipient: utf-8; jürgen@x.example\r\n" in body(raw, 2)
    short = parts(build(dataclasses.replace(report, ret="HDRS")))[3]
    assert (short.type, short.subtype) == ("message", "global-headers")
    plain = build(dataclasses.replace(report, smtputf8=False, original=b""))
    assert plain.isascii()
    assert "Final-Recipient: utf-8; j\\x{FC}rgen@x.example\r\n" in body(plain, 2)


def test_nothing_can_be_injected() -> None:
    recipient = DsnRecipient(
        "a@b",
        "failed",
        diagnostic="x\r\n\r\nFinal-Recipient: y\x00\r\n--=_",
        remote_mta="m\r\nX: y",
    )
    raw = build(dataclasses.replace(REPORT, recipients=(recipient,), envid="a+0D+0Ab"))
    assert "\r\nX: y" not in body(raw, 2)
    assert body(raw, 2).count("\r\nFinal-Recipient") == 1
    assert "Original-Envelope-Id: a b\r\n" in body(raw, 2)


def test_xtext() -> None:
    assert decode_xtext("a+2Bb+3D") == "a+b="
    assert decode_orcpt("rfc822", "a+40b") == "a@b"
    assert decode_orcpt("UTF-8", "\\x{110000}\\x{D800}\\x{41}") == "\ufffd\ufffdA"


@pytest.mark.parametrize("recipients", [(), (DsnRecipient("a@b", "eaten"),)])
def test_impossible_reports(recipients: tuple[DsnRecipient, ...]) -> None:
    with pytest.raises(ValueError, match="recipients"):
        build(dataclasses.replace(REPORT, recipients=recipients))
