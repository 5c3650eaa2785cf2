"""The scanner and what parse makes of a message."""

from __future__ import annotations

import json
import mmap
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.mail import mime, scanner
from tests.lib.mail_checks import check_parsed

if TYPE_CHECKING:
    from mailserverd.mail.model import Part

NESTED = (
    b"From: a@b\r\nContent-Type: multipart/mixed; boundary=out\r\n\r\n"
    b"preamble\r\n"
    b"--out\r\n\r\ntext one\r\n"
    b"--out\r\nContent-Type: multipart/alternative; boundary=in\r\n\r\n"
    b"--in\r\nContent-Type: text/plain\r\n\r\nplain\r\n"
    b"--in\r\nContent-Type: text/html\r\n\r\n<p>html\r\n"
    b"--in--\r\n"
    b"--out\r\nContent-Type: message/rfc822\r\n\r\n"
    b"Subject: inner\r\nContent-Type: multipart/mixed; boundary=deep\r\n\r\n"
    b"--deep\r\n\r\ndeep text\r\n"
    b"--deep\r\nContent-Type: image/png\r\n\r\nPNG\r\n--deep--\r\n"
    b"--out\r\nContent-Type: message/rfc822\r\n\r\nSubject: single\r\n\r\nbody\r\n"
    b"--out--\r\nepilogue\r\n"
)


def body(raw: bytes, part: Part) -> bytes:
    return raw[part.body_start : part.body_end]


def kinds(raw: bytes) -> list[tuple[str, str]]:
    return [(p.section, f"{p.type}/{p.subtype}") for p in check_parsed(raw).parts]


def test_tree_and_sections() -> None:
    assert kinds(NESTED) == [
        ("", "multipart/mixed"),
        ("1", "text/plain"),
        ("2", "multipart/alternative"),
        ("2.1", "text/plain"),
        ("2.2", "text/html"),
        ("3", "message/rfc822"),
        ("3", "multipart/mixed"),  # the enclosed message itself
        ("3.1", "text/plain"),
        ("3.2", "image/png"),
        ("4", "message/rfc822"),
        ("4.1", "text/plain"),
    ]


def test_offsets_hold_the_right_octets() -> None:
    parts = mime.parse(NESTED).parts

    def at(section: str) -> bytes:
        part = mime.find_part(parts, section)
        assert part is not None
        return body(NESTED, part)

    assert at("1") == b"text one"
    assert at("2.1") == b"plain"
    assert at("2.2") == b"<p>html"
    assert at("2").startswith(b"--in\r\n")
    assert at("3.1") == b"deep text"
    assert at("4").startswith(b"Subject: single")
    assert at("4.1") == b"body"
    assert mime.find_part(parts, "5") is None
    assert mime.find_part(parts, "1.1") is None


def test_enclosed_root_gives_header_and_text() -> None:
    parts = mime.parse(NESTED).parts
    message = mime.find_part(parts, "3")
    assert message is not None
    inner = mime.enclosed_root(parts, message)
    assert inner is not None
    assert inner.nested
    assert NESTED[inner.header_start : inner.body_start].startswith(b"Subject: inner")
    assert mime.enclosed_root(parts, parts[1]) is None


def test_single_part_is_also_section_one() -> None:
    parsed = check_parsed(b"Subject: x\r\n\r\nbody\r\n")
    assert mime.find_part(parsed.parts, "1") is parsed.parts[0]
    assert mime.find_part(parsed.parts, "") is parsed.parts[0]
    assert mime.find_part(parsed.parts, "2") is None
    assert mime.part_id(parsed.parts[0]) == "1"
    assert parsed.header_size == 14


def test_message_at_the_top() -> None:
    raw = b"Content-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\nx"
    assert kinds(raw) == [("", "message/rfc822"), ("1.1", "text/plain")]
    multi = (
        b"Content-Type: message/rfc822\r\n\r\nContent-Type: multipart/mixed; boundary=a"
        b"\r\n\r\n--a\r\n\r\nx\r\n--a--"
    )
    assert [s for s, _ in kinds(multi)] == ["", "1", "1.1"]


@pytest.mark.parametrize(
    ("raw", "header", "rest"),
    [
        (b"", b"", b""),
        (b"\r\n", b"\r\n", b""),
        (b"\nbody", b"\n", b"body"),
        (b"A: b", b"A: b", b""),
        (b"A: b\r\n", b"A: b\r\n", b""),
        (b"A: b\n\nbody\n", b"A: b\n\n", b"body\n"),
        (b"just text\nand more\n", b"", b"just text\nand more\n"),
        (b"just text\n\nand more\n", b"", b"just text\n\nand more\n"),
        (b"From x\nA: b\n\nbody", b"From x\nA: b\n\n", b"body"),
        (b"A: b\njunk\nC: d\n\nbody", b"A: b\njunk\nC: d\n\n", b"body"),
        (b"A: b\njunk\n\nbody", b"A: b\n", b"junk\n\nbody"),
        (b"A: b\njunk\nC: d", b"A: b\n", b"junk\nC: d"),
    ],
)
def test_where_the_header_ends(raw: bytes, header: bytes, rest: bytes) -> None:
    root = check_parsed(raw).parts[0]
    assert raw[: root.body_start] == header
    assert body(raw, root) == rest


M = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "bodies"),
    [
        (M + b"--b\r\n\r\none\r\n--b--", [b"one"]),
        (M + b"--b\r\n\r\none\r\n", [b"one\r\n"]),  # never closed
        (M + b"--b\n\none\n--b\n\ntwo\n--b--\n", [b"one", b"two"]),
        (M + b"--b  \t\r\n\r\none\r\n--b-- \r\n", [b"one"]),
        (M + b"--b ignored\r\n\r\none\r\n--b-- ignored\r\n", [b"one"]),
        (M + b"--b\r\n\r\none\r\n--bb\r\n--b-\r\n--b--", [b"one\r\n--bb\r\n--b-"]),
        (M + b"--b\r\n\r\none\r\n --b\r\n--b--", [b"one\r\n --b"]),
        (M + b"--b\r\n\r\n\r\n--b--", [b""]),
        (M + b"--b\r\n\r\n--b--", [b""]),
        (M + b"--b\r\n--b--", [b""]),
        (M + b"--b\r\n\r\none\r\n--b\r\n--b--", [b"one", b""]),
        (M + b"--b\r\nno header\r\n--b--", [b"no header"]),
        (M + b"--b\r\nA: b\r\n--b--", [b""]),
        (M + b"--b\r\n\r\none\r\n--b", [b"one"]),
        (M + b"--b\r\n\r\none\r\n--b--\r\n--b\r\n\r\nepilogue", [b"one"]),
        (M.replace(b"\r\n\r\n", b"\r\n") + b"--b\r\n\r\none\r\n--b--", [b"one"]),
    ],
)
def test_delimiters(raw: bytes, bodies: list[bytes]) -> None:
    parts = check_parsed(raw).parts
    assert parts[0].type == "multipart"
    assert [body(raw, part) for part in parts[1:]] == bodies


def test_inner_multipart_ends_with_the_outer() -> None:
    inner = M.replace(b"=b", b"=bb") + b"--bb\r\n\r\nin\r\n"
    assert [
        s for s, _ in kinds(M + b"--b\r\n" + inner + b"--b\r\n\r\nout\r\n--b--")
    ] == [
        "",
        "1",
        "1.1",
        "2",
    ]


def test_equal_boundaries_nest() -> None:
    raw = M + b"--b\r\n" + M + b"--b\r\n\r\nin\r\n--b--\r\n--b\r\n\r\nout\r\n--b--"
    assert [s for s, _ in kinds(raw)] == ["", "1", "1.1", "2"]


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Type: multipart/mixed\r\n\r\n--b\r\n\r\nx\r\n--b--",
        M + b"no delimiter at all",
        M,
        b'Content-Type: multipart/mixed; boundary=""\r\n\r\n--\r\n\r\nx',
    ],
)
def test_multipart_without_parts_is_text(raw: bytes) -> None:
    assert kinds(raw) == [("", "text/plain")]


def test_digest_holds_messages() -> None:
    raw = M.replace(b"mixed", b"digest") + b"--b\r\n\r\nSubject: x\r\n\r\ny\r\n--b--"
    assert [k for _, k in kinds(raw)] == [
        "multipart/digest",
        "message/rfc822",
        "text/plain",
    ]


def test_encoded_message_is_not_walked_into() -> None:
    raw = (
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        b"U3ViamVjdDogeA0KDQp5"
    )
    assert kinds(raw) == [("", "message/rfc822")]


def test_part_count_is_limited() -> None:
    parsed = check_parsed(M + b"--b\r\n\r\nx\r\n" * 3000 + b"--b--")
    assert len(parsed.parts) == scanner.MAX_PARTS


def test_depth_is_limited_and_beyond_it_is_opaque() -> None:
    raw = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (i, i)
        for i in range(200)
    )
    parts = check_parsed(raw).parts
    assert len(parts) == scanner.MAX_DEPTH + 1
    assert (parts[-1].type, parts[-1].subtype) == ("application", "octet-stream")
    deep = b"Content-Type: message/rfc822\r\n\r\n" * 200
    assert len(check_parsed(deep).parts) == scanner.MAX_DEPTH + 1


def test_lines_are_counted() -> None:
    parts = mime.parse(NESTED).parts
    for part in parts:
        assert part.lines == len(body(NESTED, part).splitlines())


