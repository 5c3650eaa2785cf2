"""Bytes in, events out: lines, literals and the streaming literal of APPEND.

The reader keeps at most one command in memory and no literal of APPEND at all.  Limits
come before memory: a line, a literal or a command that is too large is refused as soon
as its size is known (DESIGN section 7, invariants 8 and 10).
"""

from __future__ import annotations

import dataclasses
import enum
import re

from protocols.imap.wire.cursor import Cursor

_LITERAL = re.compile(rb"(~?)\{([0-9]{1,19})(\+?)\}\Z")
_TAG = re.compile(rb"[!#$&',\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]{1,128}")
_NAME = re.compile(rb"[A-Za-z0-9.\-]{1,32}")
_FORBIDDEN = re.compile(rb"[\0\r]")
LINE_LIMIT = 65536


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may make us hold, in octets.

    ``skip``: a non-synchronising literal up to this is read and dropped when it is
    refused; a larger one ends the connection (RFC 7888 section 4).
    """

    line: int = LINE_LIMIT
    literal: int = 65536
    command: int = 262144
    literals: int = 1000
    skip: int = 1 << 20
    append_skip: int = 1 << 28


PRE_AUTH = Limits(
    line=8192, literal=4096, command=16384, literals=8, skip=4096, append_skip=4096
)
AUTHENTICATED = Limits()


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """A complete command; ``args`` stands behind its name (at a space or the end)."""

    tag: str
    name: str  # upper case, "UID FETCH" as one
    args: Cursor


@dataclasses.dataclass(frozen=True, slots=True)
class Continue:
    """A synchronising literal was announced and fits: ask the peer to go on."""


@dataclasses.dataclass(frozen=True, slots=True)
class Append:
    """APPEND reached its message: call ``Reader.accept`` or ``Reader.refuse``.

    ``args`` ends where the literal begins.
    """

    tag: str
    args: Cursor
    size: int
    sync: bool
    binary: bool  # literal8


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Octets of the accepted APPEND literal."""

    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Tail:
    """The APPEND literal is complete; ``args`` is what follows it on the line."""

    args: Cursor


@dataclasses.dataclass(frozen=True, slots=True)
class RawLine:
    """A line asked for with ``expect_line`` (AUTHENTICATE, DONE)."""

    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Malformed:
    """Not a command: answer BAD (``tag`` ``*`` when there was none).

    ``fatal``: the stream cannot be followed any further, so close it.
    """

    tag: str
    text: str
    fatal: bool = False


Event = Command | Continue | Append | Chunk | Tail | RawLine | Malformed


class _State(enum.Enum):
    LINE = enum.auto()  # a line of a command
    LITERAL = enum.auto()  # octets of a literal kept in memory
    DECIDE = enum.auto()  # APPEND announced; the session decides
    STREAM = enum.auto()  # octets of APPEND's literal, handed over as they come
    TAIL = enum.auto()  # the line after APPEND's literal
    SKIP = enum.auto()  # octets of a refused literal
    DROP = enum.auto()  # the rest of a refused command
    RAW = enum.auto()  # one line as it is
    FATAL = enum.auto()  # a fatal error is to be reported
    DEAD = enum.auto()  # it was reported


