"""Email/import and Email/parse (RFC 8621 sections 4.8 and 4.9)."""

from __future__ import annotations

from tests.lib.jmap import message, with_jmap

RAW = (
    b"Received: from a by b; Thu, 30 Oct 2014 14:12:00 +0800\r\n"
    b"Received: from c by d; Wed, 29 Oct 2014 14:12:00 +0800\r\n"
    b"Subject: Imp\xc3\xb6rted\r\n\r\nBody\n"
)


async def import_(jmap, **given):
    result = await jmap.call("Email/import", emails={"k": given})
    return result, (result["created"] or result["notCreated"])["k"]


@with_jmap()
async def test_import(jmap):
    blob = await jmap.upload(RAW, "message/rfc822")
    inbox, trash = jmap.roles["inbox"], jmap.roles["trash"]
    before = (await jmap.call("Email/get", ids=[]))["state"]
    result, made = await import_(
        jmap,
        blobId=blob,
        mailboxIds={inbox: True, trash: True},
        keywords={"$Seen": True, "Own": True},
    )
    assert set(made) == {"id", "blobId", "threadId", "size"}
    assert made["blobId"] == blob
    assert made["size"] == len(RAW)
    assert (result["oldState"], result["notCreated"]) == (before, None)
    found = await jmap.get(made["id"])
    assert found["receivedAt"] == "2014-10-30T06:12:00Z"
    assert found["keywords"] == {"$seen": True, "own": True}
    assert set(found["mailboxIds"]) == {inbox, trash}
    assert found["subject"] == "Impörted"
    again, other = await import_(
        jmap,
        blobId=blob,
        mailboxIds={inbox: True},
        receivedAt="2001-01-01T00:00:00Z",
    )
    assert other["id"] != made["id"]
    assert again["oldState"] == result["newState"]


@with_jmap()
async def test_import_of_an_attached_message(jmap):
    email = await jmap.add(
        "Subject: out\nContent-Type: message/rfc822\n\nSubject: in\n\nbody\n"
    )
    part = (await jmap.get(email, "attachments"))["attachments"][0]["blobId"]
    _, made = await import_(jmap, blobId=part, mailboxIds={jmap.roles["inbox"]: True})
    found = await jmap.get(made["id"], "subject", "blobId")
    assert found["subject"] == "in"
    assert found["blobId"] == made["blobId"] != part


@with_jmap()
async def test_imports_that_are_refused(jmap):
    blob = await jmap.upload(RAW)
    empty = await jmap.upload(b"\r\nno header\r\n")
    inbox = jmap.roles["inbox"]
    for given, kind, names in (
        ({"mailboxIds": {inbox: True}}, "invalidProperties", ["blobId"]),
        ({"blobId": blob}, "invalidProperties", ["mailboxIds"]),
        ({"blobId": blob, "mailboxIds": {}}, "invalidProperties", ["mailboxIds"]),
        (
            {"blobId": blob, "mailboxIds": {"m99": True}},
            "invalidProperties",
            ["mailboxIds"],
        ),
        (
            {"blobId": "b" + "0" * 64, "mailboxIds": {inbox: True}},
            "invalidProperties",
            ["blobId"],
        ),
        (
            {"blobId": 5, "mailboxIds": 5, "keywords": 5, "receivedAt": 5, "x": 1},
            "invalidProperties",
            ["blobId", "keywords", "mailboxIds", "receivedAt", "x"],
        ),
        ({"blobId": empty, "mailboxIds": {inbox: True}}, "invalidEmail", None),
    ):
        result, error = await import_(jmap, **given)
        assert error["type"] == kind, given
        if names:
            assert sorted(error["properties"]) == names
        assert result["created"] is None
        assert result["oldState"] == result["newState"]
    error = await jmap.fails("Email/import", emails={}, ifInState="0-0")
    assert error == {"type": "stateMismatch"}


@with_jmap()
async def test_nobody_reads_the_blobs_of_others(jmap):
    blob = await jmap.upload(RAW)
    bob = await jmap.host.account("bob@example.org")
    other = type(jmap)(
        jmap.host, jmap.services, jmap.site, bob, {}, user="bob@example.org"
    )
    mine = f"/jmap/download/{jmap.account}/{blob}/x"
    theirs = f"/jmap/download/{other.account}/{blob}/x"
    assert (await jmap.http("GET", mine)).status == 200
    assert (await other.http("GET", mine)).status == 404
    assert (await other.http("GET", theirs)).status == 404
    parsed = await other.call("Email/parse", blobIds=[blob])
    assert parsed["notFound"] == [blob]
    refused = await other.call(
        "Email/import", emails={"k": {"blobId": blob, "mailboxIds": {"m1": True}}}
    )
    assert refused["notCreated"]["k"]["properties"] == ["blobId"]


@with_jmap()
async def test_parse(jmap):
    blob = await jmap.upload(message("Parsed", body="Hello\n").encode())
    bad = await jmap.upload(b"\x00\x01 nothing")
    none = "b" + "0" * 64
    result = await jmap.call(
        "Email/parse", blobIds=[blob, bad, none, blob], fetchTextBodyValues=True
    )
    assert result["notParsable"] == [bad]
    assert result["notFound"] == [none]
    assert list(result["parsed"]) == [blob]
    found = result["parsed"][blob]
    assert found["subject"] == "Parsed"
    assert "id" not in found
    assert [v["value"] for v in found["bodyValues"].values()] == ["Hello\n"]
    result = await jmap.call(
        "Email/parse",
        blobIds=[blob],
        properties=[
            "id",
            "threadId",
            "mailboxIds",
            "keywords",
            "receivedAt",
            "blobId",
            "size",
            "headers",
            "header:Subject:asText",
        ],
    )
    found = result["parsed"][blob]
    for name in ("id", "threadId", "mailboxIds", "keywords", "receivedAt"):
        assert found[name] is None
    assert found["blobId"] == blob
    assert found["size"] == len(message("Parsed", body="Hello\n"))
    assert found["header:Subject:asText"] == "Parsed"
    assert result["notFound"] is result["notParsable"] is None
    nothing = await jmap.call("Email/parse", blobIds=[])
    assert nothing["parsed"] is None
