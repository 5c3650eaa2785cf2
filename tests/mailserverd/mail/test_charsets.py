"""Charsets under all their names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.mail.charsets import codec_of, decode_charset


@pytest.mark.parametrize(
    ("data", "charset", "text", "problem"),
    [
        (b"abc", "us-ascii", "abc", False),
        (b"caf\xc3\xa9", "us-ascii", "café", True),
        (b"caf\xe9", "", "café", True),
        (b"caf\xc3\xa9", "UTF-8", "café", False),
        (b"\xef\xbb\xbfx", "utf-8", "x", False),
        (b"a\xffb", "utf-8", "a\ufffdb", True),
        (b"\x93x\x94", "iso-8859-1", "“x”", False),
        (b"\x81", "iso-8859-1", "\x81", True),
        ("語".encode("gbk"), "GB2312", "語", False),
        ("한".encode("cp949"), "ks_c_5601-1987", "한", False),
        ("①".encode("cp932"), "Shift_JIS", "①", False),
        ("日本".encode("iso2022_jp"), "ISO-2022-JP", "日本", False),
        ("й".encode("koi8_u"), "koi8-u", "й", False),
        ("é".encode("utf-16"), "utf-16", "é", False),
        (b"+2AA-", "utf-7", "\ufffd", False),  # a lone surrogate
        (b"x", "x-unknown", "x", True),
        (b"61", "hex", "61", True),
        (b"\\u0041", "unicode_escape", "\\u0041", True),
    ],
)
def test_decoding(data: bytes, charset: str, text: str, problem: bool) -> None:
    assert decode_charset(data, charset) == (text, problem)


@given(st.text(max_size=60))
def test_foreign_names_reach_no_codec(name: str) -> None:
    if codec := codec_of(name):
        b"".decode(codec)


@given(
    st.binary(max_size=60),
    st.sampled_from(
        ["utf-7", "utf-16", "gb18030", "hz", "iso-2022-kr", "big5", "cp1252"]
    ),
)
def test_any_octets_give_text_without_surrogates(data: bytes, charset: str) -> None:
    decode_charset(data, charset)[0].encode()
