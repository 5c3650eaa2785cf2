"""The segment format: round trips, damage, and reading without a database."""

import hashlib
import os
import random
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from storage import segments
from storage.segments import Damage, Found, SegmentError

STORE = bytes(range(16))
TEXT = b"Subject: hello\r\n\r\n" + b"the quick brown fox jumps over the dog\r\n" * 40


def encode_record(payload, store, segment, stored):
    """Return a whole record: header and payload."""
    header = segments.encode_header(payload, store, segment, stored)
    return header + b"".join(payload.chunks)


def build(contents, *, seal=False, compressor=None):
    """Return the octets of a segment and the refs in it."""
    data = segments.encode_file_header(STORE, 7, 1000)
    refs = []
    for content in contents:
        payload = segments.prepare([content], compressor)
        offset = len(data)
        data += encode_record(payload, STORE, 7, 5)
        refs.append(
            Found(offset, segments.decode_header(data[offset : offset + 96])).ref
        )
    if seal:
        entries = b"".join(map(segments.footer_entry, refs))
        data += segments.encode_footer(STORE, 7, entries, len(data))
    return data, refs


def reader(data):
    return lambda offset, length: data[offset : offset + length]


def scan(data, **options):
    return list(segments.scan(reader(data), len(data), STORE, **options))


def test_sizes_of_the_fixed_parts_are_the_formats():
    assert (segments.FILE_HEADER, segments.RECORD_HEADER) == (64, 96)
    assert (segments.FOOTER_ENTRY, segments.TRAILER) == (64, 32)


def test_file_header_round_trip_and_refusals():
    head = segments.encode_file_header(STORE, 9, 123456)
    assert segments.decode_file_header(head) == (1, STORE, 9, 123456)
    for position in range(len(head)):
        bad = bytearray(head)
        bad[position] ^= 1
        with pytest.raises(SegmentError):
            segments.decode_file_header(bytes(bad))
    with pytest.raises(SegmentError):
        segments.decode_file_header(head[:63])


def test_a_later_version_is_refused_by_name():
    head = bytearray(segments.encode_file_header(STORE, 9, 0)[:-4])
    head[8] = 2
    head += zlib.crc32(head).to_bytes(4, "little")
    with pytest.raises(SegmentError, match="version 2"):
        segments.decode_file_header(bytes(head))


