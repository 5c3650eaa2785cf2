"""Email/get: metadata, list properties, header forms, bodies (RFC 8621 section 4)."""

from __future__ import annotations

import base64

from mailserverd.core.errors import Kind, MailError
from protocols.jmap.services import Limits, Settings
from tests.lib.jmap import message, with_jmap

PICTURE = bytes(range(256)) * 10
MIXED = f"""\
From: "  James Smythe" <james@example.com>
To: "Jane" <jane@example.com>, Friends: jane@example.com,
 =?UTF-8?Q?John_Sm=C3=AEth?= <john@example.com>;
Subject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?=
Date: Thu, 30 Oct 2014 14:12:00 +0800
Message-ID: <1@example.com>
References: <a@x> <b@x>
List-Post: <mailto:list@example.com> (members)
X-Twice: one
X-Twice:  two
 folded
X-Odd: a\x00b
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=outer

--outer
Content-Type: multipart/alternative; boundary=inner

--inner
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable
Content-Language: de, en

Gr=C3=BC=C3=9Fe aus=
 K=C3=B6ln
--inner
Content-Type: text/html; charset=iso-8859-1
Content-Transfer-Encoding: base64

{base64.encodebytes('<b>Grüße</b> <a href="x">hier</a>'.encode("latin-1")).decode()}
--inner--
--outer
Content-Type: image/png; name=fallback.png
Content-Disposition: attachment; filename*=utf-8''K%C3%A4se.png
Content-ID: <pic@x>
Content-Location: http://example.com/p.png
Content-Transfer-Encoding: base64

{base64.encodebytes(PICTURE).decode()}
--outer
Content-Type: message/rfc822

Subject: Inside
Content-Type: text/plain

Inner text
--outer--
"""


@with_jmap()
async def test_metadata_and_list_properties(jmap):
    email = await jmap.add(message("Käse", Message_ID="<1@x>"), system=1)
    found = await jmap.get(email)
    assert found["id"] == email
    assert found["threadId"].startswith("t")
    assert found["mailboxIds"] == {jmap.roles["inbox"]: True}
    assert found["keywords"] == {"$seen": True}
    assert found["receivedAt"] == "2027-01-15T08:00:00Z"
    assert found["subject"] == "Käse"
    assert found["messageId"] == ["1@x"]
    assert found["from"] == [{"name": "Bob", "email": "bob@example.net"}]
    assert found["cc"] is None
    assert found["preview"] == "Some text."
    assert found["hasAttachment"] is False
    assert found["bodyValues"] == {}
    assert [part["type"] for part in found["textBody"]] == ["text/plain"]
    assert "headers" not in found


@with_jmap()
async def test_not_found_and_duplicates(jmap):
    email = await jmap.add(message())
    result = await jmap.call(
        "Email/get", ids=[email, "e99", email, "m1"], properties=["size"]
    )
    assert [one["id"] for one in result["list"]] == [email]
    assert sorted(result["notFound"]) == ["e99", "m1"]
    everything = await jmap.call("Email/get", ids=None, properties=["id"])
    assert everything["list"] == [{"id": email}]
    for properties in (["nonsense"], ["header:From:asDate"], ["header:a b"]):
        error = await jmap.fails("Email/get", ids=[], properties=properties)
        assert error["type"] == "invalidArguments"
    error = await jmap.fails("Email/get", ids=[], bodyProperties=["x"])
    assert error["type"] == "invalidArguments"


@with_jmap()
async def test_deleted_messages_do_not_exist(jmap):
    email = await jmap.add(message(), system=16)
    assert (await jmap.call("Email/get", ids=[email]))["notFound"] == [email]
    inbox = (await jmap.call("Mailbox/get", ids=[jmap.roles["inbox"]]))["list"][0]
    assert inbox["totalEmails"] == 0


