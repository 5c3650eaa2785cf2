"""Object ids as they are shown: a letter and the integer of the account's row.

The letter keeps an id of one type from being taken for another.  Blob ids name the
SHA-256 of the content (``b...``) or a range of one and its encoding (``p...``); who may
read it is decided by references, never by knowing the hash.
"""

from __future__ import annotations

import dataclasses
import re

MAX_ID = (1 << 63) - 1
_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
_BLOB = re.compile(r"b([0-9a-f]{64})")
_PART = re.compile(
    r"p([0-9a-f]{64})-(0|[1-9][0-9]{0,12})-(0|[1-9][0-9]{0,12})-([nbqu])"
)
ENCODINGS = {"n": "8bit", "b": "base64", "q": "quoted-printable", "u": "x-uuencode"}
LETTERS = {
    "base64": "b",
    "quoted-printable": "q",
    "x-uuencode": "u",
    "x-uue": "u",
    "uuencode": "u",
}


def is_id(text: object) -> bool:
    """Say whether this is an Id (RFC 8620 section 1.2)."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def _number(prefix: str, text: str) -> int | None:
    digits = text[1:]
    if text[:1] != prefix or not digits.isdecimal() or not digits.isascii():
        return None
    number = int(digits) if len(digits) <= len(str(MAX_ID)) else -1
    return number if 0 < number <= MAX_ID and digits[0] != "0" else None


def account(number: int) -> str:
    """Render an account id."""
    return f"a{number}"


def email(number: int) -> str:
    """Render an Email id."""
    return f"e{number}"


def mailbox(number: int) -> str:
    """Render a Mailbox id."""
    return f"m{number}"


def thread(number: int) -> str:
    """Render a Thread id."""
    return f"t{number}"


def identity(number: int) -> str:
    """Render an Identity id."""
    return f"i{number}"


def submission(number: int) -> str:
    """Render an EmailSubmission id."""
    return f"s{number}"


def parse_account(text: str) -> int | None:
    """Return the account's number, or None when this names none."""
    return _number("a", text)


def parse_email(text: str) -> int | None:
    """Return the Email's number, or None when this names none."""
    return _number("e", text)


def parse_mailbox(text: str) -> int | None:
    """Return the Mailbox's number, or None when this names none."""
    return _number("m", text)


def parse_thread(text: str) -> int | None:
    """Return the Thread's number, or None when this names none."""
    return _number("t", text)


def parse_identity(text: str) -> int | None:
    """Return the Identity's number, or None when this names none."""
    return _number("i", text)


def parse_submission(text: str) -> int | None:
    """Return the EmailSubmission's number, or None when this names none."""
    return _number("s", text)


@dataclasses.dataclass(frozen=True, slots=True)
class Blob:
    """A blob id taken apart: the whole content, or one encoded range of it.

    ``start`` and ``end`` are half-open octets of the stored content; ``end`` is None
    for the whole.  ``encoding`` is the content-transfer-encoding to undo.
    """

    hash: bytes
    start: int = 0
    end: int | None = None
    encoding: str = "8bit"


def blob(digest: bytes) -> str:
    """Render the id of a whole blob."""
    return "b" + digest.hex()


def part(digest: bytes, start: int, end: int, encoding: str) -> str:
    """Render the id of a part: a range of a blob, and how it is encoded."""
    return f"p{digest.hex()}-{start}-{end}-{LETTERS.get(encoding, 'n')}"


def parse_blob(text: str) -> Blob | None:
    """Take a blob id apart; None when it is none of ours."""
    if (whole := _BLOB.fullmatch(text)) is not None:
        return Blob(bytes.fromhex(whole[1]))
    if (ranged := _PART.fullmatch(text)) is None:
        return None
    start, end = int(ranged[2]), int(ranged[3])
    if start > end:
        return None
    return Blob(bytes.fromhex(ranged[1]), start, end, ENCODINGS[ranged[4]])