@given(st.binary(max_size=3000), st.booleans())
def test_record_round_trip(content, compressed):
    compressor = zstandard.ZstdCompressor(level=1) if compressed else None
    halves = [content[: len(content) // 2], memoryview(content)[len(content) // 2 :]]
    payload = segments.prepare(halves, compressor)
    record = encode_record(payload, STORE, 3, 99)
    header = segments.decode_header(record)
    assert header.hash == hashlib.sha256(content).digest()
    assert (header.store, header.segment, header.stored) == (STORE, 3, 99)
    assert (header.size, header.length) == (len(content), len(record) - 96)
    assert segments.unpack(record[96:], header.codec, header.size) == content


@given(st.binary(min_size=100, max_size=100))
def test_any_bytes_are_no_header(garbage):
    with pytest.raises(SegmentError):
        segments.decode_header(garbage)
    with pytest.raises(SegmentError):
        segments.decode_file_header(garbage)


def test_compression_only_where_it_pays():
    compressor = zstandard.ZstdCompressor(level=1)

    def codec(content):
        return segments.prepare([content], compressor).codec

    assert codec(TEXT) == segments.ZSTD
    assert codec(TEXT[:500]) == segments.RAW  # too short
    assert codec(os.urandom(5000)) == segments.RAW
    assert codec(os.urandom(100_000)) == segments.RAW
    assert codec(TEXT * 200) == segments.RAW  # so that a ranged read is a pread
    assert codec(TEXT * 20) == segments.ZSTD


def test_unpack_refuses_what_is_not_the_content():
    packed = zstandard.compress(TEXT)
    assert segments.unpack(packed, segments.ZSTD, len(TEXT)) == TEXT
    for payload, codec, size in [
        (packed, segments.ZSTD, len(TEXT) - 1),
        (packed[:-5], segments.ZSTD, len(TEXT)),
        (b"garbage", segments.ZSTD, 7),
        (TEXT, segments.RAW, 5),
        (TEXT, 9, len(TEXT)),
    ]:
        with pytest.raises(SegmentError):
            segments.unpack(payload, codec, size)


def test_a_segment_is_indexed_again_without_a_database():
    contents = [TEXT, b"", b"x" * 5000, TEXT[:100]]
    compressor = zstandard.ZstdCompressor(level=1)
    data, refs = build(contents, compressor=compressor)
    found = scan(data, content=True)
    assert [item.ref for item in found] == refs
    assert refs[0].codec == segments.ZSTD
    for ref, content in zip(refs, contents, strict=True):
        start = ref.offset + segments.RECORD_HEADER
        payload = data[start : start + ref.length]
        assert segments.unpack(payload, ref.codec, ref.size) == content


def test_a_payload_larger_than_the_window_is_checked_in_steps():
    content = os.urandom(3 << 20)
    data, refs = build([b"a", content, b"b"])
    assert [item.ref for item in scan(data, content=True)] == refs
    bad = bytearray(data)
    bad[refs[1].offset + 2_500_000] ^= 4
    kinds = [type(item) for item in scan(bytes(bad))]
    assert kinds == [Found, Damage, Found]


def test_every_torn_tail_ends_the_scan_behind_the_last_whole_record():
    data, refs = build([b"one" * 30, b"two" * 30, b"three" * 30])
    last = refs[-1].offset
    for cut in range(last + 1, len(data)):
        found = scan(data[:cut])
        assert [item.ref for item in found[:-1]] == refs[:-1]
        assert found[-1][:2] == (last, cut)


def test_a_flipped_bit_costs_one_record():
    data, refs = build([b"%d" % n * 50 for n in range(6)])
    rng = random.Random(5)
    for _ in range(200):
        bad = bytearray(data)
        position = rng.randrange(refs[0].offset, refs[5].offset)
        bad[position] ^= 1 << rng.randrange(8)
        hit = max(n for n, ref in enumerate(refs) if ref.offset <= position)
        found = scan(bytes(bad), content=True)
        whole = [item.ref for item in found if isinstance(item, Found)]
        assert whole == refs[:hit] + refs[hit + 1 :]
        assert [item for item in found if isinstance(item, Damage)]


def test_zeros_that_were_never_written_are_a_torn_tail():
    data, refs = build([b"one", b"two"])
    *found, tail = scan(data + bytes(3 << 20))
    assert [item.ref for item in found] == refs
    assert isinstance(tail, Damage)
    assert tail.offset == len(data)


def test_a_segment_inside_a_message_is_not_taken_for_records():
    other, _ = build([b"inner" * 10])
    alien = other.replace(STORE, b"another store id")
    data, refs = build([b"before", alien, b"after"])
    bad = bytearray(data)
    bad[refs[1].offset] ^= 1  # so that the scan looks for what comes next
    assert [i.ref for i in scan(bytes(bad)) if isinstance(i, Found)] == [
        refs[0],
        refs[2],
    ]


def test_footer_lists_every_record():
    data, refs = build([b"a", TEXT, b"c"], seal=True)
    end, listed = segments.read_footer(reader(data), len(data))
    assert listed == refs
    assert end == refs[-1].offset + 96 + refs[-1].length


def test_a_damaged_or_missing_footer_is_noticed():
    data, refs = build([b"a", TEXT, b"c"], seal=True)
    footer = refs[-1].offset + 96 + refs[-1].length
    for position in range(footer, len(data)):
        bad = bytearray(data)
        bad[position] ^= 16
        with pytest.raises(SegmentError):
            segments.read_footer(reader(bytes(bad)), len(bad))
    for cut in (0, 10, footer, len(data) - 1):
        with pytest.raises(SegmentError):
            segments.read_footer(reader(data[:cut]), cut)


def test_an_empty_segment_seals():
    data, _ = build([], seal=True)
    assert segments.read_footer(reader(data), len(data)) == (64, [])
