"""Email/set (RFC 8621 section 4.6)."""

from __future__ import annotations

import base64

from tests.lib.jmap import message, with_jmap


async def raw_of(jmap, blob_id):
    answer = await jmap.http("GET", f"/jmap/download/{jmap.account}/{blob_id}/m")
    return b"".join([chunk async for chunk in answer.stream]).decode()


@with_jmap()
async def test_the_draft_of_the_rfc(jmap):
    created = await jmap.draft(
        keywords={"$seen": True, "$draft": True},
        **{"from": [{"name": "Joe Bloggs", "email": "joe@example.com"}]},
        to=[{"name": "John", "email": "john@example.com"}],
        subject="World domination",
        receivedAt="2018-07-10T01:05:08Z",
        sentAt="2018-07-10T11:05:08+10:00",
        bodyStructure={
            "type": "multipart/alternative",
            "subParts": [
                {
                    "partId": "a49d",
                    "type": "text/html",
                    "header:Content-Language": "en",
                },
                {
                    "partId": "bd48",
                    "type": "text/plain",
                    "header:Content-Language": "en",
                },
            ],
        },
        bodyValues={
            "bd48": {
                "value": "I have the most brilliant plan.\nÄ",
                "isTruncated": False,
            },
            "a49d": {"value": "<b>brilliant</b>"},
        },
    )
    assert set(created) == {"id", "blobId", "threadId", "size"}
    found = await jmap.get(created["id"])
    assert found["keywords"] == {"$seen": True, "$draft": True}
    assert found["receivedAt"] == "2018-07-10T01:05:08Z"
    assert found["sentAt"] == "2018-07-10T11:05:08+10:00"
    assert found["subject"] == "World domination"
    assert found["to"] == [{"name": "John", "email": "john@example.com"}]
    assert found["messageId"][0].endswith("@mx.example.org")
    assert found["size"] == created["size"]
    assert found["textBody"][0]["language"] == ["en"]
    values = await jmap.get(created["id"], "bodyValues", fetchAllBodyValues=True)
    assert sorted(v["value"] for v in values["bodyValues"].values()) == [
        "<b>brilliant</b>",
        "I have the most brilliant plan.\nÄ",
    ]
    raw = await raw_of(jmap, created["blobId"])
    assert raw.startswith("From: Joe Bloggs <joe@example.com>\r\n")
    assert len(raw.encode()) == created["size"]


@with_jmap()
async def test_the_smallest_draft(jmap):
    created = await jmap.draft()
    found = await jmap.get(created["id"])
    assert found["subject"] is None
    assert found["messageId"]
    assert found["sentAt"]
    assert found["keywords"] == {}


@with_jmap()
async def test_attachments_come_out_as_they_went_in(jmap):
    contents = {
        "text/plain": b"line\nbare\rend\r\n\x00",
        "image/png": bytes(range(256)),
        "application/x-own": b"",
    }
    blobs = {kind: await jmap.upload(data, kind) for kind, data in contents.items()}
    created = await jmap.draft(
        textBody=[{"partId": "t"}],
        htmlBody=[{"partId": "h"}],
        bodyValues={"t": {"value": "see"}, "h": {"value": "<img src=cid:p>"}},
        attachments=[
            {"blobId": blobs["text/plain"], "type": "text/plain", "name": "Ä.txt"},
            {
                "blobId": blobs["image/png"],
                "type": "image/png",
                "cid": "p",
                "disposition": "inline",
                "size": 5,
            },
            {"blobId": blobs["application/x-own"], "type": "application/x-own"},
        ],
    )
    found = await jmap.get(created["id"], "attachments", "bodyStructure")
    assert found["bodyStructure"]["type"] == "multipart/mixed"
    assert {one["type"] for one in found["attachments"]} == set(contents)
    for one in found["attachments"]:
        raw = await jmap.http("GET", f"/jmap/download/{jmap.account}/{one['blobId']}/x")
        data = b"".join([chunk async for chunk in raw.stream])
        assert data == contents[one["type"]], one["type"]
        assert one["size"] == len(data)
    named = next(one for one in found["attachments"] if one["name"])
    assert named["name"] == "Ä.txt"


@with_jmap()
async def test_an_email_as_attachment(jmap):
    email = await jmap.add(message("Original"))
    blob = (await jmap.get(email, "blobId"))["blobId"]
    created = await jmap.draft(attachments=[{"blobId": blob, "type": "message/rfc822"}])
    found = await jmap.get(created["id"], "attachments")
    part = found["attachments"][0]["blobId"]
    parsed = await jmap.call("Email/parse", blobIds=[part], properties=["subject"])
    assert parsed["parsed"][part] == {"subject": "Original"}


