"""Clients that send mail in every way, and remember what they were promised."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import threading
from typing import TYPE_CHECKING, Any

from tests.lib import clients

if TYPE_CHECKING:
    import socket

    from tests.lib.daemon import Daemon
    from tests.lib.trace import Sent

SUBMISSION = "urn:ietf:params:jmap:submission"
USING = [clients.CORE, clients.MAIL, SUBMISSION]
OUTSIDE = "friend@elsewhere.test"
Ports = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Promise:
    """An answer: ``raw`` is at these addresses (and on its way to ``remote``).

    ``text`` is the answer's, to be found in what went over the connection ``ports``
    (the daemon's, ours); over TLS it is the last that went there before the first
    over ``marker``.
    """

    token: str
    way: str
    to: tuple[str, ...]
    raw: bytes  # what the stored message ends with; b"": as the daemon made it
    ports: Ports
    text: bytes = b""
    marker: Ports = (0, 0)
    remote: tuple[str, ...] = ()
    flagged: bool = False

    def moment(self, sent: dict[Ports, Sent]) -> int:
        """Return when the answer began to leave."""
        if self.text:
            return sent[self.ports].when(self.text)
        return sent[self.ports].last_before(sent[self.marker].pieces[0][1])


class Witness:
    """Sends to one daemon; ``promises`` grow in the order of the answers."""

    def __init__(self, ours: Daemon, password: str, seed: int = 1) -> None:
        self.ours, self.password = ours, password
        self.promises: list[Promise] = []
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._tokens = (f"w{seed}t{n}e" for n in itertools.count())

    def message(self, size: int, sender: str = "sender@outside.test") -> Any:
        """Return (token, octets) of a message with dots and 8-bit text."""
        with self._lock:
            token, filler = next(self._tokens), self._rng.randbytes(size // 2).hex()
        lines = [filler[i : i + 70] for i in range(0, len(filler), 70)]
        head = (
            f"From: {sender}\r\nTo: {OUTSIDE}\r\nSubject: {token}\r\n"
            "Date: Mon, 2 Nov 2026 10:00:00 +0000\r\n"
            f"Message-ID: <{token}@outside.test>\r\nX-Token: {token}\r\n"
            "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
            "Content-Transfer-Encoding: 8bit\r\n\r\n"
        )
        body = "\r\n".join(("begin é", ".", "..", *lines, "end")) + "\r\n"
        return token, (head + body).encode()

    def _note(self, promise: Promise) -> Promise:
        with self._lock:
            self.promises.append(promise)
        return promise

    # --- ways in ------------------------------------------------------------------

    def smtp(self, session: clients.Smtp, size: int, *to: str) -> Promise:
        """Send by SMTP, to one or to several."""
        token, raw = self.message(size)
        code, said = session.message(raw, to, parameters=" BODY=8BITMIME")
        assert code == 250, said
        ports = ports_of(session.socket)
        return self._note(Promise(token, "smtp", to, raw, ports, said.encode()))

    def append(self, session: clients.Imap, size: int, address: str) -> Promise:
        """APPEND to INBOX."""
        token, raw = self.message(size)
        tag = session.begin(b"APPEND INBOX {%d+}\r\n" % len(raw) + raw)
        said, _ = session.finish(tag)
        assert said.startswith(b"OK"), said
        ports, text = ports_of(session.socket), tag + b" " + said
        return self._note(Promise(token, "append", (address,), raw, ports, text))

    def flag(self, session: clients.Imap, promise: Promise) -> Promise:
        """STORE \\Flagged on a message appended before."""
        session.ok("SELECT INBOX")
        (found,) = session.ok(f"UID SEARCH HEADER X-Token {promise.token}")
        uid = found.split()[-1].decode()
        tag = session.begin(f"UID STORE {uid} +FLAGS.SILENT (\\Flagged)")
        said, _ = session.finish(tag)
        assert said.startswith(b"OK"), said
        ports, text = ports_of(session.socket), tag + b" " + said
        return self._note(
            dataclasses.replace(
                promise, way="store", ports=ports, text=text, flagged=True
            )
        )

    def email_set(self, jmap: clients.Jmap, inbox: str, address: str) -> Promise:
        """Create a message by Email/set."""
        token, _ = self.message(0)
        email = {
            "mailboxIds": {inbox: True},
            "subject": token,
            "header:X-Token": f" {token}",
            "bodyStructure": {"partId": "1", "type": "text/plain"},
            "bodyValues": {"1": {"value": f"text of {token}\n"}},
        }
        self._created(jmap, "Email/set", {"create": {token: email}}, token)
        text = f'"{token}"'.encode()
        promise = Promise(token, "set", (address,), b"", jmap_ports(jmap), text)
        return self._note(promise)

    def email_import(
        self, jmap: clients.Jmap, inbox: str, size: int, address: str
    ) -> Promise:
        """Upload and Email/import."""
        token, raw = self.message(size)
        status, blob = jmap.upload(raw)
        assert status == 201, blob
        email = {"blobId": blob["blobId"], "mailboxIds": {inbox: True}}
        self._created(jmap, "Email/import", {"emails": {token: email}}, token)
        text = f'"{token}"'.encode()
        promise = Promise(token, "import", (address,), raw, jmap_ports(jmap), text)
        return self._note(promise)

    def submission_set(
        self, jmap: clients.Jmap, sender: str, inbox: str, *to: str
    ) -> Promise:
        """Import a message of the sender's, then submit it by EmailSubmission/set."""
        token, raw = self.message(600, sender)
        status, blob = jmap.upload(raw)
        assert status == 201, blob
        email = {"blobId": blob["blobId"], "mailboxIds": {inbox: True}}
        made = self._created(jmap, "Email/import", {"emails": {"e": email}}, "e")
        identities = self._call(jmap, "Identity/get", {"ids": None})["list"]
        submission = {
            "emailId": made["id"],
            "identityId": identities[0]["id"],
            "envelope": {
                "mailFrom": {"email": sender},
                "rcptTo": [{"email": one} for one in to],
            },
        }
        args = {"create": {token: submission}}
        self._created(jmap, "EmailSubmission/set", args, token)
        text, (here, remote) = f'"{token}"'.encode(), _split(to)
        ports, tail = jmap_ports(jmap), raw[raw.index(b"\r\n\r\n") :]
        local = (sender, *here)  # the import, too
        return self._note(
            Promise(token, "submission", local, tail, ports, text, remote=remote)
        )

    def submit(self, sender: str, *to: str) -> Promise:
        """Submit by SMTP over TLS."""
        token, raw = self.message(600, sender)
        with clients.Smtp(self.ours.port(465), tls=True) as session:
            ports = ports_of(session.socket)
            assert session.login(sender, self.password)[0] == 235
            code, said = session.message(
                raw, to, sender=sender, parameters=" BODY=8BITMIME"
            )
            assert code == 250, said
            with clients.Smtp(self.ours.port(25), greet=False) as marker:
                mark = ports_of(marker.socket)
        here, remote = _split(to)
        tail = raw[raw.index(b"\r\n\r\n") :]
        promise = Promise(
            token, "submission", here, tail, ports, marker=mark, remote=remote
        )
        return self._note(promise)

    # --- JMAP ---------------------------------------------------------------------

    def _call(self, jmap: clients.Jmap, name: str, args: dict[str, Any]) -> Any:
        calls = [[name, {"accountId": jmap.account, **args}, "c"]]
        body = json.dumps({"using": USING, "methodCalls": calls}).encode()
        status, answer = jmap.request("POST", "/jmap/api", body, "application/json")
        assert status == 200, answer
        said, result, _ = json.loads(answer)["methodResponses"][0]
        assert said == name, result
        return result

    def _created(
        self, jmap: clients.Jmap, name: str, args: dict[str, Any], key: str
    ) -> Any:
        result = self._call(jmap, name, args)
        assert result["created"], result
        return result["created"][key]

    def inbox(self, jmap: clients.Jmap) -> str:
        """Return the id of the inbox."""
        jmap.session()
        found = self._call(jmap, "Mailbox/query", {"filter": {"role": "inbox"}})
        return str(found["ids"][0])


def _split(to: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the addresses that are ours, and those that are not."""
    return tuple(a for a in to if a != OUTSIDE), tuple(a for a in to if a == OUTSIDE)


def ports_of(connection: socket.socket) -> Ports:
    """Return (the daemon's port, ours)."""
    return int(connection.getpeername()[1]), int(connection.getsockname()[1])


def jmap_ports(jmap: clients.Jmap) -> Ports:
    """Return the ports of a JMAP client's connection."""
    return ports_of(jmap._http.sock)
