"""One account never sees another's data, by any id, hash, name, search or push.

Alice, logged in, names everything of Bob's that there is.  What she is told must be
what she is told of things that do not exist.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import statistics
import time
import urllib.parse
from typing import TYPE_CHECKING, Any

import pytest

from protocols.jmap.methods import METHODS
from tests.lib import daemon
from tests.lib.clients import Imap, Smtp
from tests.lib.neighbours import (
    ALICE,
    BOB,
    CAROL,
    MESSAGE,
    NOBODY,
    PASSWORDS,
    SECRET,
    USING,
    Account,
    World,
    imap,
    prepare,
)
from tests.lib.ws import WebSocketClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lib.databases import Engine

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def world(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    accounts = [f"{user}:{password}" for user, password in PASSWORDS.items()]
    made = daemon.make(
        tmp_path_factory.mktemp("isolation") / "ours",
        *accounts,
        domains=("one.test", "two.test"),
        engine=engine,
    )
    made.override("[inbound]\nspf = false\ndkim = false\ndmarc = false\n")
    with (
        daemon.running(made),
        Account(made, ALICE) as alice,
        Account(made, BOB) as bob,
    ):
        yield prepare(made, alice, bob)
    log = made.log()
    assert "Traceback" not in log, log
    assert not [e for e in made.events() if e.get("level") == "error"]


# --- accounts -------------------------------------------------------------------


def arguments(name: str, account: str, world: World) -> dict[str, Any]:
    """Return valid arguments of a method, naming what is Bob's."""
    args: dict[str, Any] = {"accountId": account}
    kind, _, verb = name.partition("/")
    if verb == "changes":
        args["sinceState"] = "1-1"
    elif verb == "queryChanges":
        args["sinceQueryState"] = "1-1"
    elif verb == "copy":
        args["fromAccountId"] = account
        args |= {"blobIds": [world.blob]} if kind == "Blob" else {"create": {}}
    elif name == "Email/import":
        args["emails"] = {}
    elif name == "Email/parse":
        args["blobIds"] = [world.blob]
    elif kind == "SearchSnippet":
        args |= {"filter": {"text": SECRET}, "emailIds": [world.email]}
    return args


def test_every_method_knows_no_other_account(world: World) -> None:
    names = [method.name for method in METHODS if method.name != "Core/echo"]
    assert len(names) >= 25
    for name in names:
        answers = [
            world.alice.calls((name, arguments(name, account, world)))
            for account in (world.bob.account, NOBODY)
        ]
        assert answers[0] == answers[1], name
        assert answers[0][0][0] == "error", name
        kinds = {"accountNotFound", "fromAccountNotFound"}
        assert answers[0][0][1]["type"] in kinds, answers


def test_copies_from_another_account(world: World) -> None:
    alice, inbox = world.alice, world.alice.box("inbox")
    for account in (world.bob.account, NOBODY):
        args: dict[str, Any] = {"accountId": alice.account, "fromAccountId": account}
        create = {"x": {"id": world.email, "mailboxIds": {inbox: True}}}
        for name, more in (
            ("Email/copy", {"create": create, "onSuccessDestroyOriginal": True}),
            ("Blob/copy", {"blobIds": [world.blob, world.part]}),
        ):
            answer = alice.calls((name, args | more))
            assert answer == [["error", {"type": "fromAccountNotFound"}]], answer
            args |= {"accountId": account, "fromAccountId": alice.account}
            answer = alice.calls((name, args | more))
            assert answer == [["error", {"type": "accountNotFound"}]], answer
            args |= {"accountId": alice.account, "fromAccountId": account}
    assert world.bob.mine("Email/get", ids=[world.email], properties=[])["list"]


def test_session_and_urls_name_the_own_account_alone(world: World) -> None:
    session = world.alice.session()
    assert list(session["accounts"]) == [world.alice.account]
    assert BOB not in json.dumps(session)
    for account in (world.bob.account, NOBODY, "a0", "a-1", "", "%00", "a1%2f..%2fa2"):
        status, _ = world.alice.request(
            "POST", f"/jmap/upload/{account}", b"x", "text/plain"
        )
        assert status == 404, account


# --- ids ------------------------------------------------------------------------


