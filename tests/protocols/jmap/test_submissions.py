"""Identity and EmailSubmission methods (RFC 8621 sections 6 and 7)."""

from __future__ import annotations

from tests.lib.jmap import ALICE, message, with_jmap

BOB = "bob@example.org"


async def own_identity(jmap):
    return (await jmap.call("Identity/get"))["list"][0]["id"]


async def a_draft(jmap, to=BOB, **more):
    given = {
        "from": [{"name": "Alice", "email": ALICE}],
        "to": [{"name": None, "email": to}],
        "subject": "Sent by JMAP",
        "keywords": {"$draft": True},
        "textBody": [{"partId": "1"}],
        "bodyValues": {"1": {"value": "Hello Bob"}},
    }
    return (await jmap.draft(**(given | more)))["id"]


async def send(jmap, email, **more):
    given = {"identityId": await own_identity(jmap), "emailId": email} | more
    return await jmap.call("EmailSubmission/set", create={"s": given})


# --- identities -------------------------------------------------------------------


@with_jmap()
async def test_identities(jmap):
    got = await jmap.call("Identity/get")
    [first] = got["list"]
    assert first["email"] == ALICE
    assert first["mayDelete"] is False
    create = {
        "a": {"email": ALICE, "name": "A", "bcc": [{"email": BOB}]},
        "b": {"email": BOB},
        "c": {},
        "d": {"email": ALICE, "mayDelete": True, "name": 5, "x": 1},
        "e": {"email": ALICE, "textSignature": "a\0b"},
    }
    made = await jmap.call("Identity/set", create=create)
    new = made["created"]["a"]["id"]
    assert made["created"]["a"]["textSignature"] == ""
    assert made["oldState"] == got["state"] != made["newState"]
    refused = made["notCreated"]
    assert refused["b"]["type"] == "forbiddenFrom"
    assert refused["c"]["properties"] == ["email"]
    assert sorted(refused["d"]["properties"]) == ["mayDelete", "name", "x"]
    assert refused["e"]["properties"] == ["textSignature"]
    changes = await jmap.call("Identity/changes", sinceState=got["state"])
    assert changes["created"] == [new]
    update = {
        new: {"name": "Al", "replyTo": [{"name": "R", "email": "r@x.example"}]},
        first["id"]: {"email": "other@example.org"},
    }
    result = await jmap.call(
        "Identity/set", update=update, destroy=[first["id"], "i99"]
    )
    assert result["updated"] == {new: None}
    assert result["notUpdated"][first["id"]]["type"] == "willDestroy"
    assert result["notDestroyed"][first["id"]]["type"] == "forbidden"
    assert result["notDestroyed"]["i99"]["type"] == "notFound"
    result = await jmap.call(
        "Identity/set", update={first["id"]: {"email": "other@example.org"}}
    )
    assert result["notUpdated"][first["id"]]["properties"] == ["email"]
    found = await jmap.call("Identity/get", ids=[new], properties=["name", "bcc"])
    assert found["list"] == [
        {"id": new, "name": "Al", "bcc": [{"name": None, "email": BOB}]}
    ]
    assert (await jmap.call("Identity/set", destroy=[new]))["destroyed"] == [new]


# --- sending ------------------------------------------------------------------------


@with_jmap()
async def test_send_and_call_back(jmap):
    email = await a_draft(jmap, bcc=[{"email": ALICE}])
    drafts, sent = jmap.roles["drafts"], jmap.roles["sent"]
    responses = await jmap.calls(
        [
            "EmailSubmission/set",
            {
                "create": {
                    "s": {"identityId": await own_identity(jmap), "emailId": email}
                },
                "onSuccessUpdateEmail": {
                    "#s": {
                        f"mailboxIds/{drafts}": None,
                        f"mailboxIds/{sent}": True,
                        "keywords/$draft": None,
                    }
                },
            },
            "0",
        ]
    )
    assert [(name, call) for name, _, call in responses] == [
        ("EmailSubmission/set", "0"),
        ("Email/set", "0"),
    ]
    created = responses[0][1]["created"]["s"]
    assert created["undoStatus"] == "final"
    assert created["envelope"]["mailFrom"]["email"] == ALICE
    assert [r["email"] for r in created["envelope"]["rcptTo"]] == [BOB, ALICE]
    assert created["deliveryStatus"][BOB]["delivered"] == "yes"
    assert responses[1][1]["updated"] == {email: None}
    found = await jmap.get(email, "keywords", "mailboxIds")
    assert found["keywords"] == {}
    assert found["mailboxIds"] == {sent: True}
    [received] = await jmap.host.mail(BOB)
    assert b"Subject: Sent by JMAP" in received
    assert b"Bcc:" not in received
    assert b"DKIM-Signature:" in received


