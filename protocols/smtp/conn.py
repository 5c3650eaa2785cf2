"""One SMTP connection as its server sees it, sans IO: octets in, events out.

What may follow what stands in ``TRANSITIONS``; how the octets are to be read (lines,
data after 354, the octets of a BDAT) is set by the session as it obeys commands.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from protocols.smtp.wire.command import MAX_LINE, CommandError
from protocols.smtp.wire.data import ChunkReader, DataReader


class State(enum.Enum):
    """Where the conversation stands (RFC 5321 section 3.3, section 4.1.4)."""

    START = "not greeted"
    READY = "greeted"
    MAIL = "reverse-path given"
    RCPT = "recipients given"
    CHUNKS = "between BDAT commands"


_GREETINGS = {"HELO": State.READY, "EHLO": State.READY, "LHLO": State.READY}
_IN_MAIL = {**_GREETINGS, "RSET": State.READY, "RCPT": State.RCPT}
# A verb missing here (NOOP, QUIT ...) is allowed anywhere and changes nothing.
TRANSITIONS: dict[State, dict[str, State]] = {
    State.START: {**_GREETINGS, "RSET": State.START},
    State.READY: {
        **_GREETINGS,
        "RSET": State.READY,
        "STARTTLS": State.START,
        "AUTH": State.READY,
        "MAIL": State.MAIL,
    },
    State.MAIL: _IN_MAIL,
    State.RCPT: {**_IN_MAIL, "DATA": State.READY, "BDAT": State.CHUNKS},
    State.CHUNKS: {**_GREETINGS, "RSET": State.READY, "BDAT": State.CHUNKS},
}
_ORDERED = frozenset().union(*TRANSITIONS.values())
_WRONG: dict[tuple[State, str], str] = {
    (State.START, "*"): "Send EHLO first",
    (State.READY, "RCPT"): "Need MAIL before RCPT",
    (State.READY, "DATA"): "Need RCPT before DATA",
    (State.READY, "BDAT"): "Need RCPT before BDAT",
    (State.MAIL, "MAIL"): "Nested MAIL command",
    (State.MAIL, "DATA"): "No valid recipients",
    (State.MAIL, "BDAT"): "No valid recipients",
    (State.RCPT, "MAIL"): "Nested MAIL command",
    (State.CHUNKS, "DATA"): "DATA cannot follow BDAT",
}


class Line(NamedTuple):
    """One line, without its CRLF."""

    data: bytes


class BadLine(NamedTuple):
    """A line that is not to be obeyed: too long, or ended by a bare LF."""

    too_long: bool


class Content(NamedTuple):
    """Octets of the message; ``end`` after the last of them (of this BDAT).

    ``clean`` is False when a bare CR, a bare LF or a NUL was among them.
    """

    data: bytes
    end: bool
    clean: bool


Event = Line | BadLine | Content


class ServerConnection:
    """Reads what a client sends and knows what it may send next."""

    def __init__(self) -> None:
        self.state = State.START
        self._buffer = b""
        self._position = 0
        self._more: list[bytes] = []
        self._reader: DataReader | ChunkReader | None = None
        self._after_cr = False
        self.skipped = 0  # octets of a line that is too long, and has not ended

    def feed(self, data: bytes) -> None:
        """Take octets from the network."""
        self._more.append(data)

    @property
    def buffered(self) -> int:
        """Octets that wait to be read as events."""
        return len(self._buffer) - self._position + sum(map(len, self._more))

    def next_event(self) -> Event | None:
        """Return what the octets say next, or None when more are needed."""
        if self._more:
            self._buffer = b"".join((self._buffer[self._position :], *self._more))
            self._position = 0
            self._more.clear()
        if self._reader is not None:
            return self._next_content(self._reader)
        return self._next_line()

    # --- the order of commands ------------------------------------------------

    def check(self, verb: str) -> None:
        """Raise CommandError when ``verb`` may not come now.

        503 also where all recipients were refused: RFC 5321 section 3.3 allows it, and
        RFC 2033 section 4.2 asks for it.
        """
        if verb in _ORDERED and verb not in TRANSITIONS[self.state]:
            text = _WRONG.get((self.state, verb)) or _WRONG.get((self.state, "*"))
            raise CommandError(503, "5.5.1", text or "Bad sequence of commands")

    def advance(self, verb: str) -> None:
        """Note that ``verb`` succeeded."""
        self.state = TRANSITIONS[self.state].get(verb, self.state)

    def end_message(self) -> None:
        """Note that a message ended, well or not."""
        if self.state is not State.START:
            self.state = State.READY

    def start_tls(self) -> None:
        """Forget all the client said before TLS (RFC 3207 section 4.2)."""
        self._take_all()
        self._more.clear()
        self.state = State.START

    # --- how octets are read --------------------------------------------------

    def start_data(self) -> None:
        """Read what follows as data, up to CRLF.CRLF."""
        self._reader = DataReader()

    def start_chunk(self, size: int) -> None:
        """Read what follows as ``size`` octets of a BDAT.

        A CR at the end of a chunk counts only within its message: not after RSET, and
        not when the chunk was read over.
        """
        after_cr = self._after_cr and self.state is State.CHUNKS
        self._reader = ChunkReader(size, after_cr=after_cr)

    def _next_content(self, reader: DataReader | ChunkReader) -> Content | None:
        octets = self._take_all()
        if not octets and not reader.complete:
            return None
        data, rest = reader.feed(octets)
        if rest is None:
            return Content(data, end=False, clean=reader.clean)
        self._buffer = rest
        self._reader = None
        if isinstance(reader, ChunkReader):
            self._after_cr = reader.last_is_cr
        return Content(data, end=True, clean=reader.clean)

    @property
    def inside_line_end(self) -> bool:
        """True when the last BDAT ended between CR and LF."""
        return self._after_cr

    def _next_line(self) -> Line | BadLine | None:
        start = self._position
        end = self._buffer.find(b"\n", start)
        if end < 0:
            self._keep_partial_line()
            return None
        self._position = end + 1
        if self.skipped or end - start >= MAX_LINE:
            self.skipped = 0
            return BadLine(too_long=True)
        line = self._buffer[start:end]
        if line[-1:] != b"\r" or line.find(b"\r", 0, -1) >= 0:
            return BadLine(too_long=False)
        return Line(line[:-1])

    def _keep_partial_line(self) -> None:
        """Keep an unfinished line within its limit."""
        if len(self._buffer) - self._position >= MAX_LINE:
            self.skipped += len(self._take_all())

    def _take_all(self) -> bytes:
        octets = self._buffer[self._position :]
        self._buffer = b""
        self._position = 0
        return octets
