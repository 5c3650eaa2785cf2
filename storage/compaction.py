"""Which segments to take out of use, to remove and to pack: the collector's plan.

Pure: the caller says how much of each segment is still needed, an engine carries the
steps out.  A segment's way is

1. ``REWRITE`` while something in it is needed, but too little: that is copied to a
   new segment and the rows are changed;
2. ``RETIRE`` when nothing is: from then on no row can point into it again
   (``storage.metadata.retired``);
3. ``WAIT``, for whoever read a row before that, and then ``REMOVE``.

Small ones that are wholly needed are to ``MERGE``: several of them become one, by the
same way.  Each time fewer are left than before, so that comes to an end.

A segment that was written to lately is kept: what is being delivered lies there.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclasses.dataclass(frozen=True, slots=True)
class SegmentUse:
    """How much of a segment is needed.

    ``octets`` is its size, ``live`` what the needed records in it take, ``quiet`` the
    seconds since it was last written, ``retired`` those since every database refuses
    rows that point there (None: not so).  ``live`` must have been read after
    ``retired``.  ``lost`` are octets that no record accounts for, or that were cut
    off: damage, and nobody can tell who needs what lies there.
    """

    segment: int
    sealed: bool
    octets: int
    live: int
    quiet: float
    retired: float | None = None
    lost: int = 0


class Step(enum.Enum):
    """What to do with a segment next."""

    KEEP = "keep"
    REWRITE = "rewrite"
    MERGE = "merge"
    RETIRE = "retire"
    WAIT = "wait"
    REMOVE = "remove"


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """When collecting pays.

    ``grace`` are the seconds without a write after which a segment is looked at: not
    for safety, but a delivery that takes longer is refused and has to come again.
    ``linger`` are those for which a retired segment is kept for its readers.
    Segments below ``small`` octets are merged once there are ``few`` (2 or more) of
    them: each costs a listing's line, a look in every run and, in a bucket, requests.
    """

    grace: float = 86_400.0
    linger: float = 3_600.0
    least_waste: float = 0.5  # part of a segment that must be dead to rewrite it
    target: int = 64 << 20  # octets of a rewritten segment
    records: int = 1 << 16  # in a rewritten segment
    small: int = 1 << 20
    few: int = 8


def settled(use: SegmentUse, policy: Policy) -> bool:
    """Return whether a segment has come to rest: else it is not even looked into."""
    return use.sealed and use.quiet >= policy.grace


def judge(use: SegmentUse, policy: Policy) -> Step:
    """Return the next step for a segment."""
    if not settled(use, policy):
        return Step.KEEP
    if use.live:  # also in a retired one: a row came in just before
        sparse = 1 - use.live / use.octets >= policy.least_waste
        if sparse or use.retired is not None:
            return Step.REWRITE
        # One with damage stays where it is, whatever is copied out.
        small = use.octets < policy.small and not use.lost
        return Step.MERGE if small else Step.KEEP
    if use.lost:
        return Step.KEEP
    if use.retired is None:
        return Step.RETIRE
    return Step.REMOVE if use.retired >= policy.linger else Step.WAIT


class Packer:
    """Groups segments so that what is needed of a group fills one segment."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._group: list[int] = []
        self._octets = self._records = 0

    @property
    def empty(self) -> bool:
        """True while no segment waits."""
        return not self._group

    def add(self, use: SegmentUse, records: int) -> tuple[int, ...]:
        """Take a segment with so many needed records in; return the group that was
        full before it, if so."""
        policy = self._policy
        full: tuple[int, ...] = ()
        if (
            self._octets + use.live > policy.target
            or self._records + records > policy.records
        ):
            full = self.take()
        self._group.append(use.segment)
        self._octets += use.live
        self._records += records
        return full

    def take(self) -> tuple[int, ...]:
        """Return the group as it is, and begin another."""
        group, self._group = tuple(self._group), []
        self._octets = self._records = 0
        return group


def going_round(segments: Iterable[int], after: int) -> Iterator[int]:
    """Yield segment numbers, those greater than ``after`` first."""
    numbers = sorted(segments)
    yield from (number for number in numbers if number > after)
    yield from (number for number in numbers if number <= after)
