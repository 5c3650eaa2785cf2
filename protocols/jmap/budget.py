"""What all answers together may hold in memory, from the reading to the last octet."""

from __future__ import annotations

import threading

from protocols.jmap.wire.errors import MethodError

FREE = 1_000_000  # octets of each answer that are not counted: small ones always pass


class Site:
    """Octets that answers hold which are being made, or wait for a slow client."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._lock = threading.Lock()  # some of them are made in threads

    def take(self, octets: int, *, refuse: bool = True) -> bool:
        """Count octets in (or out, negative); False when there is no room."""
        with self._lock:
            if refuse and octets > 0 and self.held + octets > self.limit:
                return False
            self.held += octets
            return True


class Share:
    """What one answer holds, of its own ``limit`` and of the site's."""

    def __init__(self, site: Site, limit: int) -> None:
        self._site = site
        self._limit = limit
        self._spent = 0
        self._counted = 0

    def spend(self, octets: int) -> None:
        """Take room for what is put into the answer, or read for it.

        ``requestTooLarge`` when the answer is to be too large, ``serverUnavailable``
        when all of them together are.
        """
        self._spent += octets
        if self._spent > self._limit:
            raise MethodError("requestTooLarge", "the response would be too large")
        more = self._spent - FREE - self._counted
        if more <= 0:
            return
        if not self._site.take(more):
            raise MethodError("serverUnavailable", "too much is being answered")
        self._counted += more

    def settle(self, octets: int) -> None:
        """The answer is made: from now on it holds its own octets alone."""
        counted = max(0, octets - FREE)
        self._site.take(counted - self._counted, refuse=False)
        self._counted = counted

    def close(self) -> None:
        """The answer was sent, or will not be."""
        self._site.take(-self._counted, refuse=False)
        self._counted = 0
