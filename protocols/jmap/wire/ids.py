"""Object ids as they are shown: a letter and the integer of the account's row.

The letter keeps an id of one type from being taken for another.  Blob ids name the
SHA-256 of the content (``b...``), or a part of one by range and encoding (``p...``);
who may read it is decided by references, never by knowing the hash.
"""

from __future__ import annotations

import dataclasses
import re

MAX_ID = (1 << 63) - 1
_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
_NUMBERED = re.compile(r"[a-z]([1-9][0-9]{0,18})")
_BLOB = re.compile(r"b([0-9a-f]{64})")
_NUMBER = "(?:0|[1-9][0-9]{0,10})"
_PART = re.compile(rf"p([0-9a-f]{{64}})((?:-{_NUMBER}-{_NUMBER}-[nbqu]){{1,4}})")
PLAIN = "8bit"
ENCODINGS = {"n": PLAIN, "b": "base64", "q": "quoted-printable", "u": "x-uuencode"}
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
    match = _NUMBERED.fullmatch(text)
    if match is None or text[0] != prefix:
        return None
    number = int(match[1])
    return number if number <= MAX_ID else None


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


Step = tuple[int, int, str]  # start and end (half-open), content-transfer-encoding


@dataclasses.dataclass(frozen=True, slots=True)
class Blob:
    """A blob id taken apart: the whole content, or a part of it.

    ``steps`` lead to the part: cut a range, undo its encoding, cut again (a message
    attached in base64 has parts of its own).  None for the whole.
    """

    hash: bytes
    steps: tuple[Step, ...] = ()

    def part(self, start: int, end: int, encoding: str) -> Blob:
        """Return a part of what this names; offsets count in its decoded octets."""
        encoding = ENCODINGS[LETTERS.get(encoding, "n")]
        if self.steps and self.steps[-1][2] == PLAIN:
            first = self.steps[-1][0]
            return Blob(
                self.hash, (*self.steps[:-1], (first + start, first + end, encoding))
            )
        return Blob(self.hash, (*self.steps, (start, end, encoding)))

    def render(self) -> str:
        """Return the id."""
        if not self.steps:
            return f"b{self.hash.hex()}"
        ranges = "".join(
            f"-{start}-{end}-{LETTERS.get(encoding, 'n')}"
            for start, end, encoding in self.steps
        )
        return f"p{self.hash.hex()}{ranges}"


def blob(digest: bytes) -> str:
    """Render the id of a whole blob."""
    return "b" + digest.hex()


def parse_blob(text: str) -> Blob | None:
    """Take a blob id apart; None when it is none of ours."""
    if (whole := _BLOB.fullmatch(text)) is not None:
        return Blob(bytes.fromhex(whole[1]))
    if (ranged := _PART.fullmatch(text)) is None:
        return None
    pieces = ranged[2][1:].split("-")
    steps: list[Step] = []
    for start, end, letter in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        if int(start) > int(end):
            return None
        steps.append((int(start), int(end), ENCODINGS[letter]))
    return Blob(bytes.fromhex(ranged[1]), tuple(steps))
