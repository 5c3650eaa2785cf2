"""What services need of the outside world; ``net`` implements, ``app`` connects."""

from __future__ import annotations

import dataclasses
import enum
import random
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class Clock(Protocol):
    """Time as a parameter: tests move it, never sleep."""

    def now(self) -> float:
        """Return seconds since the epoch (wall clock)."""

    def monotonic(self) -> float:
        """Return seconds that only grow."""

    def random(self) -> float:
        """Return a number in [0, 1) for jitter."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return seconds since the epoch."""
        return time.time()  # noqa: TID251 - the one implementation of Clock

    def monotonic(self) -> float:
        """Return seconds that only grow."""
        return time.monotonic()

    def random(self) -> float:
        """Return a number in [0, 1)."""
        return random.random()


class DnsStatus(enum.Enum):
    """How a look-up ended."""

    FOUND = "found"
    NO_DATA = "no data"  # the name exists, the type does not
    NO_NAME = "no such name"  # NXDOMAIN
    FAILED = "failed"  # time-out, SERVFAIL, bogus: ask again later


@dataclasses.dataclass(frozen=True, slots=True)
class DnsAnswer:
    """Records of one type at one name.

    ``records`` by type: MX ``(preference, host)``, TXT one ``bytes`` per record
    (strings joined), A/AAAA/PTR/CNAME ``str``.  Names are lower case without the final
    dot.  ``authenticated`` is the AD bit of a validating resolver.
    """

    status: DnsStatus
    records: tuple[object, ...] = ()
    authenticated: bool = False
    error: str = ""


class Resolver(Protocol):
    """Cached, limited and time-limited DNS; never raises for a DNS failure."""

    async def query(self, name: str, rdtype: str) -> DnsAnswer:
        """Look up ``name`` (A-label or UTF-8) for MX, TXT, A, AAAA, PTR, TLSA."""


class Stream(Protocol):
    """A byte stream to a peer (the outbound SMTP client's transport)."""

    async def read(self) -> bytes:
        """Return what arrived next; ``b""`` at the end of the stream."""

    async def write(self, data: bytes) -> None:
        """Write with back-pressure; ConnectionError when the peer is gone."""

    async def start_tls(self, server_name: str, *, verify: bool) -> str:
        """Start TLS as client; return ``"TLSv1.3 CIPHER verified|unverified"``."""

    def close(self) -> None:
        """Close now; never raises."""

    @property
    def peer(self) -> str:
        """The peer's address, for logs: ``203.0.113.5:25``."""


class Connector(Protocol):
    """Opens streams to other servers."""

    async def connect(self, address: str, port: int, *, time_limit: float) -> Stream:
        """Connect to an IP address; OSError or TimeoutError when it fails."""


class Offload(Protocol):
    """A bounded thread pool for CPU-bound or blocking work."""

    def __call__(self, work: Callable[..., T], *args: object) -> Awaitable[T]:
        """Run ``work(*args)`` in a thread and await its result."""