@with_jmap()
async def test_header_forms(jmap):
    email = await jmap.add(MIXED)
    found = await jmap.get(
        email,
        "header:from",
        "header:FROM:asAddresses",
        "header:To:asGroupedAddresses",
        "header:To:asAddresses:all",
        "header:Subject:asText",
        "header:subject",
        "header:Date:asDate",
        "header:Message-ID:asMessageIds",
        "header:References:asMessageIds",
        "header:List-Post:asURLs",
        "header:X-Twice",
        "header:X-Twice:asText:all",
        "header:X-Odd",
        "header:X-None",
        "header:X-None:asText:all",
        "header:X-Twice:asMessageIds",
    )
    john = {"name": "John Smîth", "email": "john@example.com"}
    jane = {"name": None, "email": "jane@example.com"}
    first = {"name": "Jane", "email": "jane@example.com"}
    assert found["header:from"] == ' "  James Smythe" <james@example.com>'
    assert found["header:FROM:asAddresses"] == [
        {"name": "James Smythe", "email": "james@example.com"}
    ]
    assert found["header:To:asGroupedAddresses"] == [
        {"name": None, "addresses": [first]},
        {"name": "Friends", "addresses": [jane, john]},
    ]
    assert found["header:To:asAddresses:all"] == [[first, jane, john]]
    assert found["header:Subject:asText"] == "Grüße"
    assert found["header:subject"] == " =?utf-8?Q?Gr=C3=BC=C3=9Fe?="
    assert found["header:Date:asDate"] == "2014-10-30T14:12:00+08:00"
    assert found["header:Message-ID:asMessageIds"] == ["1@example.com"]
    assert found["header:References:asMessageIds"] == ["a@x", "b@x"]
    assert found["header:List-Post:asURLs"] == ["mailto:list@example.com"]
    assert found["header:X-Twice"] == "  two\r\n folded"
    assert found["header:X-Twice:asText:all"] == ["one", "two folded"]
    assert found["header:X-Odd"] == " ab"
    assert found["header:X-None"] is None
    assert found["header:X-None:asText:all"] == []
    assert found["header:X-Twice:asMessageIds"] is None


@with_jmap()
async def test_all_headers(jmap):
    email = await jmap.add("Subject: a\nX: b\nx:c\n\nbody")
    found = await jmap.get(email, "headers")
    assert found["headers"] == [
        {"name": "Subject", "value": " a"},
        {"name": "X", "value": " b"},
        {"name": "x", "value": "c"},
    ]


@with_jmap()
async def test_body_parts(jmap):
    email = await jmap.add(MIXED)
    found = await jmap.get(
        email, "textBody", "htmlBody", "attachments", "bodyStructure", "hasAttachment"
    )
    assert [part["type"] for part in found["textBody"]] == ["text/plain"]
    assert [part["type"] for part in found["htmlBody"]] == ["text/html"]
    picture, inside = found["attachments"]
    assert found["hasAttachment"] is True
    assert picture["name"] == "Käse.png"
    assert picture["cid"] == "pic@x"
    assert picture["disposition"] == "attachment"
    assert picture["location"] == "http://example.com/p.png"
    assert picture["size"] == len(PICTURE)
    assert picture["charset"] is None
    assert inside["type"] == "message/rfc822"
    text = found["textBody"][0]
    assert text["language"] == ["de", "en"]
    assert text["charset"] == "utf-8"
    assert text["size"] == len("Grüße aus Köln".encode())
    tree = found["bodyStructure"]
    assert tree["type"] == "multipart/mixed"
    assert tree["partId"] is tree["blobId"] is None
    assert [part["type"] for part in tree["subParts"]] == [
        "multipart/alternative",
        "image/png",
        "message/rfc822",
    ]
    assert len(tree["subParts"][0]["subParts"]) == 2
    assert "subParts" not in tree["subParts"][2]