def test_ids_of_others_are_ids_of_nothing(world: World) -> None:
    """Each has more than Alice ever made, so that none is one of hers by chance."""
    alice = world.alice
    for name, theirs in (
        ("Email/get", world.email),
        ("Thread/get", world.thread),
        ("Mailbox/get", world.mailbox),
        ("Identity/get", world.identity),
        ("EmailSubmission/get", world.submission),
    ):
        found = alice.mine(name, ids=[theirs], properties=["id"])
        assert (found["list"], found["notFound"]) == ([], [theirs]), name
    for kind, theirs in (
        ("Email", world.email),
        ("Mailbox", world.mailbox),
        ("Identity", world.identity),
        ("EmailSubmission", world.submission),
    ):
        absent = f"{theirs[0]}999999"
        for update in ({}, {"name": "x"}, {"keywords/x": True}):
            answer = alice.mine(f"{kind}/set", update={theirs: update, absent: update})
            assert answer["updated"] is None
            errors = answer["notUpdated"]
            assert errors[theirs] == errors[absent], errors
        answer = alice.mine(f"{kind}/set", destroy=[theirs])
        assert answer["notDestroyed"][theirs]["type"] == "notFound", answer
    identity = alice.mine("Identity/get")["list"][0]["id"]
    for create in (
        {"identityId": identity, "emailId": world.email},
        {"identityId": world.identity, "emailId": world.email},
    ):
        answer = alice.mine("EmailSubmission/set", create={"x": create})
        assert answer["notCreated"]["x"]["type"] == "invalidProperties", answer
    created = {"accountId": alice.account, "ids": ["#k"], "properties": ["subject"]}
    answer = alice.calls(("Email/get", created), createdIds={"k": world.email})
    assert answer[0][1]["list"] == []


def test_a_mailbox_of_another_takes_no_mail(world: World) -> None:
    alice = world.alice
    [own] = alice.mine(
        "Email/set",
        create={"x": {"mailboxIds": {alice.box("drafts"): True}, "subject": "mine"}},
    )["created"].values()
    _, uploaded = alice.upload(b"From: a@b\r\n\r\nx\r\n")
    boxes = {world.mailbox: True}
    answer = alice.mine("Email/set", update={own["id"]: {"mailboxIds": boxes}})
    assert answer["notUpdated"], answer
    path = f"mailboxIds/{world.mailbox}"
    assert alice.mine("Email/set", update={own["id"]: {path: True}})["notUpdated"]
    assert alice.mine("Email/set", create={"y": {"mailboxIds": boxes}})["notCreated"]
    emails = {"z": {"blobId": uploaded["blobId"], "mailboxIds": boxes}}
    assert alice.mine("Email/import", emails=emails)["notCreated"]
    child = {"c": {"name": "child", "parentId": world.mailbox}}
    assert alice.mine("Mailbox/set", create=child)["notCreated"]
    inside = alice.mine("Email/query", filter={"inMailbox": world.mailbox})
    assert inside["ids"] == []
    theirs = world.bob.mine("Email/query", filter={"inMailbox": world.mailbox})
    assert theirs["ids"] == []


# --- blobs ----------------------------------------------------------------------


def guesses(world: World) -> list[str]:
    """Return ways to name Bob's octets: known hash, parts, ranges, encodings."""
    digest = world.blob[1:]
    return [
        world.blob,
        world.part,
        f"p{digest}-0-10-n",
        f"p{digest}-0-10-b",
        f"p{digest}-0-10-n-0-1-n",
        "b" + hashlib.sha256(b"hello").hexdigest(),
    ]


def test_knowing_a_hash_opens_nothing(world: World) -> None:
    absent = "b" + "0" * 64
    alice, account = world.alice, world.alice.account
    plain = alice.path(f"/jmap/download/{account}/{absent}/x?accept=text/plain")
    assert plain[0] == 404
    for blob in guesses(world):
        for name in ("x", "x?accept=text/plain"):
            found = alice.path(f"/jmap/download/{account}/{blob}/{name}")
            assert found == plain, blob
        found = alice.path(
            f"/jmap/download/{account}/{blob}/x", **{"If-None-Match": f'"{blob}"'}
        )
        assert found == plain, "an ETag tells that it exists"
        quoted = urllib.parse.quote(f"{blob}/../{blob}", safe="")
        assert alice.path(f"/jmap/download/{account}/{quoted}/x")[0] == 404
        other = f"/jmap/download/{world.bob.account}/{blob}/x"
        nobody = f"/jmap/download/{NOBODY}/{blob}/x"
        assert alice.path(other) == alice.path(nobody)


