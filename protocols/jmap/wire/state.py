"""State strings: ``epoch-modseq`` (DESIGN decision 5).

A restore raises the epoch, so that no client trusts a state from before it.
"""

from __future__ import annotations

from protocols.jmap.wire.errors import MethodError
from protocols.jmap.wire.ids import MAX_ID


def render(epoch: int, modseq: int, after: int | None = None) -> str:
    """Render a state string.

    With ``after`` it is a state inside a modseq: everything before it is known, and
    of the modseq itself the objects up to that number.
    """
    return f"{epoch}-{modseq}" if after is None else f"{epoch}-{modseq}.{after}"


def parse(text: str) -> tuple[int, int, int | None] | None:
    """Return (epoch, modseq, after), or None when this is no state string of ours."""
    epoch, dash, rest = text.partition("-")
    modseq, dot, after = rest.partition(".")
    if not dash or not all(map(_digits, [epoch, modseq, after][: 3 if dot else 2])):
        return None
    return int(epoch), int(modseq), int(after) if dot else None


def _digits(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_ID))


def since(text: str, epoch: int, modseq: int) -> tuple[int, None, int | None]:
    """Return (modseq, no limit, after) of a state to tell changes from.

    Raises ``cannotCalculateChanges`` for a state of another epoch, of the future, or
    of somebody else (RFC 8620 section 5.2).
    """
    found = parse(text)
    if found is None or found[0] != epoch or found[1] > modseq:
        raise MethodError("cannotCalculateChanges")
    return found[1], None, found[2]
