"""Messages built from parts read back as what they were built from."""

from __future__ import annotations

import dataclasses
import email
import email.policy
import json
import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.mail import headers, mime
from mailserverd.mail.build import (
    Addresses,
    BodyPart,
    EmailSpec,
    Header,
    MessageIds,
    Raw,
    Text,
    Urls,
    When,
    assemble,
    build_email,
    crlf,
    encode_body,
    render_header,
)
from mailserverd.mail.encode import ComposeError
from tests.lib.mail_checks import check_parsed

VISIBLE = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=200
)


def built(spec: EmailSpec) -> bytes:
    return build_email(spec, now=1e9, hostname="mx.example", rng=random.Random(7))


def plain(*fields: Header, content: bytes = b"hi") -> EmailSpec:
    return EmailSpec(fields, BodyPart("text/plain", content, charset="utf-8"))


def unfolded_value(field: str) -> bytes:
    assert field.endswith("\r\n")
    return field.partition(":")[2][:-2].encode()


def check_lines(field: str) -> None:
    assert all(len(line) <= 998 for line in field.split("\r\n"))
    assert "\n" not in field.replace("\r\n", "")
    assert all(line[:1] in " \t" for line in field[:-2].split("\r\n")[1:])
    assert not any(line.isspace() for line in field[:-2].split("\r\n"))


def test_defaults_are_added_and_the_same_state_gives_the_same_octets() -> None:
    raw = built(plain(Header("Subject", Text("x"))))
    assert raw == built(plain(Header("Subject", Text("x"))))
    assert raw == (
        b"Subject: x\r\nDate: Sun, 9 Sep 2001 01:46:40 +0000\r\n"
        b"Message-ID: <e8d4a51000.%b@mx.example>\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: 7bit\r\n\r\nhi"
        % headers.message_ids(headers.get(raw, "message-id") or b"")[0][11:31]
    )
    dated = built(plain(Header("date", When(0, 90))))
    assert dated.startswith(b"date: Thu, 1 Jan 1970 01:30:00 +0130\r\n")
    assert dated.count(b"ate:") == 1


@given(VISIBLE)
def test_text_round_trip(text: str) -> None:
    field = render_header(Header("Subject", Text(text)))
    check_lines(field)
    assert field.isascii()
    assert headers.as_text(unfolded_value(field)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    "text",
    [
        "é" * 500,
        "x" * 2000,
        "a " * 500,
        "=?utf-8?q?x?=",
        " x ",
        "日本語" * 60,
        "x" * 90 + " é",
    ],
)
def test_awkward_texts(text: str) -> None:
    field = render_header(Header("Subject", Text(text)))
    check_lines(field)
    assert headers.as_text(unfolded_value(field)) == text
    message = email.message_from_bytes(
        field.encode() + b"\r\n", policy=email.policy.default
    )
    assert str(message["subject"]).strip() == text.strip()


def test_text_cannot_inject() -> None:
    field = render_header(Header("Subject", Text("a\r\nBcc:\tx@y\x00z")))
    assert field == "Subject: a Bcc: x@y z\r\n"


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), VISIBLE.map(str.strip).filter(bool)),
            st.sampled_from(["a@b", '"a b"@c', "joe", "ü@x.example", "x@[192.0.2.1]"]),
        ),
        max_size=6,
    )
)
def test_addresses_round_trip(people: list[tuple[str | None, str]]) -> None:
    field = render_header(Header("To", Addresses(((None, tuple(people)),))))
    check_lines(field)
    found = headers.as_addresses(unfolded_value(field))
    assert [one["email"] for one in found] == [address for _, address in people]
    names = [unicodedata.normalize("NFC", name) if name else None for name, _ in people]
    assert [one["name"] for one in found] == names


def test_groups() -> None:
    groups = (
        (None, ((None, "a@b"),)),
        ("Friends, all", (("J. Ö", "c@d"), (None, "e@f"))),
        ("nobody", ()),
    )
    field = render_header(Header("To", Addresses(groups)))
    assert field == (
        'To: a@b, "Friends, all": =?utf-8?B?Si4gw5Y=?= <c@d>, e@f;, nobody:;\r\n'
    )
    assert headers.as_grouped_addresses(unfolded_value(field)) == [
        {"name": name, "addresses": [{"name": n, "email": e} for n, e in members]}
        for name, members in groups
    ]


@pytest.mark.parametrize(
    "email_address",
    [
        "a@b, c@d",
        "a@b>",
        "a@b\r\nBcc: x@y",
        "a b@c",
        "a@b c",
        "",
        "@b",
        'x"y@z',
        "a:b@c",
        "a@b;",
        "(a)@b",
    ],
)
def test_impossible_addresses(email_address: str) -> None:
    with pytest.raises(ComposeError):
        render_header(Header("To", Addresses(((None, ((None, email_address),)),))))


def test_domains_are_written_in_a_labels() -> None:
    field = render_header(
        Header("To", Addresses(((None, ((None, "a@bücher.example"),)),)))
    )
    assert field == "To: a@xn--bcher-kva.example\r\n"


