"""Requests: calls in order, references, creation ids, errors (RFC 8620 section 3)."""

from __future__ import annotations

import pytest

from mailserverd.core.errors import Kind, MailError
from protocols.jmap.methods import METHODS
from protocols.jmap.services import CORE, MAIL, SUBMISSION
from tests.lib.jmap import USING, message, with_jmap


def test_every_method_is_registered_once():
    names = [method.name for method in METHODS]
    assert len(names) == len(set(names))
    assert {m.capability for m in METHODS} == {CORE, MAIL, SUBMISSION}


@with_jmap()
async def test_echo(jmap):
    args = {"hello": True, "high": 5, "deep": {"a": [None]}}
    answer = await jmap.post(
        {"using": USING, "methodCalls": [["Core/echo", args, "b"]]}
    )
    assert answer["methodResponses"] == [["Core/echo", args, "b"]]
    assert "createdIds" not in answer
    assert answer["sessionState"]


@with_jmap()
async def test_an_error_does_not_stop_the_next_call(jmap):
    calls = [["no/such", {}, "1"], ["Core/echo", {}, "2"], ["Mailbox/get", {}, "3"]]
    answer = await jmap.post({"using": USING, "methodCalls": calls})
    assert [r[0] for r in answer["methodResponses"]] == ["error", "Core/echo", "error"]
    assert answer["methodResponses"][0][1] == {"type": "unknownMethod"}
    assert answer["methodResponses"][2][1]["type"] == "invalidArguments"


@with_jmap()
async def test_accounts_of_others_do_not_exist(jmap):
    for account in ("a2", "a999", "x", "a1x"):
        error = await jmap.fails("Mailbox/get", accountId=account)
        assert error == {"type": "accountNotFound"}
    error = await jmap.fails("Mailbox/get", accountId="not an id")
    assert error["type"] == "invalidArguments"


@with_jmap()
async def test_the_example_of_the_rfc(jmap):
    """Query, then threads, then all their emails, in one request."""
    root = await jmap.add(message("One", Message_ID="<1@x>"))
    await jmap.add(message("Re: One", Message_ID="<2@x>", In_Reply_To="<1@x>"))
    query = {"filter": {"inMailbox": jmap.roles["inbox"]}, "collapseThreads": True}

    def of(call, name, path):
        return {"resultOf": call, "name": name, "path": path}

    responses = await jmap.calls(
        ["Email/query", query | {"calculateTotal": True}, "0"],
        [
            "Email/get",
            {"#ids": of("0", "Email/query", "/ids"), "properties": ["threadId"]},
            "1",
        ],
        ["Thread/get", {"#ids": of("1", "Email/get", "/list/*/threadId")}, "2"],
        [
            "Email/get",
            {
                "#ids": of("2", "Thread/get", "/list/*/emailIds"),
                "properties": ["subject"],
            },
            "3",
        ],
    )
    assert responses[0][1]["total"] == 1
    subjects = [email["subject"] for email in responses[3][1]["list"]]
    assert subjects == ["One", "Re: One"]
    assert responses[3][1]["list"][0]["id"] == root


@with_jmap()
async def test_creation_ids_reach_later_calls_and_other_requests(jmap):
    draft = {"mailboxIds": {"#box": True}, "subject": "In a new box"}
    calls = [
        [
            "Mailbox/set",
            {"accountId": jmap.account, "create": {"box": {"name": "New"}}},
            "1",
        ],
        ["Email/set", {"accountId": jmap.account, "create": {"k": draft}}, "2"],
    ]
    answer = await jmap.post({"using": USING, "methodCalls": calls, "createdIds": {}})
    box = answer["methodResponses"][0][1]["created"]["box"]["id"]
    email = answer["methodResponses"][1][1]["created"]["k"]["id"]
    assert answer["createdIds"] == {"box": box, "k": email}
    later = [
        [
            "Email/set",
            {"accountId": jmap.account, "destroy": ["#k"]},
            "1",
        ]
    ]
    given = {"using": USING, "methodCalls": later, "createdIds": {"k": email}}
    answer = await jmap.post(given)
    assert answer["methodResponses"][0][1]["destroyed"] == [email]


@with_jmap()
async def test_what_goes_wrong_inside_is_not_shown(jmap, caplog=None):
    async def broken(*_):
        raise RuntimeError("the secret of the house")

    jmap.services.mailboxes.list = broken
    error = await jmap.fails("Mailbox/get")
    assert error["type"] == "serverFail"
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Kind.UNAVAILABLE, "serverUnavailable"),
        (Kind.INTERNAL, "serverFail"),
        (Kind.FORBIDDEN, "forbidden"),
    ],
)
def test_refusals_of_services(tmp_path, kind, name):
    @with_jmap()
    async def test(jmap):
        async def refuse(*_):
            raise MailError(kind, "because")

        jmap.services.mailboxes.list = refuse
        error = await jmap.fails("Mailbox/get")
        assert error == {"type": name, "description": "because"}

    test(tmp_path)


@with_jmap()
async def test_limits_of_objects(jmap):
    many = [f"e{n}" for n in range(1, 1002)]
    assert (await jmap.fails("Email/get", ids=many))["type"] == "requestTooLarge"
    assert (await jmap.fails("Email/set", destroy=many))["type"] == "requestTooLarge"
    found = await jmap.call("Email/get", ids=many[:1000])
    assert found["notFound"] == many[:1000]


@with_jmap()
async def test_only_one_account_means_nothing_to_copy(jmap):
    for name, more in (("Email/copy", {"create": {}}), ("Blob/copy", {"blobIds": []})):
        for source, kind in (
            ("a2", "fromAccountNotFound"),
            (jmap.account, "invalidArguments"),
        ):
            error = await jmap.fails(name, fromAccountId=source, **more)
            assert error["type"] == kind
