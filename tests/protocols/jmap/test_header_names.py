"""Names of header properties (RFC 8621 section 4.1.3)."""

from __future__ import annotations

import pytest

from protocols.jmap.wire import headers
from protocols.jmap.wire.headers import Form, HeaderProperty


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("header:subject", HeaderProperty("subject")),
        ("header:Subject:asText", HeaderProperty("Subject", Form.TEXT)),
        ("header:X:all", HeaderProperty("X", Form.RAW, True)),
        ("header:X:asURLs:all", HeaderProperty("X", Form.URLS, True)),
        ("header:X:asRaw", HeaderProperty("X")),
        ("header:all", HeaderProperty("all")),
        ("header:asText", HeaderProperty("asText")),
        ("header:", None),
        ("header", None),
        ("Header:x", None),
        ("header:a b", None),
        ("header:ä", None),
        ("header:x:text", None),
        ("header:x:asText:asText", None),
        ("header:x:all:asText", None),
        ("header:x:asNothing", None),
        ("header:x:asText:all:all", None),
    ],
)
def test_names(text, found):
    assert headers.parse(text) == found


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("From", "Raw Addresses GroupedAddresses"),
        ("reply-TO", "Raw Addresses GroupedAddresses"),
        ("Subject", "Raw Text"),
        ("List-Id", "Raw Text Addresses GroupedAddresses MessageIds Date URLs"),
        ("X-Own", "Raw Text Addresses GroupedAddresses MessageIds Date URLs"),
        ("Message-ID", "Raw MessageIds"),
        ("References", "Raw MessageIds"),
        ("Date", "Raw Date"),
        ("Resent-Date", "Raw Date"),
        ("List-Post", "Raw URLs"),
        ("Received", "Raw"),
        ("Return-Path", "Raw"),
    ],
)
def test_forms(name, forms):
    allowed = [f.value for f in Form if HeaderProperty(name, f).allowed]
    assert allowed == forms.split()
