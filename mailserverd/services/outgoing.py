"""A message of ours before it leaves: completed, cleaned and signed.

The header is made anew; the body stays where it is, in memory or in the spool's file,
so that a message of any size takes little memory.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from auth.mail.canonical import Joined
from auth.mail.results import without_forged
from mailserverd.core.errors import Kind, MailError
from mailserverd.mail.build import crlf
from mailserverd.mail.compose import MAX_HEADER, complete_header, strip_headers
from mailserverd.mail.encode import ComposeError
from mailserverd.mail.headers import header_end
from mailserverd.services.signing import signatures

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

    from auth.people.directory import DkimKey

PIECE = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What ``finished`` works on, in a thread."""

    message: bytes | mmap.mmap
    now: float
    hostname: str
    domain: str  # of the author, which signs
    keys: tuple[DkimKey, ...]
    received: bytes  # our trace field


def finished(job: Job) -> Joined:
    """Return the message as it leaves; INVALID.

    Of a spooled message all line ends are CRLF: see ``is_clean``.
    """
    raw = job.message
    try:
        if isinstance(raw, bytes):
            if b"\x00" in raw:
                raise ComposeError("message contains NUL")
            raw = crlf(raw)
        block = raw[: MAX_HEADER + 4]
        end = header_end(block)
        header = complete_header(block[:end], job.now, job.hostname)
    except ValueError as error:
        raise MailError(Kind.INVALID, str(error)) from None
    header = strip_headers(header, lambda name, _: name == "return-path")
    header = without_forged(header, job.hostname)
    completed = Joined(header, raw, end)
    signature = signatures(completed, job.domain, job.keys, job.now)
    return Joined(b"".join((signature, job.received, header)), raw, end)


def is_clean(raw: mmap.mmap) -> bool:
    """Say whether all line ends are CRLF; INVALID for NUL."""
    clean = True
    for piece in pieces(raw):
        if b"\x00" in piece:
            raise MailError(Kind.INVALID, "message contains NUL")
        clean = clean and crlf(piece) is piece
    return clean


def pieces(raw: mmap.mmap) -> Iterator[bytes]:
    """Yield a file in pieces, none of which ends between CR and LF."""
    at = 0
    while at < len(raw):
        end = min(at + PIECE, len(raw))
        if raw[end - 1 : end + 1] == b"\r\n":
            end += 1
        yield raw[at:end]
        at = end
