"""The part table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.mail.model import Part
from mailserverd.mail.parts import dump_parts, load_parts

TEXT = st.text(max_size=20)
PARAMS = st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple)
PARTS = st.builds(
    Part,
    section=TEXT,
    parent=st.integers(-1, 1000),
    type=TEXT,
    subtype=TEXT,
    params=PARAMS,
    encoding=TEXT,
    disposition=TEXT,
    disposition_params=PARAMS,
    content_id=TEXT,
    description=TEXT,
    language=st.lists(TEXT, max_size=3).map(tuple),
    location=TEXT,
    md5=TEXT,
    header_start=st.integers(0, 1 << 40),
    body_start=st.integers(0, 1 << 40),
    body_end=st.integers(0, 1 << 40),
    lines=st.integers(0, 1 << 30),
    envelope=st.binary(max_size=30),
    nested=st.booleans(),
)


@given(st.lists(PARTS, max_size=5).map(tuple))
def test_round_trip(parts: tuple[Part, ...]) -> None:
    assert load_parts(dump_parts(parts)) == parts


@pytest.mark.parametrize("table", [b"", b"{}", b"[]", b"[2]", b"x"])
def test_other_formats_are_refused(table: bytes) -> None:
    with pytest.raises(ValueError):
        load_parts(table)
