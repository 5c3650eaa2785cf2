"""Readable text for search and preview."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.mail import mime
from mailserverd.mail.text import MAX_TEXT, html_to_text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<p>one</p><p>two<br>three", "one\ntwo\nthree"),
        ("w<b>or</b>d and <i>more</i>", "word and more"),
        ("a&amp;b &lt;c&gt; &eacute; &#233;&#xe9; &nbsp; d", "a&b <c> é éé d"),
        ("x<!-- no <p> --> y<!---->z", "x yz".replace("yz", "y z")),
        ("<style>p {}</style>a<SCRIPT x>if (a<b) {}</script >b", "a b"),
        ("<head><title>no</title></head><body>yes", "yes"),
        ("a < b and c<3", "a < b and c<3"),
        ("x<!-- never closed", "x"),
        ("x<p never closed", "x"),
        ("x<script>never closed", "x"),
        ("  many \r\n\t spaces ", "many spaces"),
        ("&#55296;&#99999999999;&bogus;", "\ufffd&#99999999999;&bogus;"),
        ("<td>a</td><td>b</td>", "a\nb"),
        ("<x-custom>in</x-custom>line", "inline"),
    ],
)
def test_html(source: str, text: str) -> None:
    assert html_to_text(source) == text


@given(st.text(alphabet="<>/!-ap &;#1\n\"'", max_size=200))
def test_any_html(source: str) -> None:
    html_to_text(source).encode()


def preview(raw: bytes) -> str:
    text: str = json.loads(mime.parse(raw).list_json)["preview"]
    return text


def test_preview() -> None:
    assert preview(b"\r\n  two\r\n\r\n words  \r\n") == "two words"
    assert preview(b"\r\n> quoted\r\nanswer\r\n") == "answer"
    assert preview(b"\r\n> only quoted\r\n") == "> only quoted"
    assert preview(b"\r\n" + b"x" * 1000) == "x" * 256
    assert preview(b"Content-Type: text/html\r\n\r\n<p>a<p>b") == "a b"
    assert preview("\r\n\u200b\u034f\u00adx".encode()) == "x"
    assert preview(b"Content-Type: image/png\r\n\r\nPNG") == ""
    assert preview(b"\r\n" + b" " * 3000 + b"late") == "late"


ALTERNATIVE = (
    b"Content-Type: multipart/mixed; boundary=m\r\n\r\n--m\r\n"
    b"Content-Type: multipart/alternative; boundary=a\r\n\r\n--a\r\n\r\n"
    b"same words here\r\n--a\r\nContent-Type: text/html\r\n\r\n"
    b"<p>same words here<p>only in html\r\n--a--\r\n--m\r\n"
    b"Content-Type: application/pdf; name=report.pdf\r\n\r\nPDF\r\n--m\r\n"
    b"Content-Type: message/rfc822\r\n\r\nSubject: forwarded\r\n\r\ninner text\r\n--m--"
)


def test_search_text() -> None:
    parsed = mime.parse(ALTERNATIVE)
    assert parsed.search_text.split("\n") == [
        "same words here",
        "only in html",
        "report.pdf",
        "forwarded",
        "inner text",
    ]


def test_search_text_is_bounded_and_whole_characters() -> None:
    for encoding, line in ((b"8bit", "é" * 30), (b"quoted-printable", "=C3=A9" * 10)):
        raw = (
            b"Content-Type: text/plain; charset=utf-8\r\n"
            b"Content-Transfer-Encoding: %b\r\n\r\n" % encoding
        )
        raw += (line + "\r\n").encode() * (4 * MAX_TEXT // len(line))
        text = mime.parse(raw).search_text
        assert MAX_TEXT // 4 < len(text) <= MAX_TEXT
        assert set(text) <= {"é", "\n"}


def test_no_nul_and_no_bare_cr() -> None:
    assert mime.parse(b"\r\na\x00b\rc\r\n").search_text == "ab\nc\n"