@with_jmap()
async def test_nothing_is_called_back_when_sending_fails(jmap):
    email = await a_draft(jmap)
    responses = await jmap.calls(
        [
            "EmailSubmission/set",
            {
                "create": {"s": {"identityId": "i99", "emailId": email}},
                "onSuccessDestroyEmail": ["#s"],
            },
            "0",
        ]
    )
    assert len(responses) == 1
    assert responses[0][1]["notCreated"]["s"]["properties"] == ["identityId"]
    assert (await jmap.get(email, "id"))["id"] == email


@with_jmap()
async def test_destroy_the_draft_on_success(jmap):
    email = await a_draft(jmap)
    given = {"identityId": await own_identity(jmap), "emailId": email}
    responses = await jmap.calls(
        [
            "EmailSubmission/set",
            {"create": {"s": given}, "onSuccessDestroyEmail": ["#s"]},
            "0",
        ]
    )
    assert responses[1][1]["destroyed"] == [email]
    assert len(await jmap.host.mail(BOB)) == 1


@with_jmap()
async def test_a_draft_and_its_sending_in_one_request(jmap):
    draft = {
        "mailboxIds": {jmap.roles["drafts"]: True},
        "from": [{"email": ALICE}],
        "to": [{"email": BOB}],
    }
    responses = await jmap.calls(
        ["Email/set", {"create": {"d": draft}}, "1"],
        [
            "EmailSubmission/set",
            {
                "create": {
                    "s": {"identityId": await own_identity(jmap), "emailId": "#d"}
                }
            },
            "2",
        ],
    )
    assert responses[1][1]["created"]["s"]["id"] == "s1"
    assert len(await jmap.host.mail(BOB)) == 1


@with_jmap()
async def test_submissions_that_are_refused(jmap):
    mine = {"mailFrom": {"email": ALICE}, "rcptTo": [{"email": BOB}]}
    email = await a_draft(jmap)
    stranger = await a_draft(jmap, **{"from": [{"email": "ceo@bank.example"}]})
    nobody = await a_draft(jmap, to="nobody@example.org")
    several = await a_draft(jmap, **{"from": [{"email": ALICE}, {"email": BOB}]})
    lonely = (await jmap.draft(**{"from": [{"email": ALICE}]}))["id"]

    def to(*addresses):
        return mine | {"rcptTo": [{"email": one} for one in addresses]}

    def with_parameters(**parameters):
        return mine | {"mailFrom": {"email": ALICE, "parameters": parameters}}

    for given, kind, more in (
        ({"emailId": "e99"}, "invalidProperties", {"properties": ["emailId"]}),
        ({"emailId": stranger}, "forbiddenFrom", {}),
        ({"emailId": nobody}, "invalidRecipients", {}),
        ({"emailId": several}, "invalidEmail", {"properties": ["from"]}),
        ({"emailId": lonely}, "noRecipients", {}),
        (
            {"envelope": mine | {"mailFrom": {"email": BOB}}},
            "forbiddenMailFrom",
            {},
        ),
        (
            {"envelope": to("a b", BOB, "x@", "nobody@example.org")},
            "invalidRecipients",
            {"invalidRecipients": ["a b", "x@"]},
        ),
        (
            {"envelope": to("nobody@example.org")},
            "invalidRecipients",
            {"invalidRecipients": ["nobody@example.org"]},
        ),
        ({"envelope": to()}, "noRecipients", {}),
        (
            {"envelope": to(*(f"a{n}@x.example" for n in range(1001)))},
            "tooManyRecipients",
            {"maxRecipients": 1000},
        ),
        ({"envelope": 5}, "invalidProperties", {"properties": ["envelope"]}),
        ({"envelope": with_parameters(X="y")}, "invalidProperties", {}),
        ({"envelope": with_parameters(RET="ALL")}, "invalidProperties", {}),
        ({"envelope": with_parameters(HOLDFOR="99999999")}, "invalidProperties", {}),
        ({"sendAt": "2020-01-01T00:00:00Z"}, "invalidProperties", {}),
        ({"undoStatus": "final"}, "invalidProperties", {}),
    ):
        result = await send(jmap, **({"email": email} | rename(given)))
        error = result["notCreated"]["s"]
        assert error["type"] == kind, (given, error)
        for name, value in more.items():
            assert error[name] == value
    assert await jmap.host.mail(BOB) == []
    assert (await jmap.call("EmailSubmission/get"))["list"] == []


def rename(given):
    return {"email" if k == "emailId" else k: v for k, v in given.items()}


@with_jmap()
async def test_the_identity_stands_in_for_a_foreign_sender(jmap):
    """The envelope is made from the identity, but the header stays refused."""
    email = await a_draft(jmap, sender=[{"email": "x@other.example"}])
    result = await send(jmap, email)
    assert result["notCreated"]["s"]["type"] == "forbiddenFrom"


