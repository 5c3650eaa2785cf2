"""The words file: round trips, merging, damage."""

import io
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.search.whoosh.postings import (
    Damaged,
    Postings,
    WordsReader,
    WordsWriter,
    decode,
    encode,
)


class Memory(io.BytesIO):
    """A file as Whoosh hands it out."""

    def close(self):
        self.content = self.getvalue()
        super().close()

    def get(self, offset, length):
        self.seek(offset)
        return self.read(length)


def write(documents, *, merged=()):
    """Return a reader of (email, [(letter, words)]) and what is merged after it."""
    file = Memory()
    writer = WordsWriter(file)
    for email, fields in documents:
        writer.add_document(email, fields)
    for reader, keep in merged:
        writer.add_merged(reader, keep)
    writer.close()
    return WordsReader(Memory(file.content), len(file.content))


def contents(reader):
    """Return {key: {email: positions}}."""
    return {
        key: {reader.emails[n]: list(places) for n, places in postings.places().items()}
        for key, postings in reader.items()
    }


WORD = st.text("ab\0日", min_size=1, max_size=3)
FIELDS = st.lists(
    st.tuples(st.sampled_from("abc"), st.lists(WORD, max_size=20)),
    unique_by=lambda field: field[0],
    max_size=3,
)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1 << 20), st.lists(st.integers(0, 1 << 18), min_size=1)
        ),
        unique_by=lambda pair: pair[0],
    )
)
def test_a_posting_list_comes_back(pairs):
    pairs.sort()
    postings = Postings(
        array("I", [number for number, _ in pairs]),
        array("I", [len(places) for _, places in pairs]),
        array("I", [place for _, places in pairs for place in places]),
    )
    back = decode(encode(postings))
    assert [list(values) for values in back] == [list(values) for values in postings]
    assert [(n, list(p)) for n, p in back.places().items()] == pairs


def expected(documents):
    found = {}
    for email, fields in documents:
        for letter, words in fields:
            for position, word in enumerate(words):
                at = found.setdefault((letter + word).encode(), {})
                at.setdefault(email, []).append(position)
    return found


@given(st.lists(FIELDS, max_size=12))
def test_every_word_is_found_where_it_stands(lists):
    documents = list(enumerate(lists, 100))
    reader = write(documents)
    want = expected(documents)
    assert contents(reader) == want
    assert list(reader.emails) == [email for email, _ in documents]
    for key, places in want.items():
        found = reader.get(key)
        assert [reader.emails[n] for n in found.documents] == sorted(places)
        assert reader.get(key + b"\0") is None or key + b"\0" in want
        beginning = sum(1 for _ in reader.beginning(key[:2]))
        assert beginning == sum(other.startswith(key[:2]) for other in want)
    assert reader.get(b"") is None


@given(
    st.lists(st.lists(FIELDS, max_size=6), min_size=1, max_size=4),
    st.sets(st.integers(0, 30)),
)
def test_merging_keeps_all_that_is_not_deleted(groups, deleted):
    email, own, merged, left = 0, [], [], []
    for index, group in enumerate(groups):
        documents = []
        for fields in group:
            email += 1
            documents.append((email, fields))
        if index == 0:
            own, left = documents, list(documents)
            continue
        reader = write(documents)
        keep = [n for n, (e, _) in enumerate(documents) if e not in deleted]
        merged.append((reader, keep))
        left += [documents[n] for n in keep]
    result = write(own, merged=merged)
    assert contents(result) == expected(left)
    assert list(result.emails) == [e for e, _ in left]
    for key in contents(result):
        postings = result.get(key)
        assert list(postings.documents) == sorted(set(postings.documents))
    again = write([], merged=[(result, range(len(left)))])
    assert contents(again) == expected(left)


def test_a_large_vocabulary_takes_many_blocks():
    words = [f"word{n:05d}" for n in range(20_000)]
    reader = write([(7, [("a", words)])])
    assert len(reader) > 50
    for n in (0, 1, 131, 9_999, 19_999):
        assert list(reader.get(b"aword%05d" % n).positions) == [n]
    assert reader.get(b"aword20000") is None
    assert reader.get(b"zzz") is None
    assert sum(1 for _ in reader.beginning(b"aword012")) == 100


def test_damage_is_noticed():
    file = Memory()
    writer = WordsWriter(file)
    writer.add_document(1, [("a", ["x", "y"])])
    writer.close()
    data = file.content
    for bad in (data[:-1], b"\0" * len(data), data[:5], b""):
        with pytest.raises((Damaged, ValueError, OSError, Exception)):
            contents(WordsReader(Memory(bad), len(bad)))
    with pytest.raises(Damaged):
        writer = WordsWriter(Memory())
        writer.add_postings(None, None, [("stranger",)])
