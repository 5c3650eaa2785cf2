"""Neighbours on one daemon: what Bob has, and Alice who would like to see it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from tests.lib.clients import Imap, Jmap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lib import daemon

ALICE, BOB, CAROL = "alice@one.test", "bob@one.test", "carol@two.test"
PASSWORDS = {ALICE: "alice's own", BOB: "bob's own", CAROL: "carol's own"}
SECRET = "xylophonically"
USING = [
    "urn:ietf:params:jmap:core",
    "urn:ietf:params:jmap:mail",
    "urn:ietf:params:jmap:submission",
]
NOBODY = "a999"
MESSAGE = (
    "From: x@outside.test\r\nTo: bob@one.test\r\nSubject: {0} for Bob\r\n"
    "Message-ID: <{0}@outside.test>\r\nMIME-Version: 1.0\r\n"
    "Content-Type: multipart/mixed; boundary=q\r\n\r\n"
    "--q\r\n\r\n{0} is secret\r\n"
    "--q\r\nContent-Transfer-Encoding: base64\r\n"
    "Content-Disposition: attachment; filename={0}.bin\r\n\r\naGVsbG8=\r\n--q--\r\n"
)


class Account(Jmap):
    """JMAP with all capabilities, and a look at what there is."""

    def __init__(self, ours: daemon.Daemon, user: str) -> None:
        super().__init__(ours.port(80), user, PASSWORDS[user])
        self.session()

    def calls(self, *calls: tuple[str, dict[str, Any]], **more: Any) -> list[Any]:
        """Make calls as they stand; return [name, arguments] of each response."""
        listed = [[name, args, str(n)] for n, (name, args) in enumerate(calls)]
        body = {"using": USING, "methodCalls": listed, **more}
        status, answer = self.request(
            "POST", "/jmap/api", json.dumps(body).encode(), "application/json"
        )
        assert status == 200, answer
        return [response[:2] for response in json.loads(answer)["methodResponses"]]

    def mine(self, name: str, /, **args: Any) -> Any:
        [[said, answer]] = self.calls((name, {"accountId": self.account, **args}))
        assert said == name, answer
        return answer

    def box(self, role: str) -> str:
        boxes = self.mine("Mailbox/get")["list"]
        return next(box["id"] for box in boxes if box["role"] == role)

    def path(self, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        self._http.request("GET", path, headers={**self._headers, **headers})
        response = self._http.getresponse()
        return response.status, response.read(), dict(response.getheaders())


@dataclasses.dataclass
class World:
    """Everything of Bob's that Alice may have heard of."""

    ours: daemon.Daemon
    alice: Account
    bob: Account
    email: str
    thread: str
    blob: str
    part: str
    mailbox: str
    identity: str
    submission: str


def prepare(ours: daemon.Daemon, alice: Account, bob: Account) -> World:
    """Give Bob mail, a mailbox and a submission; Alice's ids stay below his."""
    with Imap(ours.port(143), BOB, PASSWORDS[BOB]) as imap:
        for number in range(20):
            raw = MESSAGE.format(f"other{number}").encode()
            assert imap.append(raw).startswith(b"OK")
        imap.ok("CREATE Hidden")
        assert imap.append(MESSAGE.format(SECRET).encode(), "Hidden")[:2] == b"OK"
    [email] = bob.mine("Email/query", filter={"subject": SECRET})["ids"]
    properties = ["threadId", "blobId", "mailboxIds", "attachments"]
    [shown] = bob.mine("Email/get", ids=[email], properties=properties)["list"]
    made = bob.mine("Mailbox/set", create={f"b{n}": {"name": f"b{n}"} for n in "123"})
    identity = bob.mine("Identity/set", create={"i": {"email": BOB, "name": SECRET}})
    draft = {
        "mailboxIds": {bob.box("drafts"): True},
        "from": [{"email": BOB}],
        "to": [{"email": CAROL}],
        "subject": SECRET,
        "textBody": [{"partId": "1"}],
        "bodyValues": {"1": {"value": SECRET}},
    }
    own = bob.mine("Email/set", create={"d": draft})["created"]["d"]["id"]
    first = bob.mine("Identity/get")["list"][0]["id"]
    send = {"s": {"identityId": first, "emailId": own}}
    sent = bob.mine("EmailSubmission/set", create=send)["created"]["s"]["id"]
    return World(
        ours,
        alice,
        bob,
        email,
        shown["threadId"],
        shown["blobId"],
        shown["attachments"][0]["blobId"],
        made["created"]["b3"]["id"],
        identity["created"]["i"]["id"],
        sent,
    )


@contextlib.contextmanager
def imap(world: World, user: str = ALICE) -> Iterator[Imap]:
    with Imap(world.ours.port(143), user, PASSWORDS[user]) as client:
        yield client