@with_jmap()
async def test_remote_mail_can_be_undone(jmap):
    email = await a_draft(jmap, to="far@remote.example")
    hold = {"email": ALICE, "parameters": {"HOLDFOR": "3600"}}
    envelope = {"mailFrom": hold, "rcptTo": [{"email": "far@remote.example"}]}
    result = await send(jmap, email, envelope=envelope)
    made = result["created"]["s"]
    assert made["undoStatus"] == "pending"
    assert made["deliveryStatus"]["far@remote.example"]["delivered"] == "queued"
    number = made["id"]
    state = (await jmap.call("EmailSubmission/get", ids=[]))["state"]
    result = await jmap.call(
        "EmailSubmission/set",
        update={number: {"undoStatus": "final"}, "s99": {"undoStatus": "canceled"}},
    )
    assert result["notUpdated"][number]["properties"] == ["undoStatus"]
    assert result["notUpdated"]["s99"]["type"] == "notFound"
    result = await jmap.call(
        "EmailSubmission/set", update={number: {"undoStatus": "canceled"}}
    )
    assert result["updated"] == {number: None}
    [found] = (await jmap.call("EmailSubmission/get", ids=[number]))["list"]
    assert found["undoStatus"] == "canceled"
    changes = await jmap.call("EmailSubmission/changes", sinceState=state)
    assert changes["updated"] == [number]
    await jmap.call("EmailSubmission/set", destroy=[number])
    assert (await jmap.call("EmailSubmission/get"))["list"] == []


@with_jmap()
async def test_delivered_mail_cannot_be_undone(jmap):
    result = await send(jmap, await a_draft(jmap))
    number = result["created"]["s"]["id"]
    result = await jmap.call(
        "EmailSubmission/set", update={number: {"undoStatus": "canceled"}}
    )
    assert result["notUpdated"][number]["type"] == "cannotUnsend"


@with_jmap()
async def test_query_submissions(jmap):
    emails = [await a_draft(jmap, subject=f"Number {n}") for n in range(3)]
    known = await jmap.call("EmailSubmission/query", sort=[{"property": "emailId"}])
    numbers = [(await send(jmap, one))["created"]["s"]["id"] for one in emails]
    got = await jmap.call(
        "EmailSubmission/query",
        sort=[{"property": "emailId", "isAscending": False}],
        calculateTotal=True,
    )
    assert got["ids"] == numbers[::-1]
    assert got["total"] == 3
    for given, found in (
        ({"emailIds": emails[:2]}, numbers[:2]),
        ({"identityIds": ["i99"]}, []),
        ({"undoStatus": "final"}, numbers),
        ({"before": "2001-01-01T00:00:00Z"}, []),
        ({"after": "2001-01-01T00:00:00Z"}, numbers),
        (None, numbers),
    ):
        got = await jmap.call(
            "EmailSubmission/query", filter=given, sort=[{"property": "emailId"}]
        )
        assert got["ids"] == found, given
    changes = await jmap.call(
        "EmailSubmission/queryChanges",
        sort=[{"property": "emailId"}],
        sinceQueryState=known["queryState"],
    )
    assert [one["id"] for one in changes["added"]] == numbers
    error = await jmap.fails("EmailSubmission/query", sort=[{"property": "x"}])
    assert error["type"] == "unsupportedSort"


@with_jmap()
async def test_an_email_that_is_no_draft_may_be_sent(jmap):
    email = await jmap.add(message("Redirected", From=ALICE))
    envelope = {"mailFrom": {"email": ALICE}, "rcptTo": [{"email": BOB}]}
    result = await send(jmap, email, envelope=envelope)
    assert result["created"]["s"]["threadId"]


@with_jmap()
async def test_an_answer_joins_its_thread(jmap):
    await jmap.host.send(
        message("Lunch", **{"Message-ID": "<lunch@x>"}).encode(), ALICE
    )
    [found] = (await jmap.call("Email/query", filter={"subject": "lunch"}))["ids"]
    asked = await jmap.get(found, "threadId", "messageId")
    given = {"inReplyTo": asked["messageId"], "references": asked["messageId"]}
    answer = await a_draft(jmap, subject="Re: Lunch", **given)
    sending = {"identityId": await own_identity(jmap), "emailId": answer}
    responses = await jmap.calls(
        ["EmailSubmission/set", {"create": {"s": sending}}, "1"],
        ["Email/set", {"update": {found: {"keywords/$answered": True}}}, "2"],
    )
    assert responses[0][1]["created"]["s"]["undoStatus"] == "final"
    assert (await jmap.get(found, "keywords"))["keywords"] == {"$answered": True}
    assert (await jmap.get(answer, "threadId"))["threadId"] == asked["threadId"]
    [sent] = await jmap.host.mail(BOB)
    assert b"In-Reply-To: <lunch@x>\r\n" in sent
