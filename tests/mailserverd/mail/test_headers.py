"""Header fields and their parsed forms."""

from __future__ import annotations

import pytest

from mailserverd.mail import headers

BLOCK = (
    b"From user@example Mon Jan 1\r\n"
    b"Subject: one\r\n"
    b" two\r\n"
    b"X-Empty:\r\n"
    b"no field at all\r\n"
    b"subject : three\n"
    b"Fold:\n\ta\n b\n"
    b"\r\n"
    b"Subject: in the body\r\n"
)


def test_fields_with_offsets() -> None:
    fields = list(headers.iter_fields(BLOCK))
    assert [f.name for f in fields] == [b"Subject", b"X-Empty", b"subject", b"Fold"]
    assert fields[0].value == b" one\r\n two"
    assert BLOCK[fields[0].start : fields[0].end] == b"Subject: one\r\n two\r\n"
    assert fields[1].value == b""
    assert fields[3].value == b"\n\ta\n b"


def test_get_takes_the_last_and_ignores_case() -> None:
    assert headers.get(BLOCK, "SUBJECT") == b" three"
    assert headers.get_all(BLOCK, "subject") == [b" one\r\n two", b" three"]
    assert headers.get(BLOCK, "to") is None


@pytest.mark.parametrize(
    ("raw", "end"),
    [
        (b"A: b\r\n\r\nbody", 8),
        (b"A: b\n\nbody", 6),
        (b"\r\nbody", 2),
        (b"\nbody", 1),
        (b"A: b\r\n", 6),
        (b"", 0),
        (b"A: b\n\r\nbody", 7),
    ],
)
def test_header_end(raw: bytes, end: int) -> None:
    assert headers.header_end(raw) == end


def test_raw_form() -> None:
    assert headers.as_raw(b" a\x00b \xff\xc3\xa9") == " ab \ufffdé"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b" plain", "plain"),
        (b"   folded\r\n  twice\r\n\tmore", "folded  twice\tmore"),
        (b" =?utf-8?Q?caf=C3=A9?=", "café"),
        (b" =?iso-8859-1?q?a_b?= =?utf-8?b?w6k=?= c", "a bé c"),
        (b" =?utf-8?q?=C3?= =?utf-8?q?=A9?=", "é"),  # a character split in two
        (b" =?utf-8?q?a?==?utf-8?q?b?=", "ab"),  # the space was forgotten
        (b" =?utf-8*en?q?a?=", "a"),
        (b" x=?utf-8?q?a?=", "x=?utf-8?q?a?="),  # touches other text
        (b" =?utf-8?q?a?=x", "=?utf-8?q?a?=x"),
        (b" =?nope?q?a?=", "=?nope?q?a?="),
        (b" =?utf-8?q?a?= =?nope?q?b?= =?utf-8?q?c?=", "a =?nope?q?b?= c"),
        (b" =?utf-8?q?a=00=0Ab?=", "ab"),  # no controls
        (b" =?utf-8?b?4pg?=", "\ufffd"),
        (b" =?utf-8?q?=ff?=", "\ufffd"),
        (b" =?utf-8?b?QUI?=", "AB"),  # padding forgotten
        (b" =?utf-8?q?__?=", "  "),
        (b" caf\xc3\xa9", "café"),
        (b" caf\xe9 \x93x\x94", "café “x”"),
        ("e\u0301".encode(), "\u00e9"),
        (b"", ""),
    ],
)
def test_text_form(raw: bytes, text: str) -> None:
    assert headers.as_text(raw) == text


def test_text_with_endless_combining_marks_is_quick() -> None:
    marks = "\u0315\u0300" * 50_000
    assert headers.as_text(marks.encode()) == marks


SPEC = (  # the example of RFC 8621 section 4.1.2.3
    b'"  James Smythe" <james@example.com>, Friends:\r\n'
    b"  jane@example.com, =?UTF-8?Q?John_Sm=C3=AEth?=\r\n"
    b"  <john@example.com>;"
)


def test_addresses_form() -> None:
    assert headers.as_addresses(SPEC) == [
        {"name": "James Smythe", "email": "james@example.com"},
        {"name": None, "email": "jane@example.com"},
        {"name": "John Smîth", "email": "john@example.com"},
    ]


def test_grouped_addresses_form() -> None:
    assert headers.as_grouped_addresses(SPEC) == [
        {
            "name": None,
            "addresses": [{"name": "James Smythe", "email": "james@example.com"}],
        },
        {
            "name": "Friends",
            "addresses": [
                {"name": None, "email": "jane@example.com"},
                {"name": "John Smîth", "email": "john@example.com"},
            ],
        },
    ]
    assert headers.as_grouped_addresses(b"a@b, g:;, c@d") == [
        {"name": None, "addresses": [{"name": None, "email": "a@b"}]},
        {"name": "g", "addresses": []},
        {"name": None, "addresses": [{"name": None, "email": "c@d"}]},
    ]


@pytest.mark.parametrize(
    ("raw", "ids"),
    [
        (b" <a@b>", ["a@b"]),
        (b" <a@b>\r\n <c@d>,<e@f> (comment)", ["a@b", "c@d", "e@f"]),
        (b" < a@b >", ["a@b"]),
        (b" <long\r\n er@id>", ["longer@id"]),
        (b" a@b c@d", ["a@b", "c@d"]),
        (b" Your message of Monday from joe@x", None),
        (b" <>", None),
        (b"", None),
    ],
)
def test_message_ids_form(raw: bytes, ids: list[str] | None) -> None:
    assert headers.as_message_ids(raw) == ids


def test_date_and_url_forms() -> None:
    assert (
        headers.as_date(b" Thu, 30 Oct 2014 14:12:00 +0800")
        == "2014-10-30T14:12:00+08:00"
    )
    assert headers.as_date(b" soon") is None
    urls = b" <http://a/b\r\n c>, (or mail)\r\n <mailto:x@y?subject=z>"
    assert headers.as_urls(urls) == ["http://a/bc", "mailto:x@y?subject=z"]
    assert headers.as_urls(b" http://a") is None
