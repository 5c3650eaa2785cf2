"""A small HTTP proxy before an S3 service, which does harm when told to.

``Proxy(port).harm("PUT", "cut answer")`` lets the next PUT arrive and closes the
connection without an answer.  Signatures stay valid: the Host header is the client's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import socket
import threading
import time
from typing import TYPE_CHECKING

from tests.lib.ports import free_port

if TYPE_CHECKING:
    import ssl

HOW = {
    "drop",  # the connection is closed before the request goes on
    "cut answer",  # the request is done, its answer is not sent
    "silence",  # the request is done, its answer comes when the client has gone
    "truncate",  # half of the body, then the end
    "corrupt",  # the octet in the middle of the body is another
    "drip",  # the body comes at one octet per 50 ms
    "late",  # the answer comes half a second late
}
ERRORS = {
    "SlowDown": 503,
    "InternalError": 500,
    "AccessDenied": 403,
    "InvalidAccessKeyId": 403,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "QuotaExceeded": 403,
}
_HOPS = {"connection", "keep-alive", "transfer-encoding"}


@dataclasses.dataclass
class Harm:
    """What happens to requests of a method whose path holds ``match``."""

    method: str
    how: str
    times: int
    match: str


class Proxy:
    """Listens on ``port`` while open; ``seen`` holds (method, path, Range).

    With ``tls`` it speaks HTTPS.
    """

    def __init__(self, upstream: int, tls: ssl.SSLContext | None = None) -> None:
        self.upstream = upstream
        self.port = free_port()
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._tls = tls
        self.seen: list[tuple[str, str, str]] = []
        self._harms: list[Harm] = []
        self._lock = threading.Lock()
        self._server: http.server.ThreadingHTTPServer | None = None
        self._connections: set[socket.socket] = set()

    def __enter__(self) -> Proxy:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self) -> None:
        """Listen."""
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", self.port), Handler
        )
        if self._tls:
            self._server.socket = self._tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Listen no more, and close every connection."""
        server, self._server = self._server, None
        if server:
            server.shutdown()
            for connection in list(self._connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            server.server_close()

    def harm(self, method: str, how: str, times: int = 1, match: str = "") -> None:
        """Do harm to the next ``times`` such requests."""
        assert how in HOW or how in ERRORS
        with self._lock:
            self._harms.append(Harm(method, how, times, match))

    def heal(self) -> None:
        """Do no harm any more."""
        with self._lock:
            self._harms.clear()

    def count(self, method: str, match: str = "") -> int:
        """Return how many such requests came."""
        return sum(m == method and match in path for m, path, _ in self.seen)

    def take(self, method: str, path: str) -> str:
        """Return what is to happen to a request; "" for nothing."""
        with self._lock:
            for harm in self._harms:
                if harm.method == method and harm.match in path and harm.times:
                    harm.times -= 1
                    return harm.how
        return ""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Passes one connection's requests on."""

    protocol_version = "HTTP/1.1"
    owner: Proxy

    def setup(self) -> None:
        super().setup()
        self.owner._connections.add(self.connection)

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        self.owner._connections.discard(self.connection)

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_any(self) -> None:
        self.owner.seen.append(
            (self.command, self.path, self.headers.get("Range") or "")
        )
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        how = self.owner.take(self.command, self.path)
        if how in ERRORS:
            self._refuse(how)
        elif how == "drop":
            self._hang_up()
        else:
            self._answer(how, *self._pass_on(body))

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do_any

    def _pass_on(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self.owner.upstream)
        with contextlib.closing(upstream):
            upstream.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() != "expect":
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            response = upstream.getresponse()
            return response, response.read()

    def _answer(
        self, how: str, response: http.client.HTTPResponse, body: bytes
    ) -> None:
        if how == "silence":
            self.connection.recv(1)  # returns when the client gives up
        if how in {"silence", "cut answer"}:
            self._hang_up()
            return
        if how == "late":
            time.sleep(0.5)
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in _HOPS | {"content-length"}:
                self.send_header(name, value)
        length = response.headers["Content-Length"] if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        self._send(how, body)

    def _send(self, how: str, body: bytes) -> None:
        middle = len(body) // 2
        if how == "truncate":
            self.wfile.write(body[:middle])
            self._hang_up()
        elif how == "drip":
            for index in range(len(body)):
                self.wfile.write(body[index : index + 1])
                time.sleep(0.05)
        elif how == "corrupt":
            other = bytes([body[middle] ^ 1])
            self.wfile.write(body[:middle] + other + body[middle + 1 :])
        else:
            self.wfile.write(body)

    def _refuse(self, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>made to fail</Message></Error>"
        self.send_response_only(ERRORS[code])
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