def test_no_method_takes_a_blob_of_another(world: World) -> None:
    alice, drafts = world.alice, world.alice.box("drafts")
    boxes = {"mailboxIds": {drafts: True}}
    for blob in (*guesses(world), "b" + "0" * 64):
        answer = alice.mine("Email/import", emails={"x": {"blobId": blob, **boxes}})
        error = answer["notCreated"]["x"]
        assert error["type"] == "invalidProperties", answer
        assert error["properties"] == ["blobId"], answer
        answer = alice.mine("Email/parse", blobIds=[blob])
        assert answer["notFound"] == [blob], answer
        for part in (
            {"bodyStructure": {"type": "text/plain", "blobId": blob}},
            {"attachments": [{"type": "text/plain", "blobId": blob}]},
        ):
            answer = alice.mine("Email/set", create={"x": boxes | part})
            error = answer["notCreated"]["x"]
            assert (error["type"], error["notFound"]) == ("blobNotFound", [blob])


def test_equal_content_is_not_shared_by_who_does_not_have_it(world: World) -> None:
    """Stored once perhaps, but owned by each."""
    content = b"only bob uploaded this"
    _, made = world.bob.upload(content, "text/plain")
    assert world.bob.download(made["blobId"]) == (200, content)
    assert world.alice.download(made["blobId"])[0] == 404
    _, again = world.alice.upload(content, "text/plain")
    assert again["blobId"] == made["blobId"]
    assert world.alice.download(made["blobId"]) == (200, content)


def test_a_message_to_both_belongs_to_both(world: World) -> None:
    """Bob destroys his; Alice keeps hers; Carol, who never had it, gets nothing."""
    raw = MESSAGE.format("shared").encode()
    with Smtp(world.ours.port(25)) as smtp:
        assert smtp.message(raw, (ALICE, BOB))[0] == 250
    ids = {}
    for one in (world.alice, world.bob):
        [found] = one.mine("Email/query", filter={"subject": "shared"})["ids"]
        [email] = one.mine("Email/get", ids=[found], properties=["blobId"])["list"]
        ids[one.account] = email["id"], email["blobId"]
    email, blob = ids[world.bob.account]
    assert blob == ids[world.alice.account][1]
    assert world.bob.mine("Email/set", destroy=[email])["destroyed"] == [email]
    assert world.bob.download(blob)[0] == 404
    status, content = world.alice.download(blob)
    assert status == 200
    assert content.endswith(raw)
    with imap(world) as client:
        assert content in client.messages()
    with Account(world.ours, CAROL) as carol:
        assert carol.download(blob)[0] == 404


def test_the_time_of_an_error_tells_nothing(world: World) -> None:
    """Naming what Bob has takes as long as naming what nobody has."""
    alice = world.alice
    paths = [
        f"/jmap/download/{alice.account}/{blob}/x"
        for blob in (world.blob, "b" + hashlib.sha256(b"nothing").hexdigest())
    ]
    times: list[list[float]] = [[], []]
    for _ in range(150):
        for path, taken in zip(paths, times, strict=True):
            before = time.perf_counter()
            assert alice.path(path)[0] == 404
            taken.append(time.perf_counter() - before)
    theirs, absent = map(statistics.median, times)
    assert 0.6 < theirs / absent < 1.6, (theirs, absent)


# --- searches -------------------------------------------------------------------


def test_searches_stay_at_home(world: World) -> None:
    alice, bob = world.alice, world.bob
    for condition in ("text", "subject", "body"):
        for owner, hits in ((bob, True), (alice, False)):
            answer = owner.mine("Email/query", filter={condition: SECRET})
            assert bool(answer["ids"]) is hits, (condition, answer)
    header = {"header": ["Message-ID", SECRET]}
    assert alice.mine("Email/query", filter=header)["ids"] == []
    args = {"filter": {"text": SECRET}, "emailIds": [world.email]}
    snippet = alice.mine("SearchSnippet/get", **args)
    assert SECRET not in json.dumps(snippet["list"])
    with imap(world) as client:
        client.ok("SELECT INBOX")
        for key in ("TEXT", "BODY", "SUBJECT", "HEADER Message-ID"):
            (found,) = client.ok(f"SEARCH {key} {SECRET}")
            assert found.split() in ([b"*", b"SEARCH"], [b"*", b"ESEARCH"]), found


# --- IMAP names -----------------------------------------------------------------

