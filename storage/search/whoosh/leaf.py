"""Queries on one segment of an index: sets of document numbers, nothing scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from storage.search.whoosh.schema import LETTERS, META, NO_EMAIL, words_of
from storage.text import And, Not, Or, Query, Term

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from storage.search.whoosh.postings import Postings

MAX_EXPANSION = 50_000  # words that one prefix may stand for, in one segment


class Leaf:
    """A segment opened for reading.

    ``base`` is its first document's number in the whole index.
    """

    def __init__(self, reader: Any, base: int) -> None:
        self.base = base
        self._reader = reader
        self._words = words_of(reader)

    def search(self, query: Query) -> Iterator[int]:
        """Yield the email ids that match."""
        emails, is_deleted = self._words.emails, self._reader.is_deleted
        for number in self._numbers(query):
            email = emails[number]
            if email != NO_EMAIL and not is_deleted(number):
                yield email

    def numbers_of(self, emails: Iterable[int]) -> list[int]:
        """Return the document numbers of those emails that are here."""
        wanted = set(emails)
        if not wanted:
            return []
        found = enumerate(self._words.emails)
        return [number for number, email in found if email in wanted]

    def reserved(self) -> Iterator[tuple[int, str]]:
        """Yield (document number, text) of reserved documents."""
        for number, email in enumerate(self._words.emails):
            if email == NO_EMAIL and not self._reader.is_deleted(number):
                yield number, self._reader.stored_fields(number)[META]

    # --- evaluation ---

    def _numbers(self, query: Query) -> set[int]:
        match query:
            case Term():
                return self._phrase(query) if query.phrase else self._term(query)
            case And(parts):
                return self._all_of(parts)
            case Or(parts):
                return set().union(*map(self._numbers, parts))
            case Not(part):
                return self._everything() - self._numbers(part)

    def _everything(self) -> set[int]:
        return set(range(len(self._words.emails)))

    def _all_of(self, parts: Iterable[Query]) -> set[int]:
        found: set[int] | None = None
        for part in parts:
            numbers = self._numbers(part)
            found = numbers if found is None else found & numbers
            if not found:
                return set()
        return self._everything() if found is None else found

    def _term(self, term: Term) -> set[int]:
        found: set[int] | None = None
        for word, prefix in _flagged(term):
            numbers: set[int] = set()
            for letter in _letters(term):
                for postings in self._postings(letter, word, prefix=prefix):
                    numbers.update(postings.documents)
            found = numbers if found is None else found & numbers
            if not found:
                break
        return found or set()

    def _postings(self, letter: str, word: str, *, prefix: bool) -> Iterator[Postings]:
        """Yield the posting lists that a word of a query stands for."""
        key = (letter + word).encode("utf-8", "replace")
        if not prefix:
            found = self._words.get(key)
            if found:
                yield found
            return
        for count, postings in enumerate(self._words.beginning(key)):
            if count >= MAX_EXPANSION:
                raise MailError(Kind.LIMIT, "too many words begin like that")
            yield postings

    def _phrase(self, term: Term) -> set[int]:
        """Return documents where the words stand one after another in a field."""
        found: set[int] = set()
        for letter in _letters(term):
            lists = []
            for word, prefix in _flagged(term):
                lists.append(list(self._postings(letter, word, prefix=prefix)))
                if not lists[-1]:
                    break
            else:
                found.update(_consecutive(lists))
        return found


def _letters(term: Term) -> Iterable[str]:
    return LETTERS.values() if term.field == "text" else LETTERS[term.field]


def _flagged(term: Term) -> Iterator[tuple[str, bool]]:
    """Yield each word, and whether it is the beginning of one."""
    last = len(term.words) - 1
    for index, word in enumerate(term.words):
        yield word, term.prefix and index == last


def _consecutive(lists: list[list[Postings]]) -> Iterator[int]:
    """Yield documents where some position of each list follows the one before."""
    common = set.intersection(
        *({n for postings in each for n in postings.documents} for each in lists)
    )
    if not common:
        return
    places = [_places(each) for each in lists]
    for number in common:
        starts = set(places[0][number])
        for distance, each in enumerate(places[1:], 1):
            starts.intersection_update(at - distance for at in each[number])
            if not starts:
                break
        else:
            yield number


def _places(lists: list[Postings]) -> dict[int, list[int]]:
    """Return the positions of any of the words, by document."""
    found = lists[0].places()
    for postings in lists[1:]:
        for number, places in postings.places().items():
            found[number] = found[number] + places if number in found else places
    return found