def test_ids_urls_and_raw() -> None:
    ids = tuple(f"{n}.{'x' * 30}@example.org" for n in range(4))
    field = render_header(Header("References", MessageIds(ids)))
    check_lines(field)
    assert headers.as_message_ids(unfolded_value(field)) == list(ids)
    field = render_header(Header("List-Post", Urls(("mailto:a@b", "http://x/"))))
    assert field == "List-Post: <mailto:a@b>, <http://x/>\r\n"
    assert render_header(Header("X", Raw(" a\r\n\tb\n c"))) == "X: a\r\n\tb\r\n c\r\n"
    assert render_header(Header("X", Raw("a"))) == "X: a\r\n"
    for bad in (
        Header("X", Raw("a\r\nBcc: x")),
        Header("X", Raw("a\r\n \r\nb")),
        Header("X", Raw("a\rb")),
        Header("X", Raw("a\n")),
        Header("X", Raw("\x00")),
        Header("X Y", Raw("a")),
        Header("X:", Raw("a")),
        Header("", Raw("a")),
        Header("X", MessageIds(("a b",))),
        Header("X", MessageIds(("",))),
        Header("X", Urls(("http://x/>",))),
    ):
        with pytest.raises(ComposeError):
            render_header(bad)


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (b"ascii\n", "7bit"),
        (b"", "7bit"),
        ("café au lait, ein paar Umlaute".encode(), "quoted-printable"),
        ("日本語".encode(), "base64"),
        (b"x" * 999, "quoted-printable"),
        (b"a\x00b and more text", "quoted-printable"),
    ],
)
def test_encoding_of_text(content: bytes, encoding: str) -> None:
    part = BodyPart("text/plain", content, charset="utf-8")
    assert encode_body(part)[0] == encoding
    if content:
        assert encode_body(part, eight_bit=True)[0] in {encoding, "8bit"}


@given(
    st.binary(max_size=300),
    st.sampled_from(["", "quoted-printable", "base64", "7bit", "8bit"]),
)
def test_body_round_trip(content: bytes, encoding: str) -> None:
    for kind in ("text/plain", "application/octet-stream"):
        part = BodyPart(kind, content, encoding=encoding)
        name, raw = encode_body(part)
        data, problem = mime.decode_transfer(raw, name)
        assert not problem
        kept = kind != "text/plain" or encoding == "base64"
        wanted = content if kept else crlf(content)
        assert data == wanted
        assert all(len(line) <= 998 for line in raw.split(b"\r\n"))


def test_whole_message_round_trip() -> None:
    image = BodyPart("image/png", bytes(range(256)), cid="i@x", disposition="inline")
    long_name = "Bericht über das Jahr " * 6 + ".pdf"
    pdf = BodyPart("application/pdf", b"%PDF", disposition="attachment", name=long_name)
    message = BodyPart("message/rfc822", b"Subject: in\n\nx\n", name='a "b".eml')
    body = assemble(
        BodyPart("text/plain", "Grüße\n-- \nich\n".encode(), charset="utf-8"),
        BodyPart("text/html", b"<p>hi</p>", charset="utf-8", language=("de", "en")),
        (image, pdf, message),
    )
    people = Addresses(((None, (("Jö", "j@x.example"),)),))
    raw = built(EmailSpec((Header("From", people), Header("Subject", Text("ß"))), body))
    parsed = check_parsed(raw)
    assert [f"{p.type}/{p.subtype}" for p in parsed.parts] == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "multipart/related",
        "text/html",
        "image/png",
        "application/pdf",
        "message/rfc822",
        "text/plain",
    ]
    assert parsed.parts[5].content_id == "<i@x>"
    assert parsed.parts[6].filename == long_name
    assert parsed.parts[7].filename == 'a "b".eml'
    assert parsed.parts[4].language == ("de", "en")
    summary = json.loads(parsed.list_json)
    assert summary["subject"] == "ß"
    assert summary["from"] == [{"name": "Jö", "email": "j@x.example"}]
    assert summary["preview"] == "Grüße -- ich"
    foreign = email.message_from_bytes(raw, policy=email.policy.default)
    assert foreign["subject"] == "ß"
    attached = [part.get_filename() for part in foreign.iter_attachments()]
    assert attached == [long_name, 'a "b".eml']
    assert raw.isascii()


def test_eight_bit_is_said_on_every_level() -> None:
    text = BodyPart("text/plain", "é".encode(), charset="utf-8")
    inner = BodyPart("multipart/mixed", children=(text,))
    spec = EmailSpec((), BodyPart("multipart/mixed", children=(inner,)), eight_bit=True)
    assert [p.encoding for p in mime.parse(built(spec)).parts] == ["8bit"] * 3
    quiet = dataclasses.replace(spec, eight_bit=False)
    assert built(quiet).isascii()


@pytest.mark.parametrize(
    "part",
    [
        BodyPart("nonsense"),
        BodyPart("text/plain\r\nX: y"),
        BodyPart("multipart/mixed"),
        BodyPart("text/plain", disposition="a b"),
        BodyPart("text/plain", cid="a>b"),
        BodyPart("text/plain", location="x\r\ny"),
        BodyPart("text/plain", b"x", encoding="rot13"),
    ],
)
def test_impossible_parts(part: BodyPart) -> None:
    with pytest.raises(ComposeError):
        built(EmailSpec((), part))


def test_assemble_needs_something() -> None:
    with pytest.raises(ComposeError):
        assemble(None, None, ())
    only = BodyPart("image/png")
    assert assemble(None, None, (only,)) is only