@with_jmap()
async def test_parts_are_downloaded_decoded(jmap):
    email = await jmap.add(MIXED)
    found = await jmap.get(email, "attachments", "textBody")
    picture, inside = found["attachments"]
    base = f"/jmap/download/{jmap.account}"

    async def content(part):
        answer = await jmap.http("GET", f"{base}/{part['blobId']}/x?accept=a/b")
        assert answer.status == 200
        return b"".join([chunk async for chunk in answer.stream])

    assert await content(picture) == PICTURE
    assert (await content(found["textBody"][0])).decode() == "Grüße aus Köln"
    assert (await content(inside)).startswith(b"Subject: Inside\r\n")
    parsed = await jmap.call("Email/parse", blobIds=[inside["blobId"]])
    assert parsed["parsed"][inside["blobId"]]["subject"] == "Inside"


@with_jmap()
async def test_part_properties_on_demand(jmap):
    email = await jmap.add(MIXED)
    found = await jmap.get(
        email,
        "textBody",
        bodyProperties=["partId", "headers", "header:Content-Language:asText"],
    )
    part = found["textBody"][0]
    assert set(part) == {"partId", "headers", "header:Content-Language:asText"}
    assert part["header:Content-Language:asText"] == "de, en"
    assert [one["name"] for one in part["headers"]] == [
        "Content-Type",
        "Content-Transfer-Encoding",
        "Content-Language",
    ]


@with_jmap()
async def test_body_values(jmap):
    email = await jmap.add(MIXED)
    found = await jmap.get(
        email, "bodyValues", "textBody", "htmlBody", fetchTextBodyValues=True
    )
    text = found["textBody"][0]["partId"]
    assert found["bodyValues"] == {
        text: {
            "value": "Grüße aus Köln",
            "isEncodingProblem": False,
            "isTruncated": False,
        }
    }
    found = await jmap.get(
        email, "bodyValues", "htmlBody", fetchHTMLBodyValues=True, maxBodyValueBytes=20
    )
    html = found["htmlBody"][0]["partId"]
    value = found["bodyValues"][html]
    assert value["value"] == "<b>Grüße</b> "
    assert value["isTruncated"] is True
    found = await jmap.get(email, "bodyValues", fetchAllBodyValues=True)
    assert set(found["bodyValues"]) == {text, html}


@with_jmap()
async def test_a_message_that_cannot_be_read_hides_no_other(jmap):
    """It is shown with what its row has; its body is truncated, not just empty."""
    good, bad = await jmap.add(MIXED), await jmap.add(MIXED + "more")
    row = await jmap.get(bad, "size")
    how = {"damaged": True}
    read_blob = jmap.services.messages.read_blob

    async def read(ref, start=0, end=None):
        if ref.size == row["size"]:
            raise MailError(Kind.UNAVAILABLE, "lost", **how)
        return await read_blob(ref, start, end)

    jmap.services.messages.read_blob = read
    wanted = {
        "properties": ["subject", "bodyValues", "textBody"],
        "fetchTextBodyValues": True,
    }
    both = {"ids": [good, bad], **wanted}
    shown = {e["id"]: e for e in (await jmap.call("Email/get", **both))["list"]}
    assert shown[good]["subject"] == shown[bad]["subject"]
    (text,) = shown[good]["bodyValues"].values()
    assert text["value"] == "Grüße aus Köln"
    assert list(shown[bad]["bodyValues"].values()) == [
        {"value": "", "isEncodingProblem": True, "isTruncated": True}
    ]
    assert shown[bad]["textBody"][0]["size"] > 0
    for args in (
        {"ids": [bad], **wanted},  # as when nothing can be read
        {"ids": [good, bad], "properties": ["header:X-Any"]},
        {"ids": [good, bad], **wanted, "bodyProperties": ["header:X-Any"]},
    ):
        answer = await jmap.fails("Email/get", **args)
        assert answer["type"] == "serverUnavailable", args
    how.clear()  # the store is away for a while: nothing may be kept as the message
    answer = await jmap.fails("Email/get", **both)
    assert answer["type"] == "serverUnavailable"