def test_summary() -> None:
    raw = (
        b"Received: x\r\nReceived: y\r\n"
        b"Message-ID: <1@x>\r\nIn-Reply-To: <0@x>\r\nReferences: <00@x> <0@x>\r\n"
        b"From: =?utf-8?q?J=C3=B6?= <j@x>\r\nSubject: ignored\r\n"
        b"To: Bob <b@y>, c@z\r\nSubject: Re: [list] caf\xc3\xa9 \r\n"
        b"Date: Thu, 30 Oct 2014 14:12:00 +0800\r\n\r\n"
        b"  Hello\r\n  there.\r\n> quoted\r\n"
    )
    parsed = check_parsed(raw)
    assert json.loads(parsed.list_json) == {
        "messageId": ["1@x"],
        "inReplyTo": ["0@x"],
        "references": ["00@x", "0@x"],
        "sender": None,
        "from": [{"name": "Jö", "email": "j@x"}],
        "to": [{"name": "Bob", "email": "b@y"}, {"name": None, "email": "c@z"}],
        "cc": None,
        "bcc": None,
        "replyTo": None,
        "subject": "Re: [list] café",
        "sentAt": "2014-10-30T14:12:00+08:00",
        "hasAttachment": False,
        "preview": "Hello there.",
    }
    assert parsed.sent_at == 1414649520
    assert parsed.message_id == "1@x"
    assert len(parsed.thread_keys) == 3
    assert parsed.base_subject == "café"
    assert (parsed.sort_from, parsed.sort_to) == ("jö", "bob")
    assert parsed.search_headers == (
        "from: Jö <j@x>\nto: Bob <b@y>, c@z\nsubject: Re: [list] café"
    )


def test_header_octets_are_limited() -> None:
    raw = b"A: b\r\n" * 200_000 + b"Subject: late\r\n\r\nbody"
    parsed = check_parsed(raw)
    assert json.loads(parsed.list_json)["subject"] is None
    assert body(raw, parsed.parts[0]) == b"body"


@pytest.mark.parametrize("size", [100, 5 << 20])
def test_other_buffers_give_the_same(size: int) -> None:
    raw = NESTED.replace(b"PNG", b"PNG\r\n" * (size // 5))
    expected = mime.parse(raw)
    with mmap.mmap(-1, len(raw)) as mapped:
        mapped[:] = raw
        assert mime.parse(mapped) == expected
    assert mime.parse(memoryview(raw)) == expected


def test_a_large_message_takes_little_memory() -> None:
    size = 50 << 20
    with mmap.mmap(-1, size) as mapped:
        mapped[:] = (M + b"--b\r\nContent-Type: application/pdf\r\n\r\n").ljust(
            size, b"x"
        )
        tracemalloc.start()
        parsed = mime.parse(mapped)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert parsed.size == size
    assert peak < 8 << 20


HOSTILE = [
    b"\r\n",
    b"--b\r\n",
    b"--b--",
    b"Content-Type: ",
    b"multipart/mixed; boundary=b",
    b"message/rfc822",
    b"\x00",
    b"\xff",
    b'"',
    b"(",
    b": ",
    b"base64",
    b"\n",
]


@given(
    st.lists(st.one_of(st.sampled_from(HOSTILE), st.binary(max_size=8)), max_size=40)
)
def test_any_octets(pieces: list[bytes]) -> None:
    check_parsed(b"".join(pieces))
    check_parsed(M + b"".join(pieces))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "raw",
    [
        b"a:\n" * (1 << 20),
        b"To:" + b"\n " * (1 << 20),
        b"Subject: " + b"=?utf-8?q?a?= " * (1 << 17),
        b"Subject: " + b"re:[x]" * (1 << 18),
        b"Subject: " + b"[fwd:" * (1 << 18) + b"]" * (1 << 18),
        b"Content-Type: text/plain" + b"; a=" * (1 << 18),
        b'Content-Type: text/plain; a="' + b"\\" * (1 << 20),
        b"References: " + b"<" * (1 << 20),
        M + b"--bb\r\n" * (1 << 18),
        M + b"--b\r\n" * (1 << 18),
        b"Content-Type: message/rfc822\r\n\r\n" * (1 << 15),
        *[
            b"Content-Type: text/html\r\n\r\n" + piece * ((1 << 20) // len(piece))
            for piece in (
                b"<!--",
                b"<",
                b"<a ",
                b"<script>",
                b"<script></s",
                b"&#1",
                b"&",
                b"<!-->",
            )
        ],
        b"Content-Transfer-Encoding: base64\r\n\r\n" + b"QQ==" * (1 << 18),
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b" " * (1 << 20),
    ],
)
def test_hostile_repetition_is_linear(raw: bytes) -> None:
    mime.parse(raw)
