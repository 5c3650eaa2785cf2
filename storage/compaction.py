"""Which segments to remove and which to rewrite: the collector's plan.

Pure: the caller says how much of each segment is still referenced, an engine
carries the actions out.  A blob is written before the row that owns it, so nothing
young is touched: a segment counts only when its last write is ``grace`` seconds ago.
After a rewrite and the change of the rows, the old segments hold nothing live, and a
later plan removes them; by then no reader holds an address in them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, slots=True)
class SegmentUse:
    """How much of a segment is needed.

    ``octets`` is its size, ``live`` what the referenced records in it take,
    ``quiet`` the seconds since it was last written.
    """

    segment: int
    sealed: bool
    octets: int
    live: int
    quiet: float


@dataclasses.dataclass(frozen=True, slots=True)
class Remove:
    """Nothing in the segment is referenced."""

    segment: int


@dataclasses.dataclass(frozen=True, slots=True)
class Rewrite:
    """Copy what is live in these segments into one new one of ``octets``."""

    segments: tuple[int, ...]
    octets: int


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """When collecting pays."""

    grace: float = 86_400.0  # seconds
    least_waste: float = 0.5  # part of a segment that must be dead to rewrite it
    target: int = 64 << 20  # octets of a rewritten segment
    budget: int = 512 << 20  # octets copied by one plan


def plan(uses: Iterable[SegmentUse], policy: Policy) -> list[Remove | Rewrite]:
    """Return removals first, then rewrites, the emptiest segments first."""
    known = list(uses)
    newest = max((use.segment for use in known), default=0)
    settled = [
        use
        for use in known
        if use.sealed and use.quiet >= policy.grace and use.segment != newest
    ]
    removals = [Remove(use.segment) for use in settled if not use.live]
    sparse = [use for use in settled if use.live and _waste(use) >= policy.least_waste]
    sparse.sort(key=lambda use: (use.live / use.octets, use.segment))
    return [*removals, *_pack(sparse, policy)]


def _waste(use: SegmentUse) -> float:
    return 1 - use.live / use.octets


def _pack(sparse: list[SegmentUse], policy: Policy) -> list[Rewrite]:
    """Group segments so that what is live in a group fills one segment."""
    rewrites: list[Rewrite] = []
    group: list[int] = []
    octets = copied = 0
    for use in sparse:
        if copied + use.live > policy.budget:
            break
        if group and octets + use.live > policy.target:
            rewrites.append(Rewrite(tuple(group), octets))
            group, octets = [], 0
        group.append(use.segment)
        octets += use.live
        copied += use.live
    if group:
        rewrites.append(Rewrite(tuple(group), octets))
    return rewrites