@with_jmap()
async def test_truncation_keeps_characters_whole(jmap):
    email = await jmap.add(
        message(body="ä" * 100, Content_Type="text/plain; charset=utf-8")
    )
    for limit in range(1, 12):
        found = await jmap.get(
            email, "bodyValues", fetchAllBodyValues=True, maxBodyValueBytes=limit
        )
        [value] = found["bodyValues"].values()
        assert value["value"] == "ä" * (limit // 2)
        assert value["isTruncated"] is True


@with_jmap()
async def test_encoding_problems_are_told(jmap):
    for fields, body, value in (
        ({"Content_Type": "text/plain; charset=utf-8"}, "a\udcffb", "a\ufffdb"),
        ({"Content_Type": "text/plain; charset=x-none"}, "abc", "abc"),
        ({"Content_Transfer_Encoding": "x-own"}, "abc", "abc"),
    ):
        raw = message(body=body, **fields).encode("utf-8", "surrogateescape")
        email = await jmap.add(raw.replace(b"\n", b"\r\n"))
        found = await jmap.get(email, "bodyValues", fetchAllBodyValues=True)
        [got] = found["bodyValues"].values()
        assert got == {
            "value": value,
            "isEncodingProblem": True,
            "isTruncated": False,
        }


@with_jmap()
async def test_the_tree_of_the_rfc(jmap):
    """The example of section 4.1.4: which part is shown where."""

    def part(name, kind, more=""):
        return f"Content-Type: {kind}; x={name}{more}\n\n{name}\n"

    def multi(kind, boundary, *parts):
        inside = "".join(f"--{boundary}\n{one}" for one in parts)
        head = f"Content-Type: multipart/{kind}; boundary={boundary}\n\n"
        return f"{head}{inside}--{boundary}--\n"

    inline = "\nContent-Disposition: inline"
    attached = "\nContent-Disposition: attachment"
    body = multi(
        "mixed",
        "b1",
        part("A", "text/plain", inline),
        multi(
            "mixed",
            "b2",
            multi(
                "alternative",
                "b3",
                multi(
                    "mixed",
                    "b4",
                    part("B", "text/plain", inline),
                    part("C", "image/jpeg", inline),
                    part("D", "text/plain", inline),
                ),
                multi("related", "b5", part("E", "text/html"), part("F", "image/jpeg")),
            ),
            part("G", "image/jpeg", attached),
            part("H", "application/x-excel"),
            "Content-Type: message/rfc822; x=J\n\nSubject: J\n\nJ\n",
        ),
        part("K", "text/plain", inline),
    )
    email = await jmap.add(f"Subject: tree\nMIME-Version: 1.0\n{body}")
    found = await jmap.get(
        email,
        "textBody",
        "htmlBody",
        "attachments",
        bodyProperties=["header:Content-Type"],
    )

    def letters(name):
        return [one["header:Content-Type"][-1] for one in found[name]]

    assert letters("textBody") == list("ABCDK")
    assert letters("htmlBody") == list("AEK")
    assert letters("attachments") == list("CFGHJ")


@with_jmap()
async def test_large_attachments_are_sized_without_decoding(jmap):
    for size in (200_000, 200_001, 200_002):
        encoded = base64.encodebytes(b"x" * size).decode()
        raw = message(
            Content_Type="application/x-own",
            Content_Transfer_Encoding="base64",
            body=encoded,
        )
        for text in (raw, raw.rstrip("\n")):
            email = await jmap.add(text)
            found = await jmap.get(email, "attachments")
            assert found["attachments"][0]["size"] == size


@with_jmap(settings=Settings(limits=Limits(max_response=20_000)))
async def test_a_response_has_a_limit(jmap):
    emails = [await jmap.add(message(body="x" * 1000)) for _ in range(10)]
    args = {"properties": ["bodyValues"], "fetchAllBodyValues": True}
    error = await jmap.fails("Email/get", ids=emails, **args)
    assert error["type"] == "requestTooLarge"
    found = await jmap.call("Email/get", ids=emails[:4], **args)
    assert len(found["list"]) == 4
    found = await jmap.call("Email/get", ids=emails)
    assert len(found["list"]) == 10