@with_jmap()
async def test_header_properties(jmap):
    created = await jmap.draft(
        **{
            "header:X-Text:asText": ("Grüße " * 20).strip(),
            "header:X-Raw": " as it\r\n stands",
            "header:X-Ids:asMessageIds": ["a@b", "c@d"],
            "header:X-Date:asDate": "2020-01-02T03:04:05-06:00",
            "header:X-Urls:asURLs": ["https://example.org/a"],
            "header:X-Each:asText:all": ["1", "2"],
            "header:Cc:asGroupedAddresses": [
                {"name": "Team", "addresses": [{"name": None, "email": "a@b.example"}]}
            ],
            "inReplyTo": ["x@y"],
            "bcc": None,
            "replyTo": [],
        }
    )
    found = await jmap.get(
        created["id"],
        "header:X-Text:asText",
        "header:X-Raw",
        "header:X-Ids:asMessageIds",
        "header:X-Date:asDate",
        "header:X-Urls:asURLs",
        "header:X-Each:asText:all",
        "header:Cc:asGroupedAddresses",
        "inReplyTo",
        "bcc",
        "replyTo",
    )
    assert found["header:X-Text:asText"] == ("Grüße " * 20).strip()
    assert found["header:X-Raw"] == " as it\r\n stands"
    assert found["header:X-Ids:asMessageIds"] == ["a@b", "c@d"]
    assert found["header:X-Date:asDate"] == "2020-01-02T03:04:05-06:00"
    assert found["header:X-Urls:asURLs"] == ["https://example.org/a"]
    assert found["header:X-Each:asText:all"] == ["1", "2"]
    assert found["header:Cc:asGroupedAddresses"][0]["name"] == "Team"
    assert found["inReplyTo"] == ["x@y"]
    assert found["bcc"] is found["replyTo"] is None


BAD_DRAFTS = [
    ({"headers": []}, ["headers"]),
    ({"from": [], "header:From:asAddresses": []}, ["header:From:asAddresses"]),
    ({"header:Subject": "a", "header:SUBJECT:asText": "b"}, ["header:SUBJECT:asText"]),
    ({"header:From:asDate": "x"}, ["header:From:asDate"]),
    ({"header:Content-Type": "text/plain"}, ["header:Content-Type"]),
    ({"bodyStructure": {"type": "text/plain"}}, ["bodyStructure"]),
    ({"bodyStructure": {"partId": "x"}}, ["bodyStructure"]),
    (
        {
            "subject": "a",
            "bodyStructure": {"partId": "1", "header:Subject": "b"},
            "bodyValues": {"1": {"value": ""}},
        },
        ["bodyStructure"],
    ),
    (
        {
            "bodyStructure": {"partId": "1"},
            "textBody": [],
            "bodyValues": {"1": {"value": ""}},
        },
        ["textBody"],
    ),
    ({"textBody": []}, ["textBody"]),
    (
        {
            "textBody": [{"partId": "1"}, {"partId": "1"}],
            "bodyValues": {"1": {"value": ""}},
        },
        ["textBody"],
    ),
    (
        {
            "textBody": [{"partId": "1", "type": "text/html"}],
            "bodyValues": {"1": {"value": ""}},
        },
        ["textBody"],
    ),
    (
        {
            "htmlBody": [{"partId": "1", "type": "text/plain"}],
            "bodyValues": {"1": {"value": ""}},
        },
        ["htmlBody"],
    ),
    (
        {
            "textBody": [{"partId": "1", "charset": "utf-8"}],
            "bodyValues": {"1": {"value": ""}},
        },
        ["textBody"],
    ),
    (
        {"textBody": [{"partId": "1", "size": 1}], "bodyValues": {"1": {"value": ""}}},
        ["textBody"],
    ),
    (
        {
            "textBody": [{"partId": "1", "blobId": "b" + "0" * 64}],
            "bodyValues": {"1": {"value": ""}},
        },
        ["textBody"],
    ),
    (
        {
            "textBody": [{"partId": "1", "header:Content-Transfer-Encoding": "8bit"}],
            "bodyValues": {"1": {"value": ""}},
        },
        ["textBody"],
    ),
    (
        {
            "textBody": [{"partId": "1", "headers": []}],
            "bodyValues": {"1": {"value": ""}},
        },
        ["textBody"],
    ),
    ({"bodyValues": {"1": {"value": "", "isTruncated": True}}}, ["bodyValues"]),
    ({"bodyValues": {"1": {"value": "", "isEncodingProblem": True}}}, ["bodyValues"]),
    ({"bodyValues": {"1": {}}}, ["bodyValues"]),
    ({"mailboxIds": {}}, ["mailboxIds"]),
    ({"mailboxIds": {"m999": True}}, ["mailboxIds"]),
    ({"mailboxIds": {"m1": False}}, ["mailboxIds"]),
    ({"keywords": {"a b": True}}, ["keywords"]),
    ({"keywords": {"$seen": False}}, ["keywords"]),
    ({"receivedAt": "yesterday"}, ["receivedAt"]),
    ({"sentAt": "2020-01-01"}, ["sentAt"]),
    ({"subject": 1}, ["subject"]),
    ({"from": [{"name": "x"}]}, ["from"]),
    ({"from": [{"email": "a b@c"}]}, ["from"]),
    ({"messageId": ["a b"]}, ["messageId"]),
    ({"header:X": "a\r\nInjected: yes"}, ["header:X"]),
    (
        {"id": "e1", "size": 1, "preview": "", "hasAttachment": True, "threadId": "t1"},
        ["id", "size", "preview", "hasAttachment", "threadId"],
    ),
    (
        {"subject": 5, "keywords": [], "receivedAt": 7, "nonsense": 1},
        ["subject", "keywords", "receivedAt", "nonsense"],
    ),
]


