"""Words, queries, and matching without an index."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.text import (
    MAX_WORD,
    And,
    Not,
    Or,
    Term,
    Text,
    fields_of,
    pack,
    parse,
    unpack,
    words,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("... --- ...", []),
        ("Info@Example.COM", ["info", "example", "com"]),
        ("foo_bar don't 3.14", ["foo", "bar", "don", "t", "3", "14"]),
        ("Straße \uff21\uff22\uff23 ﬁne", ["strasse", "abc", "fine"]),
        ("e\u0301te\u0301 ÉTÉ", ["été", "été"]),
        ("Δίκη ΣΊΣΥΦΟΣ", ["δίκη", "σίσυφοσ"]),
        ("日本語", ["日本", "本語", "語"]),
        ("山 iPhone15を買う", ["山", "iphone15", "を買", "買う", "う"]),
        ("สวัสดี", ["สว", "วั", "ัส", "สด", "ดี", "ี"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("one\0two\ud800three", ["one", "two", "three"]),
    ],
)
def test_words(text, found):
    assert words(text) == found


def test_long_words_are_cut_in_texts_and_queries_alike():
    text = Text({"body": "x" * 500})
    assert text.matches(parse("body", "x" * 500))
    assert words("x" * 500) == ["x" * MAX_WORD]


@given(st.text())
def test_words_are_the_same_when_analysed_again(text):
    for word in words(text):
        assert 0 < len(word) <= MAX_WORD
        assert word in words(word) or len(word) == MAX_WORD


@given(st.text(), st.text())
def test_texts_come_back_as_they_were_packed(headers, body):
    headers = headers.replace("\0", "")
    assert unpack(pack(headers, body)) == (headers, body)


@given(st.binary(max_size=200))
def test_garbage_is_no_packed_text(garbage):
    with pytest.raises(ValueError, match="packed text"):
        unpack(garbage)


def test_a_packed_bomb_is_refused():
    with pytest.raises(ValueError, match="packed text"):
        unpack(pack("", "x" * (64 << 20)))


def test_fields_are_told_apart_and_repeated_ones_joined():
    headers = "from: Ann <a@example.com>\nto: b\nsubject: x: y\nto: c\nx-evil: z"
    assert fields_of(headers, "text") == {
        "from": "Ann <a@example.com>",
        "to": "b\nc",
        "subject": "x: y",
        "body": "text",
    }


def test_parse():
    assert parse("text", "") == And(())
    assert parse("text", " !! ") == Or(())
    assert parse("body", "Hello") == Term("body", ("hello",))
    assert parse("body", "wor* *") == Term("body", ("wor",), prefix=True)
    assert parse("from", "a@b.c") == Term("from", ("a", "b", "c"), phrase=True)
    assert parse("subject", 'one "two three"') == And(
        (Term("subject", ("one",)), Term("subject", ("two", "three"), phrase=True))
    )
    assert parse("subject", '"never closed') == Term(
        "subject", ("never", "closed"), phrase=True
    )
    assert parse("body", "日本語") == Term("body", ("日本", "本語"), phrase=True)
    assert parse("body", "語") == Term("body", ("語",), prefix=True)


def test_a_query_is_bounded():
    query = parse("text", "w " * 10_000)
    assert len(query.parts) == 64
    query = parse("text", "w-" * 10_000)
    assert len(query.words) == 64


MAIL = Text(
    fields_of(
        "from: Ann Lee <ann@example.com>\nto: bob@example.org\nsubject: Re: 東京の天気",
        "The quick brown fox jumps over the lazy dog. Grüße, 日本語 テスト",
    )
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", "quick ANN"),
        ("text", "bob@example.org"),
        ("from", "ann@example"),
        ("body", '"brown fox" dog'),
        ("body", "jum* GRÜSSE"),
        ("body", "grüße"),
        ("subject", "東京"),
        ("subject", "京の"),
        ("subject", "気"),
        ("subject", "京"),
        ("body", '"日本語 テ"'),
        ("text", "\t"),
    ],
)
def test_matches(field, value):
    assert MAIL.matches(parse(field, value))
    assert not MAIL.matches(Not(parse(field, value)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", "quick missing"),
        ("body", "ann"),
        ("from", "bob"),
        ("cc", "ann"),
        ("body", '"fox brown"'),
        ("body", "jum"),
        ("subject", "京東"),
        ("text", "?!"),
        ("text", '"dog ann"'),
    ],
)
def test_does_not_match(field, value):
    assert not MAIL.matches(parse(field, value))


def test_operators():
    dog, cat = parse("text", "dog"), parse("text", "cat")
    assert MAIL.matches(Or((cat, dog)))
    assert not MAIL.matches(And((cat, dog)))
    assert MAIL.matches(And((dog, Not(cat))))
    assert MAIL.matches(And(()))
    assert not MAIL.matches(Or(()))


@given(st.text(alphabet="ab 日本語", max_size=30), st.data())
def test_every_run_of_a_text_is_found_in_it(text, data):
    """What a person copies out of a message, cut at word ends, finds the message."""
    pieces = text.split()
    if not pieces:
        return
    piece = data.draw(st.sampled_from(pieces))
    assert Text({"body": text}).matches(parse("body", piece))
    dense = "".join(c for c in piece if c in "日本語")
    if dense and dense in piece:
        start = data.draw(st.integers(0, len(dense) - 1))
        end = data.draw(st.integers(start + 1, len(dense)))
        assert Text({"body": text}).matches(parse("body", dense[start:end]))
