"""Data on the wire: the end, the dots, and what may not be there; byte by byte too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.smtp.wire.data import ChunkReader, DataReader, is_clean, stuff

PIECES = [
    b"\r\n",
    b"\r",
    b"\n",
    b".",
    b"..",
    b"a",
    b"\r\n.\r\n",
    b"\r\n.",
    b"\0",
    b"bc",
]
wires = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)
texts = st.lists(st.sampled_from([b"a", b".", b"\r\n", b"..", b"x y"]), max_size=12)


def read(data: bytes, sizes: list[int]) -> tuple[bytes, bytes | None, bool]:
    """Feed in pieces of the given sizes; (message, rest or None, clean)."""
    reader = DataReader()
    message, position, index = b"", 0, 0
    while position < len(data):
        size = sizes[index % len(sizes)]
        piece = data[position : position + size]
        position += size
        index += 1
        chunk, rest = reader.feed(piece)
        message += chunk
        if rest is not None:
            return message, rest + data[position:], reader.clean
    return message, None, reader.clean


@pytest.mark.parametrize(
    ("wire", "message", "rest"),
    [
        (b".\r\n", b"", b""),
        (b"a\r\n.\r\nQUIT\r\n", b"a\r\n", b"QUIT\r\n"),
        (b"..a\r\n.\r\n", b".a\r\n", b""),
        (b".a\r\n..\r\n...\r\n.\r\n", b"a\r\n.\r\n..\r\n", b""),
        (b"\r\n.\r\n", b"\r\n", b""),
        (b"a\r\n.\r\n.\r\n", b"a\r\n", b".\r\n"),
    ],
)
def test_end_and_transparency(wire: bytes, message: bytes, rest: bytes) -> None:
    for sizes in ([1], [2], [3], [len(wire)]):
        assert read(wire, sizes) == (message, rest, True)


@pytest.mark.parametrize(
    "wire",
    [
        b"a\n.\n",
        b"a\n.\r\n",
        b"a\r\n.\n",
        b"a\r.\r",
        b"a\r\n.\r",
        b"a\r\r\n.\r\r\n",
        b"a\0b\r\n",
        b"\n.\r\n",
        b".\n",
        b"\r.\r\n",
    ],
)
def test_what_does_not_end_the_data_spoils_it(wire: bytes) -> None:
    for sizes in ([1], [3], [100]):
        message, rest, clean = read(wire + b"b\r\n.\r\n", sizes)
        assert not clean
        assert rest == b""
        assert message.endswith(b"b\r\n")


@given(wires, st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_pieces_do_not_matter(wire: bytes, sizes: list[int]) -> None:
    whole, whole_rest, whole_clean = read(wire, [max(len(wire), 1)])
    message, rest, clean = read(wire, sizes)
    assert rest == whole_rest
    if rest is not None:
        assert (message, clean) == (whole, whole_clean)


@given(texts.map(b"".join), st.integers(1, 7))
def test_stuffing_is_undone(text: bytes, size: int) -> None:
    message = text + b"\r\n"
    wire, at_line_start = b"", True
    for start in range(0, len(message), size):
        chunk = message[start : start + size]
        wire += stuff(chunk, at_line_start=at_line_start)
        at_line_start = chunk.endswith(b"\n")
    assert read(wire + b".\r\n", [3]) == (message, b"", True)


def test_chunks_are_counted() -> None:
    reader = ChunkReader(5)
    assert reader.feed(b"abc") == (b"abc", None)
    assert reader.feed(b"deNOOP\r\n") == (b"de", b"NOOP\r\n")
    assert ChunkReader(0).feed(b"x") == (b"", b"x")
    assert ChunkReader(0).complete


@given(wires)
def test_chunk_borders_do_not_matter_for_cleanness(wire: bytes) -> None:
    clean, after_cr = True, False
    for octet in wire:
        reader = ChunkReader(1, after_cr=after_cr)
        reader.feed(bytes([octet]))
        clean &= reader.clean
        after_cr = reader.last_is_cr
    assert (clean and not after_cr) == is_clean(wire)