@with_jmap()
async def test_bad_drafts(jmap):
    for given, names in BAD_DRAFTS:
        error = await jmap.refused(**given)
        assert error["type"] == "invalidProperties", given
        assert set(error["properties"]) == set(names), given
    inbox = await jmap.call("Email/query")
    assert inbox["ids"] == []


@with_jmap()
async def test_missing_blobs_are_all_named(jmap):
    none = ["b" + "0" * 64, "b" + "1" * 64, "nonsense"]
    error = await jmap.refused(attachments=[{"blobId": one} for one in none])
    assert error["type"] == "blobNotFound"
    assert sorted(error["notFound"]) == sorted(none)


@with_jmap()
async def test_limits_of_drafts(jmap):
    words = {f"k{n}": True for n in range(101)}
    assert (await jmap.refused(keywords=words))["type"] == "tooManyKeywords"
    deep = {"partId": "1"}
    for _ in range(30):
        deep = {"type": "multipart/mixed", "subParts": [deep]}
    error = await jmap.refused(bodyStructure=deep, bodyValues={"1": {"value": ""}})
    assert error["properties"] == ["bodyStructure"]


# --- update -----------------------------------------------------------------------


@with_jmap()
async def test_keywords_and_mailboxes(jmap):
    email = await jmap.add(message())
    inbox, trash = jmap.roles["inbox"], jmap.roles["trash"]
    before = await jmap.call("Email/get", ids=[])
    result = await jmap.call(
        "Email/set",
        update={
            email: {
                "keywords/$Flagged": True,
                "keywords/Own": True,
                "keywords/$seen": None,
                f"mailboxIds/{trash}": True,
                f"mailboxIds/{inbox}": None,
            }
        },
    )
    assert result["updated"] == {email: None}
    assert result["oldState"] == before["state"] != result["newState"]
    assert result["created"] is result["notUpdated"] is result["destroyed"] is None
    found = await jmap.get(email, "keywords", "mailboxIds")
    assert found["keywords"] == {"$flagged": True, "own": True}
    assert found["mailboxIds"] == {trash: True}
    whole = {"keywords": {"$seen": True}, "mailboxIds": {inbox: True, trash: True}}
    await jmap.call("Email/set", update={email: whole})
    found = await jmap.get(email, "keywords", "mailboxIds")
    assert found == {"id": email, **whole}
    await jmap.call("Email/set", update={email: {"keywords": None}})
    assert (await jmap.get(email, "keywords"))["keywords"] == {}


@with_jmap()
async def test_bad_updates(jmap):
    email = await jmap.add(message())
    inbox = jmap.roles["inbox"]
    for given, kind, names in (
        ({"keywords/$seen": False}, "invalidProperties", ["keywords/$seen"]),
        ({"keywords/a b": True}, "invalidProperties", ["keywords/a b"]),
        ({"keywords": {"x": 1}}, "invalidProperties", ["keywords"]),
        ({"keywords": {}, "keywords/x": True}, "invalidPatch", None),
        ({"keywords/x/y": True}, "invalidPatch", None),
        ({"from/0/name": "x"}, "invalidPatch", None),
        ({"mailboxIds": {}}, "invalidProperties", ["mailboxIds"]),
        ({"mailboxIds": None}, "invalidProperties", ["mailboxIds"]),
        ({f"mailboxIds/{inbox}": None}, "invalidProperties", ["mailboxIds"]),
        ({"mailboxIds/m999": True}, "invalidProperties", ["mailboxIds/m999"]),
        ({"mailboxIds": {"m999": True}}, "invalidProperties", ["mailboxIds"]),
        ({"subject": "New"}, "invalidProperties", ["subject"]),
        ({"nonsense": 1}, "invalidProperties", ["nonsense"]),
        (
            {"keywords/a b": True, "mailboxIds/!": True},
            "invalidProperties",
            ["keywords/a b", "mailboxIds/!"],
        ),
    ):
        result = await jmap.call("Email/set", update={email: given})
        error = result["notUpdated"][email]
        assert (error["type"], error.get("properties")) == (kind, names), given
        assert result["oldState"] == result["newState"]
    result = await jmap.call("Email/set", update={"e99": {}, "x": {}})
    assert {e["type"] for e in result["notUpdated"].values()} == {"notFound"}


