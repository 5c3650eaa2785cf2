"""Message data on the wire: end of data, transparency, and what may not be in it.

RFC 5321 section 4.5.2 (dots) and section 4.1.1.4: only CRLF.CRLF ends the data.  A
bare CR, bare LF or NUL does not, and spoils the message (section 2.3.8), so that no
reader behind us can see another end than we do ("SMTP smuggling").
"""

from __future__ import annotations

END = b"\r\n.\r\n"
_PARTIAL = tuple(END[:n] for n in range(len(END) - 1, 0, -1))


def is_clean(data: bytes) -> bool:
    """True when every CR is followed by LF, every LF follows CR, and there is no NUL.

    ``data`` may not begin or end between CR and LF.
    """
    lines = data.count(b"\r\n")
    return lines == data.count(b"\n") == data.count(b"\r") and data.find(b"\0") < 0


class DataReader:
    """Dot-stuffed octets in, message chunks out.

    ``feed`` returns ``(chunk, rest)``: what the octets add to the message, and, once
    the end was met, what follows it (``None`` before).  At most four octets are
    held back between calls.
    """

    complete = False  # never without another octet

    def __init__(self) -> None:
        self._held = b"\r\n"  # DATA's own line end: a dot may come first
        self._virtual = 2  # octets of it that are not the message's
        self.clean = True

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Take octets; after the end was met (``rest`` not None) do not call again."""
        data = self._held + data
        dot = data.find(b"\r\n.")  # one search serves both: nearly no line has a dot
        end = data.find(END, dot) if dot >= 0 else -1
        rest = None
        if end >= 0:
            chunk, rest = data[: end + 2], data[end + len(END) :]
        else:
            kept = next((len(p) for p in _PARTIAL if data.endswith(p)), 0)
            chunk = data[: len(data) - kept]
            self._held = data[len(data) - kept :]
        return self._message(chunk, stuffed=0 <= dot < len(chunk) - 2), rest

    def _message(self, chunk: bytes, *, stuffed: bool) -> bytes:
        if self.clean and not is_clean(chunk):
            self.clean = False
        if stuffed:
            chunk = chunk.replace(b"\r\n.", b"\r\n")
        if self._virtual and chunk:
            chunk = chunk[self._virtual :]
            self._virtual = 0
        return chunk


class ChunkReader:
    """The octets of one BDAT command (RFC 3030 section 2), counted, not searched.

    ``clean`` spans the commands of one message: give the previous reader's
    ``last_is_cr`` so that CRLF may be divided between chunks.
    """

    def __init__(self, size: int, *, after_cr: bool = False) -> None:
        self._left = size
        self.last_is_cr = after_cr
        self.clean = True

    @property
    def complete(self) -> bool:
        """True when no octet is missing (BDAT 0)."""
        return not self._left

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Return (chunk, rest); ``rest`` is None until all octets came."""
        left = self._left
        chunk, rest = (data, b"") if len(data) <= left else (data[:left], data[left:])
        self._left = left - len(chunk)
        if chunk:
            self._check(chunk)
        return chunk, None if self._left else rest

    def _check(self, chunk: bytes) -> None:
        """Look at line ends; a CR at the end is judged with the next octet."""
        whole = b"\r" + chunk if self.last_is_cr else chunk
        self.last_is_cr = whole.endswith(b"\r")
        if not is_clean(whole[:-1] if self.last_is_cr else whole):
            self.clean = False


def stuff(chunk: bytes, *, at_line_start: bool) -> bytes:
    """Double every dot that begins a line (RFC 5321 section 4.5.2)."""
    if chunk.find(b"\n.") >= 0:
        chunk = chunk.replace(b"\n.", b"\n..")
    if at_line_start and chunk.startswith(b"."):
        chunk = b"." + chunk
    return chunk