NAMES = (
    "Hidden",
    "b3",
    "user/bob",
    "user.bob",
    "user/bob@one.test/Hidden",
    "#user/bob/Hidden",
    "#shared/bob",
    "~bob/Hidden",
    "~bob@one.test",
    "../bob/Hidden",
    "../../a2/Hidden",
    "/Hidden",
    "//bob/Hidden",
    "bob@one.test/Hidden",
    "Other Users/bob",
    "imap://bob@one.test/Hidden",
    "INBOX/../../bob",
    "a2/Hidden",
    "*",
    "%",
)


def test_imap_names_lead_nowhere(world: World) -> None:
    with imap(world) as client:
        client.append(b"Subject: mine\r\n\r\nx\r\n")
        client.ok("SELECT INBOX")
        for name in NAMES:
            for command in (
                f'STATUS "{name}" (MESSAGES)',
                f'COPY 1 "{name}"',
                f'MOVE 1 "{name}"',
                f'RENAME "{name}" Taken',
                f'DELETE "{name}"',
                f'GETQUOTAROOT "{name}"',
                f'GETQUOTA "{name}"',
                f'EXAMINE "{name}"',
            ):
                reply, untagged = client.run(command)
                assert not reply.startswith(b"OK"), (command, reply)
                assert SECRET.encode() not in b"".join(untagged)
            client.ok("SELECT INBOX")
        for pattern in ('"" "*"', '"" "%"', '"#" "*"', '"~bob/" "*"', '"../" "*"'):
            listed = b"\n".join(client.ok(f"LIST {pattern}"))
            assert b"Hidden" not in listed, listed
        (namespace,) = client.ok("NAMESPACE")
        assert namespace.endswith(b" NIL NIL"), namespace
    with imap(world, BOB) as client:
        client.ok("SELECT Hidden")


def test_an_authorization_identity_is_no_way_in(world: World) -> None:
    response = base64.b64encode(f"{BOB}\0{ALICE}\0{PASSWORDS[ALICE]}".encode())
    with Imap(world.ours.port(143)) as client:
        reply, _ = client.run(b"AUTHENTICATE PLAIN " + response)
        assert reply.startswith(b"NO "), reply
        assert not client.run("SELECT INBOX")[0].startswith(b"OK")
    with Smtp(world.ours.port(465), tls=True) as smtp:
        assert smtp.run(b"AUTH PLAIN " + response)[0] == 535


# --- push -----------------------------------------------------------------------


def basic(user: str) -> str:
    secret = base64.b64encode(f"{user}:{PASSWORDS[user]}".encode()).decode()
    return f"Basic {secret}"


def test_push_tells_of_the_own_account_alone(world: World) -> None:
    """Bob's mail arrives first: had Alice been told of it, that would come first."""

    async def run() -> None:
        port = world.ours.port(80)
        headers = {"Authorization": basic(ALICE)}
        client = await WebSocketClient.open("127.0.0.1", port, "/jmap/ws", headers)
        client.send({"@type": "WebSocketPushEnable", "dataTypes": None})
        client.send({"@type": "Request", "id": "r", "using": USING, "methodCalls": []})
        async with asyncio.timeout(20):
            assert (await client.receive())["requestId"] == "r"
            await asyncio.to_thread(deliver, world, BOB, 3)
            await asyncio.to_thread(deliver, world, ALICE, 1)
            change = await client.receive()
        assert list(change["changed"]) == [world.alice.account], change
        await client.close()

    asyncio.run(run())


def test_event_source_tells_of_the_own_account_alone(world: World) -> None:
    port = world.ours.port(80)
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(
            b"GET /jmap/eventsource?types=*&closeafter=state&ping=0&account="
            + world.bob.account.encode()
            + b" HTTP/1.1\r\nHost: x\r\nAuthorization: "
            + basic(ALICE).encode()
            + b"\r\n\r\n"
        )
        data = b""
        while b": connected" not in data:
            data += sock.recv(4096)
        deliver(world, BOB, 3)
        deliver(world, ALICE, 1)
        while more := sock.recv(4096):
            data += more
            if b"\r\n0\r\n\r\n" in data:
                break
    assert b'"changed":{"' + world.alice.account.encode() + b'":' in data, data
    assert b'"' + world.bob.account.encode() + b'"' not in data


def deliver(world: World, to: str, count: int) -> None:
    with Smtp(world.ours.port(25)) as smtp:
        for _ in range(count):
            assert smtp.message(b"Subject: news\r\n\r\nx\r\n", to)[0] == 250
