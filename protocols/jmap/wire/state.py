"""State strings: ``epoch-modseq`` (DESIGN decision 5).

A restore raises the epoch, so that no client trusts a state from before it.
"""

from __future__ import annotations

from protocols.jmap.wire.errors import MethodError
from protocols.jmap.wire.ids import MAX_ID


def render(epoch: int, modseq: int) -> str:
    """Render a state string."""
    return f"{epoch}-{modseq}"


def parse(text: str) -> tuple[int, int] | None:
    """Return (epoch, modseq), or None when this is no state string of ours."""
    epoch, dash, modseq = text.partition("-")
    if not dash or not _digits(epoch) or not _digits(modseq):
        return None
    return int(epoch), int(modseq)


def _digits(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_ID))


def since(text: str, epoch: int, modseq: int) -> int:
    """Return the modseq of a state that this account can still tell changes from.

    Raises ``cannotCalculateChanges`` for a state of another epoch, of the future, or
    of somebody else (RFC 8620 section 5.2).
    """
    found = parse(text)
    if found is None or found[0] != epoch or found[1] > modseq:
        raise MethodError("cannotCalculateChanges")
    return found[1]
