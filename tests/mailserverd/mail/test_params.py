"""Content-Type and Content-Disposition with their parameters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.mail.params import TEXT_PLAIN, parse_content_type, parse_disposition


@pytest.mark.parametrize(
    ("raw", "kind", "params"),
    [
        (b" text/plain", "text/plain", {}),
        (b' TEXT / HTML ; Charset="UTF-8"', "text/html", {"charset": "UTF-8"}),
        (
            b"text/plain; charset=us-ascii (Plain text)",
            "text/plain",
            {"charset": "us-ascii"},
        ),
        (b'a/b; name="x;y\\"z"; n=1', "a/b", {"name": 'x;y"z', "n": "1"}),
        (b"a/b;; ;name=report (1).pdf", "a/b", {"name": "report (1).pdf"}),
        (b'a/b; name="unclosed; x=y', "a/b", {"name": "unclosed; x=y"}),
        (b"a/b; x=1; X=2", "a/b", {"x": "1"}),
        (b"a/b; name*=utf-8'en'%c3%a9%20x", "a/b", {"name": "é x"}),
        (
            b"a/b; name*1*=%a9; name*0*=utf-8''%c3; name*2=\" end\"",
            "a/b",
            {"name": "é end"},
        ),
        (b"a/b; name*0=one; name*2=three", "a/b", {"name": "one"}),
        (b"a/b; name=plain; name*=utf-8''%c3%a9", "a/b", {"name": "é"}),
        (b'a/b; name="=?utf-8?q?=C3=A9?="', "a/b", {"name": "é"}),
        (b"a/b; name=caf\xe9", "a/b", {"name": "café"}),
        (b"a/b; name*=utf-8''a%0d%0a%00b", "a/b", {"name": "ab"}),
        (b"text", "text/plain", {}),
    ],
)
def test_content_type(raw: bytes, kind: str, params: dict[str, str]) -> None:
    parsed = parse_content_type(raw)
    assert f"{parsed.type}/{parsed.subtype}" == kind
    assert dict(parsed.params) == params


@pytest.mark.parametrize("raw", [b"", b"   ", b";charset=x", b'"a"/b', b"/"])
def test_unreadable_types_are_text(raw: bytes) -> None:
    assert parse_content_type(raw) == TEXT_PLAIN


@pytest.mark.parametrize(
    ("raw", "boundary"),
    [
        (b"multipart/mixed; boundary=a", b"a"),
        (b'multipart/mixed; boundary="a b "', b"a b"),
        (b"multipart/mixed; boundary*0=a; boundary*1=b", b"ab"),
        (b"multipart/mixed; boundary*=us-ascii''a%20b", b"a b"),
        (b"multipart/mixed; boundary=\xff", b"\xff"),
        (b"multipart/mixed", b""),
        (b"text/plain; boundary=a", b""),
    ],
)
def test_boundary(raw: bytes, boundary: bytes) -> None:
    assert parse_content_type(raw).boundary == boundary


@pytest.mark.parametrize(
    ("raw", "value", "name"),
    [
        (b" attachment; filename=x", "attachment", "x"),
        (b"INLINE", "inline", None),
        (b"; filename=x", "", "x"),
        (b"filename=x", "filename", None),
    ],
)
def test_disposition(raw: bytes, value: str, name: str | None) -> None:
    parsed = parse_disposition(raw)
    assert parsed.value == value
    assert dict(parsed.params).get("filename") == name


@given(st.binary(max_size=100))
def test_never_raises_and_never_yields_surrogates(raw: bytes) -> None:
    for parsed in (parse_content_type(b"a/b;" + raw), parse_disposition(raw)):
        for name, value in parsed.params:
            (name + value).encode()
