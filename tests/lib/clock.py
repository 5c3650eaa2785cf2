"""A clock that is moved, never slept on."""

from __future__ import annotations


class ManualClock:
    """Wall clock and monotonic time stand still until ``move``."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._passed = 1000.0
        self.jitter = 0.5

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self._now

    def monotonic(self) -> float:
        """Return seconds that only grow."""
        return self._passed

    def random(self) -> float:
        """Return ``jitter``."""
        return self.jitter

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds
        self._passed += seconds
