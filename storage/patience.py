"""Whether a batch should wait for puts that are said to be coming."""

from __future__ import annotations


class Patience:
    """Learns from each wait if waiting pays.

    It pays when others do join meanwhile; a stuck client that keeps its promise
    open must not delay everybody.  After waits that gained little only one batch
    in ``PROBE`` still waits.
    """

    PROBE = 16
    WORTH = 0.5  # puts gained per wait

    def __init__(self) -> None:
        self._gain = 1.0
        self._skipped = 0

    def waits(self) -> bool:
        """Decide for the next batch."""
        if self._gain >= self.WORTH:
            return True
        self._skipped = (self._skipped + 1) % self.PROBE
        return self._skipped == 0

    def learn(self, gained: int) -> None:
        """Note how many puts joined during a wait."""
        self._gain += 0.25 * (gained - self._gain)
