"""Plain blocking clients for tests over sockets: SMTP, IMAP, JMAP.

They read strictly, understand nothing, and show what came: a test says what is right.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import ssl
import urllib.parse
from typing import TYPE_CHECKING, Any, Self

from tests.lib import imap_syntax

if TYPE_CHECKING:
    from collections.abc import Iterator

TIME_LIMIT = 20.0
CORE, MAIL = "urn:ietf:params:jmap:core", "urn:ietf:params:jmap:mail"
_LITERAL = re.compile(rb"\{(\d+)\}\Z")
_REPLY = re.compile(rb"([2-5]\d\d)([ -])(.*)", re.DOTALL)


def unverified() -> ssl.SSLContext:
    """Return a client context that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def refuses(port: int) -> bool:
    """Return True when nobody listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), TIME_LIMIT).close()
    except OSError:
        return True
    return False


class Stream:
    """A socket and a buffer; the socket may turn to TLS."""

    def __init__(
        self, port: int, *, tls: bool = False, limit: float = TIME_LIMIT
    ) -> None:
        self.socket: socket.socket = socket.create_connection(
            ("127.0.0.1", port), limit
        )
        self.buffer = bytearray()
        if tls:
            with self._closed_on_failure():
                self.start_tls()

    @contextlib.contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        """Leave no socket behind of a client that could not be made."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def start_tls(self) -> None:
        assert not self.buffer, bytes(self.buffer)
        self.socket = unverified().wrap_socket(
            self.socket, server_hostname="mail.example.test"
        )

    def certificate(self) -> bytes:
        """Return the peer's certificate as DER."""
        assert isinstance(self.socket, ssl.SSLSocket)
        found = self.socket.getpeercert(binary_form=True)
        assert found
        return found

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _more(self) -> None:
        data = self.socket.recv(1 << 18)
        if not data:
            raise EOFError(bytes(self.buffer))
        self.buffer += data

    def line(self) -> bytes:
        """Return a line without its CRLF; EOFError at the end."""
        start = 0
        while (end := self.buffer.find(b"\r\n", start)) < 0:
            start = max(0, len(self.buffer) - 1)
            self._more()
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        assert b"\n" not in line, line
        return line

    def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._more()
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def rest(self) -> bytes:
        """Return what comes until the end, however it ends."""
        with contextlib.suppress(OSError, EOFError):
            while True:
                self._more()
        return bytes(self.buffer)


class Smtp(Stream):
    """Says what it is told; returns (code, text of all lines)."""

    def __init__(self, port: int, *, tls: bool = False, greet: bool = True) -> None:
        super().__init__(port, tls=tls)
        with self._closed_on_failure():
            self.greeting = self.reply()
            if greet:
                self.ok("EHLO client.outside.test")

    def reply(self) -> tuple[int, str]:
        lines = []
        while True:
            match = _REPLY.fullmatch(self.line())
            assert match is not None, "not an SMTP reply"
            lines.append(match[3].decode())
            if match[2] == b" ":
                return int(match[1]), "\n".join(lines)

    def run(self, command: str | bytes) -> tuple[int, str]:
        text = command.encode() if isinstance(command, str) else command
        self.send(text + b"\r\n")
        return self.reply()

    def ok(self, command: str | bytes) -> str:
        code, text = self.run(command)
        assert code in {220, 221, 235, 250, 252, 354}, (command, code, text)
        return text

    def secure(self) -> None:
        """STARTTLS and greet again."""
        self.ok("STARTTLS")
        self.start_tls()
        self.ok("EHLO client.outside.test")

    def login(self, user: str, password: str) -> tuple[int, str]:
        secret = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        return self.run(f"AUTH PLAIN {secret}")

    def message(
        self,
        raw: bytes,
        to: str | tuple[str, ...],
        *,
        sender: str = "sender@outside.test",
        parameters: str = "",
    ) -> tuple[int, str]:
        """Send a message; return the reply to the data, or the first refusal."""
        recipients = (to,) if isinstance(to, str) else to
        commands = [f"MAIL FROM:<{sender}>{parameters}"]
        commands += [f"RCPT TO:<{address}>" for address in recipients]
        for command in commands:
            code, text = self.run(command)
            if code != 250:
                self.ok("RSET")
                return code, text
        code, text = self.run("DATA")
        if code != 354:
            return code, text
        stuffed = raw.replace(b"\r\n.", b"\r\n..")
        self.send((b"." if raw.startswith(b".") else b"") + stuffed + b".\r\n")
        return self.reply()


