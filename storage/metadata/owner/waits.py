"""How long units wait: the worst of the last minute, per database."""

from __future__ import annotations

import time

from mailserverd.core.metrics import gauge

WAIT = gauge(
    "metadata_wait_seconds",
    "Longest time from a write's call to its answer in the last one to two minutes",
    ("database",),
)
MINUTE = 60.0


class Waits:
    """The longest wait of this minute and of the one before."""

    def __init__(self, database: str) -> None:
        self._worst = [0.0, 0.0]
        self._began = time.monotonic()
        WAIT.labels(database).set_function(self.worst)

    def note(self, seconds: float) -> None:
        """Count one wait."""
        if seconds > self._worst[0] or time.monotonic() - self._began > MINUTE:
            self._turn()
            self._worst[0] = max(self._worst[0], seconds)

    def worst(self) -> float:
        """Return the longest wait, in seconds."""
        self._turn()
        return max(self._worst)

    def _turn(self) -> None:
        now = time.monotonic()
        if now - self._began > MINUTE:
            before = self._worst[0] if now - self._began < 2 * MINUTE else 0.0
            self._worst = [0.0, before]
            self._began = now
