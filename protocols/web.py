"""What an HTTP front end and the protocols above it say to each other.

``mailserverd.net.http`` speaks HTTP/1.1 and knows no routes; an ``Application`` knows
routes and no sockets.  Bodies are bounded before they are read: ``body_limit`` is asked
at the end of the header block, and ``admit`` before a large body is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable

Headers = tuple[tuple[str, str], ...]
IN_MEMORY = 256 * 1024  # octets of a body kept in memory; beyond, a spool file


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """A request without its body.

    ``path`` is still percent-encoded.  Header names are lower case; values of fields
    given several times are joined by ", ".
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    peer: str = ""  # IP address
    local: str = ""  # address:port that was connected to
    secure: bool = False

    def header(self, name: str) -> str:
        """Return a header by its lower-case name, "" when absent."""
        return self.headers.get(name, "")


@dataclasses.dataclass(frozen=True, slots=True)
class Body:
    """The body of a request: in memory, or in a spool file when it was large."""

    data: bytes = b""
    file: BinaryIO | None = None
    size: int = 0

    def read(self) -> bytes:
        """Return the whole body; blocking when it lies in a file."""
        if self.file is None:
            return self.data
        self.file.seek(0)
        return self.file.read()


class Socket(Protocol):
    """The front end's side of a WebSocket connection."""

    def send(self, text: bytes) -> None:
        """Queue one text message (UTF-8)."""

    def close(self, code: int, reason: str = "") -> None:
        """Close with a status code of RFC 6455 section 7.4."""

    @property
    def writable(self) -> bool:
        """False while the client does not read what was sent."""


class SocketSession(Protocol):
    """The application's side of a WebSocket connection."""

    def received(self, text: bytes) -> Awaitable[None] | None:
        """Take one text message; an awaitable means: read no more until it is done."""

    def writable(self) -> None:
        """The client reads again."""

    def valid(self) -> bool:
        """Whether the login still holds; asked now and then."""

    def closed(self) -> None:
        """The connection is gone; nothing may be sent."""


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """An answer: a body in one piece, or a stream, or the upgrade to a WebSocket."""

    status: int
    headers: Headers = ()
    body: bytes = b""
    stream: AsyncIterator[bytes] | None = None
    length: int | None = None  # of the stream, when known
    subprotocol: str = ""
    upgrade: Callable[[Socket], SocketSession] | None = None
    done: Callable[[], None] | None = None  # called once it was sent, or cannot be


Release = Callable[[], None]


class Application(Protocol):
    """Everything behind the HTTP port."""

    def body_limit(self, head: Head) -> int:
        """Return how many octets a body to this path may have."""

    def too_large(self, head: Head) -> Response:
        """Return what is said of a body that has more."""

    async def admit(self, head: Head) -> Release | Response:
        """Decide before a large body is read: a refusal, or what to call at the end."""

    async def handle(self, head: Head, body: Body) -> Response:
        """Answer a request; never raises."""