@with_jmap()
async def test_whole_emails_may_be_sent_back(jmap):
    email = await jmap.add(message("Stay"))
    found = await jmap.get(email)
    del found["bodyValues"]
    changed = found | {"keywords": {"$seen": True}}
    result = await jmap.call("Email/set", update={email: changed})
    assert result["updated"] == {email: None}
    assert (await jmap.get(email, "keywords"))["keywords"] == {"$seen": True}
    wrong = changed | {"subject": "Go", "size": 1}
    result = await jmap.call("Email/set", update={email: wrong})
    assert sorted(result["notUpdated"][email]["properties"]) == ["size", "subject"]


@with_jmap()
async def test_a_thousand_at_once(jmap):
    emails = [await jmap.add(message(f"Number {n}")) for n in range(120)]
    update = {one: {"keywords/$seen": True} for one in emails}
    result = await jmap.call("Email/set", update=update)
    assert set(result["updated"]) == set(emails)
    inbox = (await jmap.call("Mailbox/get", ids=[jmap.roles["inbox"]]))["list"][0]
    assert inbox["unreadEmails"] == 0
    result = await jmap.call("Email/set", destroy=emails)
    assert sorted(result["destroyed"]) == sorted(emails)


@with_jmap()
async def test_destroy(jmap):
    email = await jmap.add(message())
    thread = (await jmap.get(email, "threadId"))["threadId"]
    state = await jmap.call("Thread/get", ids=[thread])
    result = await jmap.call("Email/set", destroy=[email, "e99", "zz"])
    assert result["destroyed"] == [email]
    assert set(result["notDestroyed"]) == {"e99", "zz"}
    assert (await jmap.call("Email/get", ids=[email]))["notFound"] == [email]
    changes = await jmap.call("Thread/changes", sinceState=state["state"])
    assert changes["destroyed"] == [thread]
    changes = await jmap.call("Email/changes", sinceState=result["oldState"])
    assert changes["destroyed"] == [email]
    assert changes["newState"] == result["newState"]


@with_jmap()
async def test_create_update_and_destroy_in_one_call(jmap):
    old = await jmap.add(message())
    given = {"mailboxIds": {jmap.roles["drafts"]: True}}
    result = await jmap.call(
        "Email/set",
        create={"k": given},
        update={"#k": {"keywords/$draft": True}, old: {"keywords/$seen": True}},
        destroy=[old],
    )
    new = result["created"]["k"]["id"]
    assert result["updated"] == {new: None}
    assert result["notUpdated"][old]["type"] == "willDestroy"
    assert result["destroyed"] == [old]
    assert result["oldState"] is not None


@with_jmap()
async def test_if_in_state(jmap):
    email = await jmap.add(message())
    state = (await jmap.call("Email/get", ids=[]))["state"]
    update = {email: {"keywords/$seen": True}}
    first = await jmap.call("Email/set", ifInState=state, update=update)
    assert first["updated"]
    error = await jmap.fails("Email/set", ifInState=state, update=update)
    assert error == {"type": "stateMismatch"}
    error = await jmap.fails("Email/set", ifInState=state, destroy=[email])
    assert error == {"type": "stateMismatch"}


@with_jmap()
async def test_old_state_does_not_hide_what_others_did(jmap):
    email = await jmap.add(message())
    state = (await jmap.call("Email/get", ids=[]))["state"]
    update = jmap.services.messages.update

    async def interrupted(access, patches, **how):
        await jmap.add(message("Meanwhile"))
        return await update(access, patches, **how)

    jmap.services.messages.update = interrupted
    result = await jmap.call("Email/set", update={email: {"keywords/$seen": True}})
    assert result["oldState"] is None
    changes = await jmap.call("Email/changes", sinceState=state)
    assert len(changes["created"]) == 1
    assert changes["updated"] == [email]


@with_jmap()
async def test_quota(jmap):
    await jmap.host.mailboxes.set_quota(jmap.access.account, 2000)
    big = base64.b64encode(b"x" * 3000).decode()
    error = await jmap.refused(
        textBody=[{"partId": "1"}], bodyValues={"1": {"value": big}}
    )
    assert error["type"] == "overQuota"