class Imap(Stream):
    """Tags commands, reads responses with their literals."""

    def __init__(
        self, port: int, user: str = "", password: str = "", *, tls: bool = False
    ) -> None:
        super().__init__(port, tls=tls)
        self._number = 0
        with self._closed_on_failure():
            self.greeting = self.response()
            if user:
                self.ok(f'LOGIN {user} "{password}"')

    def response(self) -> bytes:
        """Return one response without its final CRLF."""
        data = b""
        while True:
            data += self.line()
            match = _LITERAL.search(data)
            if match is None:
                return data
            data += b"\r\n" + self.exactly(int(match[1]))

    def begin(self, command: str | bytes) -> bytes:
        """Send a command; return its tag."""
        self._number += 1
        tag = b"t%d" % self._number
        text = command.encode() if isinstance(command, str) else command
        self.send(tag + b" " + text + b"\r\n")
        return tag

    def finish(self, tag: bytes) -> tuple[bytes, list[bytes]]:
        """Return the tagged reply without its tag, and what came before it."""
        untagged = []
        while not (response := self.response()).startswith(tag + b" "):
            untagged.append(response)
        return response[len(tag) + 1 :], untagged

    def run(self, command: str | bytes) -> tuple[bytes, list[bytes]]:
        return self.finish(self.begin(command))

    def ok(self, command: str | bytes) -> list[bytes]:
        reply, untagged = self.run(command)
        assert reply.startswith(b"OK"), (command, reply)
        return untagged

    def append(self, raw: bytes, mailbox: str = "INBOX") -> bytes:
        """APPEND with a non-synchronising literal; return the tagged reply."""
        head = f"APPEND {mailbox} {{{len(raw)}+}}\r\n"
        return self.finish(self.begin(head.encode() + raw))[0]

    def secure(self) -> None:
        self.ok("STARTTLS")
        self.start_tls()

    def messages(self, mailbox: str = "INBOX") -> list[bytes]:
        """Return the octets of all messages of a mailbox."""
        self.ok(f"EXAMINE {mailbox}")
        found = []
        for response in self.ok("UID FETCH 1:* (BODY.PEEK[])"):
            if b" FETCH (" in response:
                head, _, rest = response.partition(b"}\r\n")
                found.append(rest[: int(head.rpartition(b"{")[2])])
        return found

    def subjects(self, mailbox: str = "INBOX") -> list[str]:
        """Return the subjects of a mailbox's messages, oldest first."""
        self.ok(f"EXAMINE {mailbox}")
        said = self.ok("UID FETCH 1:* (ENVELOPE)")  # EXISTS, when one just comes
        found = [imap_syntax.fetch(one)[1] for one in said if b" FETCH (" in one]
        return [items[b"ENVELOPE"][1].decode() for items in found]  # type: ignore[index]


class Jmap:
    """One account over HTTP with Basic authentication, on one connection."""

    def __init__(
        self, port: int, user: str, password: str, *, tls: bool = False
    ) -> None:
        self.port = port
        if tls:
            self._http: http.client.HTTPConnection = http.client.HTTPSConnection(
                "127.0.0.1", port, timeout=TIME_LIMIT, context=unverified()
            )
        else:
            self._http = http.client.HTTPConnection(
                "127.0.0.1", port, timeout=TIME_LIMIT
            )
        secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {secret}"}
        self.account = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(
        self, method: str, path: str, body: bytes | None = None, kind: str = ""
    ) -> tuple[int, bytes]:
        headers = {**self._headers, **({"Content-Type": kind} if kind else {})}
        self._http.request(method, path, body, headers)
        response = self._http.getresponse()
        return response.status, response.read()

    def connect(self) -> int:
        """Ask for something on the open connection; return its local port."""
        self.session()
        port: int = self._http.sock.getsockname()[1]
        return port

    def session(self) -> Any:
        status, body = self.request("GET", "/jmap/session")
        assert status == 200, (status, body)
        session = json.loads(body)
        self.account = session["primaryAccounts"][MAIL]
        return session

    def call(self, name: str, /, **arguments: Any) -> tuple[str, Any]:
        """Call one method; return (name of the response, its arguments)."""
        if not self.account:
            self.session()
        calls = [[name, {"accountId": self.account, **arguments}, "c"]]
        body = json.dumps({"using": [CORE, MAIL], "methodCalls": calls}).encode()
        status, answer = self.request("POST", "/jmap/api", body, "application/json")
        assert status == 200, (status, answer)
        (response,) = json.loads(answer)["methodResponses"]
        return response[0], response[1]

    def ok(self, name: str, /, **arguments: Any) -> Any:
        said, answer = self.call(name, **arguments)
        assert said == name, (said, answer)
        return answer

    def download(self, blob: str) -> tuple[int, bytes]:
        if not self.account:
            self.session()
        name = urllib.parse.quote(blob, safe="")
        return self.request("GET", f"/jmap/download/{self.account}/{name}/x")

    def upload(self, data: bytes, kind: str = "message/rfc822") -> tuple[int, Any]:
        if not self.account:
            self.session()
        status, answer = self.request(
            "POST", f"/jmap/upload/{self.account}", data, kind
        )
        return status, json.loads(answer)
