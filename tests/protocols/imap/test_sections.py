"""Body sections: parsing, locating, and cutting fields out of header blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.mail import mime
from protocols.imap import sections
from protocols.imap.sections import Section, Source, pick_fields
from protocols.imap.wire.cursor import Cursor
from protocols.imap.wire.errors import WireError
from storage.model import BlobRef

NESTED = (
    b"Subject: outer\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\nContent-Type: text/plain\r\n\r\nfirst\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\n"
    b"Subject: inner\r\nContent-Type: multipart/alternative; boundary=c\r\n\r\n"
    b"--c\r\n\r\nplain\r\n--c\r\nContent-Type: text/html\r\n\r\n<p>\r\n--c--\r\n"
    b"--b--\r\n"
)
BLOB = BlobRef(bytes(32), bytes(16), 1, 0, len(NESTED), len(NESTED))
FIELD = st.sampled_from([b"Subject", b"subJect", b"X-A", b"X-a-B", b"To", b"T"])
LINE = st.one_of(
    st.tuples(
        FIELD, st.sampled_from([b": x", b":", b" : y\r\n z", b":a\r\n\tb\r\n c"])
    ),
    st.tuples(st.sampled_from([b"", b"garbage", b"From me", b" lead"]), st.just(b"")),
)


def parse(text: bytes) -> Section:
    args = Cursor([text])
    section = sections.parse(args.word(), args)
    args.end()
    return section


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"BODY[]", NESTED),
        (b"BODY[HEADER]", NESTED[: NESTED.index(b"\r\n\r\n") + 4]),
        (b"BODY[TEXT]", NESTED[NESTED.index(b"\r\n\r\n") + 4 :]),
        (b"BODY[1]", b"first"),
        (b"BODY[1.MIME]", b"Content-Type: text/plain\r\n\r\n"),
        (b"BODY[2.MIME]", b"Content-Type: message/rfc822\r\n\r\n"),
        (b"BODY[2.1]", b"plain"),
        (b"BODY[2.2.MIME]", b"Content-Type: text/html\r\n\r\n"),
        (b"BODY[2.2]", b"<p>"),
        (b"BODY[3]", None),
        (b"BODY[1.1]", None),
        (b"BODY[1.HEADER]", None),
    ],
)
def test_locate(text: bytes, expected: bytes | None) -> None:
    parsed = mime.parse(NESTED)
    source = Source(BLOB, parsed.size, parsed.header_size, parsed.part_table)
    extent = sections.locate(parse(text), source)
    found = None if extent is None else NESTED[extent.start : extent.end]
    assert found == expected


def test_enclosed_message() -> None:
    parsed = mime.parse(NESTED)
    source = Source(BLOB, parsed.size, parsed.header_size, parsed.part_table)
    extents = [
        sections.locate(parse(text), source)
        for text in (b"BODY[2]", b"BODY[2.HEADER]", b"BODY[2.TEXT]")
    ]
    whole, header, text = (NESTED[e.start : e.end] for e in extents if e is not None)
    assert whole == header + text
    assert header.startswith(b"Subject: inner\r\n")
    assert header.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (b"BODY.PEEK[1.2]<3.4>", b"BODY[1.2]<3>"),
        (b'body[header.fields (from "x y")]', b'BODY[HEADER.FIELDS (from "x y")]'),
        (b"BINARY.PEEK[1]", b"BINARY[1]"),
        (b"BINARY.SIZE[]", b"BINARY.SIZE[]"),
        (b"BODY[2.HEADER.FIELDS.NOT (a)]", b"BODY[2.HEADER.FIELDS.NOT (a)]"),
    ],
)
def test_labels(text: bytes, label: bytes) -> None:
    section = parse(text)
    assert section.label == label
    assert section.peek == (b"PEEK" in text or b"SIZE" in text)


@pytest.mark.parametrize(
    "text",
    [
        b"BODY[0]",
        b"BODY[1.]",
        b"BODY[.1]",
        b"BODY[1..2]",
        b"BODY[MIME]",
        b"BODY[1HEADER]",
        b"BODY[HEADER.1]",
        b"BODY[HEADER.FIELDS]",
        b"BODY[HEADER.FIELDS ()]",
        b"BODY[TEXT (a)]",
        b"BODY[1]<1>",
        b"BODY[1]<1.0>",
        b"BODY[01]",
        b"BINARY[1.MIME]",
        b"BINARY.SIZE[1]<0.1>",
        b"BODY[" + b"1." * 200 + b"1]",
        b"BODY[",
    ],
)
def test_no_section(text: bytes) -> None:
    with pytest.raises(WireError):
        parse(text)


def naive(block: bytes, names: set[bytes], *, negate: bool) -> bytes:
    fields: list[bytes] = []
    for line in block.splitlines(keepends=True):
        if line[:1] in b" \t" and fields and line.strip(b"\r\n"):
            fields[-1] += line
        else:
            fields.append(line)
    kept = []
    for field in fields:
        name, colon, _ = field.partition(b":")
        name = name.rstrip(b" \t")
        if not colon or not name or any(c <= 32 or c > 126 for c in name):
            continue
        if (name.lower() in names) is not negate:
            kept.append(field)
    return b"".join(kept) + b"\r\n"


@given(st.lists(LINE, max_size=8), st.sets(FIELD, min_size=1, max_size=4))
def test_picking_fields(lines: list[tuple[bytes, bytes]], names: set[bytes]) -> None:
    block = b"".join(name + rest + b"\r\n" for name, rest in lines) + b"\r\n"
    wanted = frozenset(name.lower() for name in names)
    for text in ("HEADER.FIELDS", "HEADER.FIELDS.NOT"):
        section = Section(b"", text=text, fields=wanted)
        negate = text.endswith("NOT")
        expected = naive(block, set(wanted), negate=negate)
        assert pick_fields(block, section) == expected


def test_a_long_list_of_fields() -> None:
    names = frozenset(b"x-%d" % n for n in range(500))
    section = Section(b"", text="HEADER.FIELDS", fields=names)
    assert pick_fields(b"X-7: a\r\nY: b\r\n\r\n", section) == b"X-7: a\r\n\r\n"
