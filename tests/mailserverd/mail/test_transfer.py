"""Transfer encodings: whole and in chunks, intact and damaged."""

from __future__ import annotations

import base64
import binascii

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.mail.transfer import TransferDecoder, decode_transfer

UU = b"begin 644 x\r\n#04)#\r\n`\r\nend\r\n"


@pytest.mark.parametrize(
    ("raw", "encoding", "data", "problem"),
    [
        (b"a=20", "7bit", b"a=20", False),
        (b"x", "x-unknown", b"x", True),
        (b"x", "8-bit", b"x", False),
        (b"QUJD", "base64", b"ABC", False),
        (b"QU\r\nJD\r\n", "base64", b"ABC", False),
        (b"QQ==\r\nQg==", "base64", b"AB", True),  # padding in the middle
        (b"QUI", "base64", b"AB", True),
        (b"Q", "base64", b"", True),
        (b"Q!U?J*D", "base64", b"ABC", True),
        (b"", "base64", b"", False),
        (b"a=3D=\r\nb=\nc", "quoted-printable", b"a=bc", False),
        (b"a \t\r\nb= \r\nc", "quoted-printable", b"a\r\nbc", False),
        (b"a=ZZ=", "quoted-printable", b"a=ZZ", True),
        (UU, "x-uuencode", b"ABC", False),
        (b"text before\n" + UU, "uuencode", b"ABC", False),
        (UU[:-5], "x-uue", b"ABC", True),
        (b"no begin", "uuencode", b"no begin", True),
    ],
)
def test_decoding(raw: bytes, encoding: str, data: bytes, problem: bool) -> None:
    assert decode_transfer(raw, encoding) == (data, problem)


def in_chunks(raw: bytes, encoding: str, size: int) -> tuple[bytes, bool]:
    decoder = TransferDecoder(encoding)
    pieces = [decoder.feed(raw[i : i + size]) for i in range(0, len(raw), size)]
    pieces.append(decoder.finish())
    return b"".join(pieces), decoder.problem


@given(st.binary(max_size=400), st.integers(1, 50))
def test_streams_equal_the_whole(data: bytes, size: int) -> None:
    for encoding, raw in (
        ("base64", base64.encodebytes(data)),
        ("quoted-printable", binascii.b2a_qp(data, istext=False)),
        ("8bit", data),
        ("uuencode", uuencoded(data)),
    ):
        assert in_chunks(raw, encoding, size) == (data, False)
        assert decode_transfer(raw, encoding) == (data, False)


def uuencoded(data: bytes) -> bytes:
    lines = [binascii.b2a_uu(data[i : i + 45]) for i in range(0, len(data), 45)]
    return b"".join([b"begin 644 name\n", *lines, b"`\nend\n"])


@given(st.binary(max_size=300), st.integers(1, 20))
def test_garbage_is_survived(raw: bytes, size: int) -> None:
    for encoding in ("base64", "quoted-printable", "uuencode", "nonsense"):
        decode_transfer(raw, encoding)
        in_chunks(raw, encoding, size)


def test_base64_stream_equals_the_whole_for_damaged_input() -> None:
    raw = b"QQ==QUI=\r\nQU!JD Q"
    for size in range(1, 9):
        assert in_chunks(raw, "base64", size)[0] == decode_transfer(raw, "base64")[0]


def test_streams_hold_little_of_endless_lines() -> None:
    for encoding in ("quoted-printable", "uuencode", "base64"):
        decoder = TransferDecoder(encoding)
        total = sum(len(decoder.feed(b"=41A " * 1000)) for _ in range(50))
        assert len(decoder.finish()) < 3000
        assert encoding == "uuencode" or total > 50 * 1000