class Reader:
    """Feed it bytes, then take events until ``next`` returns None."""

    __slots__ = (
        "_buffer",
        "_held",
        "_left",
        "_pending",
        "_pieces",
        "_raw_limit",
        "_scanned",
        "_state",
        "limits",
    )

    def __init__(self, limits: Limits = AUTHENTICATED) -> None:
        self.limits = limits
        self._buffer = bytearray()
        self._scanned = 0  # no line feed before this position
        self._state = _State.LINE
        self._pieces: list[bytes] = []
        self._held = 0  # octets in _pieces
        self._left = 0  # octets of the literal still to come
        self._raw_limit = 0
        self._pending: Malformed | None = None  # reported when the command ends

    def feed(self, data: bytes) -> None:
        """Take what arrived; the caller bounds how much it feeds before ``next``."""
        self._buffer += data

    @property
    def buffered(self) -> int:
        """Octets that arrived and were not yet handed out."""
        return len(self._buffer)

    def next(self) -> Event | None:
        """Return the next event, or None when more bytes (or a decision) are needed."""
        while True:
            step = _STEPS[self._state]
            before = self._state, len(self._buffer)
            try:
                event = step(self)
            except _TooLong:
                event = self._fatal("line too long")
            if event is not None:
                return event
            if before == (self._state, len(self._buffer)):
                return None

    def expect_line(self, limit: int) -> None:
        """Hand out the next line as it is, at most ``limit`` octets."""
        self._state = _State.RAW
        self._raw_limit = limit

    def accept(self) -> None:
        """Stream the announced APPEND literal as ``Chunk`` events, then ``Tail``."""
        self._state = _State.STREAM

    def refuse(self, *, sync: bool) -> None:
        """Drop the announced APPEND; too much to read ends in a fatal event."""
        self._reset()
        if not sync:
            small = self._left <= self.limits.append_skip
            self._state = _State.SKIP if small else _State.FATAL

    def _reset(self) -> None:
        self._state = _State.LINE
        self._pieces = []
        self._held = 0

    def _take(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._scanned = 0
        return data

    def _line(self, limit: int) -> bytes | None:
        """Return the next line without its end; raises _TooLong beyond the limit."""
        end = self._buffer.find(b"\n", self._scanned)
        if end < 0:
            self._scanned = len(self._buffer)
            if self._scanned > limit:
                raise _TooLong
            return None
        if end > limit:
            raise _TooLong
        line = self._take(end + 1)
        return line[:-2] if line.endswith(b"\r\n") else line[:-1]

    def _on_line(self) -> Event | None:
        line = self._line(self.limits.line)
        if line is None:
            return None
        if line.endswith(b"}") and (match := _LITERAL.search(line)):
            return self._announced(line[: match.start()], match)
        self._pieces.append(line)
        return self._complete()

    def _announced(self, text: bytes, match: re.Match[bytes]) -> Event | None:
        """Decide about a literal before a single octet of it is read."""
        size, sync = int(match[2]), not match[3]
        self._pieces.append(text)
        self._left = size
        if self._is_message(text):
            self._state = _State.DECIDE
            cursor = Cursor(self._pieces, _arguments(self._pieces[0]))
            return Append(_tag(self._pieces[0]), cursor, size, sync, bool(match[1]))
        self._held += len(text) + size
        if error := self._refusal(size):
            return self._refuse_literal(error, sync=sync)
        self._state = _State.LITERAL
        return Continue() if sync else None

    def _is_message(self, text: bytes) -> bool:
        """Say whether the literal is APPEND's message rather than its mailbox."""
        words = self._pieces[0].split(b" ", 2)
        if len(words) != 3 or words[1].upper() != b"APPEND":
            return False
        return len(self._pieces) > 1 or bool(words[2])

    def _refusal(self, size: int) -> str:
        if size > self.limits.literal or self._held > self.limits.command:
            return "literal too large"
        if len(self._pieces) > 2 * self.limits.literals:
            return "too many literals"
        return ""

    def _refuse_literal(self, error: str, *, sync: bool) -> Event | None:
        malformed = Malformed(_tag(self._pieces[0]), error)
        size = self._left
        self._reset()
        if sync:
            return malformed
        if size > self.limits.skip:
            return self._fatal(error)
        self._pending = malformed
        self._state = _State.SKIP
        return None

    def _on_literal(self) -> Event | None:
        if len(self._buffer) < self._left:
            return None
        self._pieces.append(self._take(self._left))
        self._state = _State.LINE
        return None

    def _on_stream(self) -> Event | None:
        if not self._left:
            self._state = _State.TAIL
            return None
        if not self._buffer:
            return None
        data = self._take(min(self._left, len(self._buffer)))
        self._left -= len(data)
        return Chunk(data)

    def _on_tail(self) -> Event | None:
        line = self._line(self.limits.line)
        if line is None:
            return None
        self._reset()
        if match := _LITERAL.search(line):
            self._drop_more(match)
        return Tail(Cursor([line]))

    def _on_skip(self) -> Event | None:
        dropped = min(self._left, len(self._buffer))
        del self._buffer[:dropped]
        self._scanned = 0
        self._left -= dropped
        if not self._left:
            self._state = _State.DROP
        return None

    def _on_drop(self) -> Event | None:
        """Drop the line behind a refused literal, and literals that follow unasked."""
        line = self._line(self.limits.line)
        if line is None:
            return None
        self._state = _State.LINE
        if (match := _LITERAL.search(line)) and self._drop_more(match):
            return None
        pending, self._pending = self._pending, None
        return pending

    def _drop_more(self, match: re.Match[bytes]) -> bool:
        """Skip one more literal that comes without being asked for."""
        if not match[3]:
            return False
        self._left = int(match[2])
        small = self._left <= self.limits.append_skip
        self._state = _State.SKIP if small else _State.FATAL
        return True

    def _on_raw(self) -> Event | None:
        line = self._line(self._raw_limit)
        if line is None:
            return None
        self._state = _State.LINE
        return RawLine(line)

    def _nothing(self) -> Event | None:
        return None

    def _on_fatal(self) -> Event | None:
        return self._fatal("literal too large")

    def _dead(self) -> Event | None:
        self._buffer.clear()
        self._scanned = 0
        return None

    def _fatal(self, text: str) -> Malformed:
        self._reset()
        self._state = _State.DEAD
        self._buffer.clear()
        self._scanned = 0
        return Malformed("*", text, fatal=True)

    def _complete(self) -> Event:
        pieces = self._pieces
        self._reset()
        tag = _tag(pieces[0])
        if any(_FORBIDDEN.search(text) for text in pieces[::2]):
            return Malformed(tag, "bare CR or NUL in a command")
        if tag == "*":
            return Malformed(tag, "invalid tag")
        return _command(tag, pieces)


def _command(tag: str, pieces: list[bytes]) -> Command | Malformed:
    line = pieces[0]
    match = _NAME.match(line, len(tag) + 1)
    if match is None:
        return Malformed(tag, "missing command")
    name, end = match[0].upper(), match.end()
    if name == b"UID" and (match := _NAME.match(line, end + 1)):
        name, end = name + b" " + match[0].upper(), match.end()
    return Command(tag, name.decode("ascii"), Cursor(pieces, end))


def _tag(line: bytes) -> str:
    """Return the tag, or ``*`` when the line has none."""
    match = _TAG.match(line)
    if match is None or line[match.end() : match.end() + 1] != b" ":
        return "*"
    return match[0].decode("ascii")


def _arguments(line: bytes) -> int:
    """Return where the arguments begin: at the space behind the command's name."""
    return line.index(b" ", line.index(b" ") + 1)


class _TooLong(Exception):
    pass


_STEPS = {
    _State.LINE: Reader._on_line,
    _State.LITERAL: Reader._on_literal,
    _State.DECIDE: Reader._nothing,
    _State.STREAM: Reader._on_stream,
    _State.TAIL: Reader._on_tail,
    _State.SKIP: Reader._on_skip,
    _State.DROP: Reader._on_drop,
    _State.RAW: Reader._on_raw,
    _State.FATAL: Reader._on_fatal,
    _State.DEAD: Reader._dead,
}
