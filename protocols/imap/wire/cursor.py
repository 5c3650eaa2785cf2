"""Reading the arguments of a command: one pass, no re-parse (RFC 9051 section 9).

A command is a list of alternating pieces: text, literal, text, literal, ..., text.
``Cursor`` walks them; every method either consumes what it names or raises
``WireError`` (tagged BAD).
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, TypeVar

from protocols.imap.wire import dates, sequence, utf7
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
MAX_NESTING = 50
MAX_ITEMS = 10_000

_ATOM = re.compile(rb"[!#$&'+,\-./0-9:;<=>?@A-Z\[^_`a-z|}~]+")
_ASTRING = re.compile(rb"[!#$&'+,\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]+")
_LIST_MAILBOX = re.compile(rb"[!#$%&'*+,\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]+")
_WORD = re.compile(rb"[A-Za-z0-9.\-_=+:/]+")
_NUMBER = re.compile(rb"[0-9]{1,19}")
_SET = re.compile(rb"[0-9:,*]+|\$")
_QUOTED = re.compile(rb'"((?:[^"\\]|\\["\\])*+)"')
_ESCAPE = re.compile(rb"\\(.)")
_FLAG = re.compile(rb"\\?[!#$&'+,\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]+")
_SPACE = 32
_MAX_NUMBER = (1 << 63) - 1


class Cursor:
    """A position in the pieces of one command."""

    __slots__ = ("_depth", "_index", "_pieces", "_pos", "_text")

    def __init__(self, pieces: Sequence[bytes], pos: int = 0) -> None:
        self._pieces = pieces
        self._index = 0
        self._text = pieces[0]
        self._pos = pos
        self._depth = 0

    @property
    def at_end(self) -> bool:
        """True when nothing is left."""
        return self._pos == len(self._text) and self._index + 1 == len(self._pieces)

    def end(self) -> None:
        """Require that nothing is left."""
        if not self.at_end:
            raise WireError("unexpected arguments")

    def space(self) -> None:
        """Consume exactly one space."""
        if not self.take(b" "):
            raise WireError("missing argument" if self.at_end else "expected a space")

    def take(self, octets: bytes) -> bool:
        """Consume ``octets`` when they stand here."""
        if self._text.startswith(octets, self._pos):
            self._pos += len(octets)
            return True
        return False

    def expect(self, octets: bytes) -> None:
        """Consume ``octets``, which must stand here."""
        if not self.take(octets):
            raise WireError(f"expected {octets.decode('ascii')!r}")

    def next_is(self, octets: bytes) -> bool:
        """Say whether ``octets`` stand here, without consuming."""
        return self._text.startswith(octets, self._pos)

    def _match(self, pattern: re.Pattern[bytes], what: str) -> bytes:
        match = pattern.match(self._text, self._pos)
        if match is None:
            raise WireError(f"expected {what}")
        self._pos = match.end()
        return match[0]

    def atom(self) -> bytes:
        """``atom``."""
        return self._match(_ATOM, "an atom")

    def word(self) -> str:
        """Return a name of the grammar (command, item, option) in upper case.

        Brackets end it: ``BODY.PEEK[`` is the word ``BODY.PEEK``.
        """
        return self._match(_WORD, "a word").decode("ascii").upper()

    def take_word(self, word: str) -> bool:
        """Consume a word of the grammar (upper case) when it stands here."""
        match = _WORD.match(self._text, self._pos)
        if match is None or match[0].upper() != word.encode("ascii"):
            return False
        self._pos = match.end()
        return True

    def number(self) -> int:
        """``number64``: up to 2^63-1."""
        number = int(self._match(_NUMBER, "a number"))
        if number > _MAX_NUMBER:
            raise WireError("number too large")
        return number

    def nz_number(self) -> int:
        """A number that is not zero."""
        number = self.number()
        if not number:
            raise WireError("expected a number above zero")
        return number

    def sequence_set(self) -> sequence.SequenceSet:
        """``sequence-set``, ``$`` included."""
        return sequence.parse(self._match(_SET, "a sequence set"))

    def is_sequence_set(self) -> bool:
        """Say whether a sequence set (and not a word) stands here."""
        return self._text[self._pos : self._pos + 1] in _SET_START

    @property
    def at_string(self) -> bool:
        """True when a quoted string or a literal stands here."""
        return self.next_is(b'"') or self._at_literal

    @property
    def _at_literal(self) -> bool:
        return self._pos == len(self._text) and self._index + 1 < len(self._pieces)

    def string(self) -> bytes:
        """``string``: quoted or literal."""
        if self._at_literal:
            value = self._pieces[self._index + 1]
            self._index += 2
            self._text = self._pieces[self._index]
            self._pos = 0
            return value
        match = _QUOTED.match(self._text, self._pos)
        if match is None:
            raise WireError("expected a string")
        self._pos = match.end()
        value = match[1]
        return _ESCAPE.sub(rb"\1", value) if b"\\" in value else value

    def astring(self) -> bytes:
        """``astring``: atom with ``]``, or string."""
        return self.string() if self.at_string else self._match(_ASTRING, "a string")

    def nstring(self) -> bytes | None:
        """``nstring``: a string or NIL."""
        if self.at_string:
            return self.string()
        if self.word() != "NIL":
            raise WireError("expected a string or NIL")
        return None

    def mailbox(self, *, utf8: bool) -> str:
        """``mailbox``; see ``decode_mailbox``."""
        return decode_mailbox(self.astring(), utf8=utf8)

    def list_mailbox(self, *, utf8: bool) -> str:
        """``list-mailbox``: a name with ``%`` and ``*``, or a string."""
        if self.at_string:
            return decode_mailbox(self.string(), utf8=utf8, pattern=True)
        value = self._match(_LIST_MAILBOX, "a mailbox pattern")
        return decode_mailbox(value, utf8=utf8, pattern=True)

    def flag(self) -> str:
        r"""``flag``: ``\Seen`` with any case, or a keyword."""
        return self._match(_FLAG, "a flag").decode("ascii")

    def date(self) -> int:
        """``date``, quoted or not: days since the epoch."""
        value = self.string() if self.at_string else self.atom()
        return dates.parse_date(value)

    def date_time(self) -> int:
        """``date-time``: epoch seconds."""
        if not self.next_is(b'"'):
            raise WireError("expected a date-time")
        return dates.parse_date_time(self.string())

    def enter(self) -> None:
        """Consume ``(``, at most ``MAX_NESTING`` deep."""
        self.expect(b"(")
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise WireError("nested too deeply")

    def leave(self) -> None:
        """Consume ``)``."""
        self.expect(b")")
        self._depth -= 1

    def group(self, read: Callable[[], T], *, empty: bool = False) -> list[T]:
        """``"(" [item *(SP item)] ")"``; ``empty`` allows ``()``."""
        self.enter()
        items: list[T] = []
        if empty and self.next_is(b")"):
            self.leave()
            return items
        items.append(read())
        while self.take(b" "):
            items.append(read())
            if len(items) > MAX_ITEMS:
                raise WireError("too many items")
        self.leave()
        return items


_SET_START = frozenset(b"%c" % c for c in b"0123456789*$")


def decode_mailbox(name: bytes, *, utf8: bool, pattern: bool = False) -> str:
    """Return a mailbox name as text: UTF-8 or modified UTF-7 (RFC 9051 section 5.1).

    INBOX is case-insensitive (RFC 9051 section 5.1), also as the first component.
    UTF-8 is understood in IMAP4rev1 too, since some clients send it unasked.
    """
    if any(octet < _SPACE for octet in name):
        raise WireError("control character in a mailbox name")
    try:
        text = name.decode("utf-8") if utf8 or not name.isascii() else utf7.decode(name)
    except UnicodeDecodeError:
        raise WireError("mailbox name is not valid UTF-8") from None
    if not text.isascii():  # Net-Unicode (RFC 9051 section 5.1): one form of a name
        text = unicodedata.normalize("NFC", text)
    if pattern:
        return text
    head, slash, rest = text.partition("/")
    return "INBOX" + slash + rest if head.upper() == "INBOX" else text
