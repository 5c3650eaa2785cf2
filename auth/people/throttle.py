"""Slowing down who guesses passwords, without shutting out the owner.

Every failed login is charged to three accounts: (user, network), network, and user.
Past its allowance each further failure doubles the wait; charges halve with time.
Networks are /24 (IPv4) and /64 (IPv6); loopback, where proxies and webmail sit, is
charged per user only.  From a network where a user has logged in
before, only the failures of that user there count: others' guesses, from anywhere,
do not lock the owner out.  Bounded: the oldest entries go first.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailserverd.core.ports import Clock

Key = tuple[str, str]
LOOPBACK = frozenset({"127.0.0.0/24", "::/64"})


@dataclasses.dataclass(frozen=True, slots=True)
class Allowance:
    """Failures that cost nothing before waits begin, for each kind of account."""

    user_and_network: float = 5
    network: float = 30
    user: float = 50  # spread over many networks
    half_life: float = 600  # seconds in which old failures lose half their weight
    first_wait: float = 1  # seconds
    longest_wait: float = 900
    entries: int = 50_000


ALLOWANCE = Allowance()


class Throttle:
    """Counts failures; one per process.  ``Allowance(...=inf)`` switches it off.

    Where several processes check passwords, ``told`` hands on what is counted here,
    and ``hear`` takes what is counted elsewhere: guesses spread over processes weigh
    as much as those to one.
    """

    def __init__(self, clock: Clock, allowance: Allowance = ALLOWANCE) -> None:
        self._clock = clock
        self._allowance = allowance
        # weight of failures, when last changed, when the next attempt may come
        self._entries: dict[Key, tuple[float, float, float]] = {}
        self._known: dict[Key, None] = {}  # (user, network) that logged in
        self.told: Callable[[str, str, str], None] | None = None
        self._heard = {"c": self._charge, "r": self._refund, "t": self._trust}

    def hear(self, what: str, user: str, network: str) -> None:
        """Count what another process told of."""
        self._heard[what](user, network)

    def _count(self, what: str, user: str, network: str) -> None:
        self._heard[what](user, network)
        if self.told is not None:
            self.told(what, user, network)

    def wait(self, user: str, network: str) -> float:
        """Return for how many seconds an attempt must be refused; 0 for none."""
        keys = [key for key, _ in self._keys(user, network)]
        if keys[0] in self._known:
            del keys[1:]
        until = max(self._entries[k][2] if k in self._entries else 0.0 for k in keys)
        return max(0.0, until - self._clock.monotonic())

    def charge(self, user: str, network: str) -> None:
        """Count an attempt as failed; ``refund`` takes that back."""
        self._count("c", user, network)

    def refund(self, user: str, network: str) -> None:
        """Take back a charge: the attempt did not fail."""
        self._count("r", user, network)

    def trust(self, user: str, network: str) -> None:
        """Note that a user logged in from a network: its owner is there."""
        self._count("t", user, network)

    def _charge(self, user: str, network: str) -> None:
        now, rule = self._clock.monotonic(), self._allowance
        for key, allowed in self._keys(user, network):
            weight, then, _ = self._entries.pop(key, (0.0, now, 0.0))
            weight = weight * 0.5 ** ((now - then) / rule.half_life) + 1
            excess = round(min(max(weight - allowed, 0.0), 30.0))
            wait = rule.first_wait * 2.0 ** (excess - 1) if excess > 0 else 0.0
            self._entries[key] = weight, now, now + min(wait, rule.longest_wait)
        _shorten(self._entries, rule.entries)

    def _refund(self, user: str, network: str) -> None:
        for key, allowed in self._keys(user, network):
            if key in self._entries:
                weight, then, until = self._entries[key]
                weight = max(weight - 1, 0.0)
                self._entries[key] = weight, then, until if weight > allowed else 0.0

    def _trust(self, user: str, network: str) -> None:
        self._entries.pop((user, network), None)
        self._known.pop((user, network), None)
        self._known[user, network] = None
        _shorten(self._known, self._allowance.entries)

    def _keys(self, user: str, network: str) -> tuple[tuple[Key, float], ...]:
        rule = self._allowance
        whole = math.inf if network in LOOPBACK else rule.network
        return (
            ((user, network), rule.user_and_network),
            (("", network), whole),
            ((user, ""), rule.user),
        )


def _shorten(entries: dict[Key, Any], limit: int) -> None:
    while len(entries) > limit:
        del entries[next(iter(entries))]


@functools.lru_cache(maxsize=4096)
def network_of(peer: str) -> str:
    """Return the /24 or /64 that an address lies in; the text itself otherwise."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    width = 24 if address.version == 4 else 64
    return str(ipaddress.ip_network((address, width), strict=False))
