"""Mailbox methods (RFC 8621 section 2)."""

from __future__ import annotations

from tests.lib.jmap import message, with_jmap


@with_jmap()
async def test_get(jmap):
    await jmap.add(message())
    result = await jmap.call("Mailbox/get", ids=None)
    inbox = next(box for box in result["list"] if box["role"] == "inbox")
    assert inbox["totalEmails"] == inbox["unreadThreads"] == 1
    assert inbox["parentId"] is None
    assert inbox["isSubscribed"] is True
    assert inbox["myRights"]["mayDelete"] is False
    drafts = next(box for box in result["list"] if box["role"] == "drafts")
    assert all(drafts["myRights"].values())
    assert result["notFound"] == []


@with_jmap()
async def test_get_some_properties_of_some(jmap):
    inbox = jmap.roles["inbox"]
    result = await jmap.call(
        "Mailbox/get", ids=[inbox, "m999", inbox, "nothing"], properties=["name"]
    )
    assert result["list"] == [{"id": inbox, "name": "INBOX"}]
    assert sorted(result["notFound"]) == ["m999", "nothing"]
    error = await jmap.fails("Mailbox/get", properties=["name", "x", "y"])
    assert error["type"] == "invalidArguments"
    assert "x, y" in error["description"]


@with_jmap()
async def test_changes_of_counts_alone(jmap):
    before = await jmap.call("Mailbox/get", ids=[])
    await jmap.add(message())
    changes = await jmap.call("Mailbox/changes", sinceState=before["state"])
    assert changes["updated"] == [jmap.roles["inbox"]]
    assert set(changes["updatedProperties"]) == {
        "totalEmails",
        "unreadEmails",
        "totalThreads",
        "unreadThreads",
    }
    assert changes["hasMoreChanges"] is False
    update = {jmap.roles["inbox"]: {"sortOrder": 7}}
    result = await jmap.call("Mailbox/set", update=update)
    assert result["newState"] != changes["newState"] == result["oldState"]
    changes = await jmap.call("Mailbox/changes", sinceState=before["state"])
    assert changes["updatedProperties"] is None
    same = await jmap.call("Mailbox/changes", sinceState=changes["newState"])
    assert (same["created"], same["updated"], same["destroyed"]) == ([], [], [])
    assert same["newState"] == changes["newState"]


@with_jmap()
async def test_changes_in_pieces(jmap):
    state = (await jmap.call("Mailbox/get", ids=[]))["state"]
    create = {f"k{n}": {"name": f"Box {n}"} for n in range(5)}
    made = await jmap.call("Mailbox/set", create=create)
    seen = []
    more = True
    while more:
        changes = await jmap.call("Mailbox/changes", sinceState=state, maxChanges=2)
        assert len(changes["created"]) <= 2
        seen += changes["created"]
        state, more = changes["newState"], changes["hasMoreChanges"]
    assert sorted(seen) == sorted(box["id"] for box in made["created"].values())
    assert state == made["newState"]
    for bad in ("", "0-0", "9-1", "x"):
        error = await jmap.fails("Mailbox/changes", sinceState=bad)
        assert error["type"] == "cannotCalculateChanges"
    error = await jmap.fails("Mailbox/changes", sinceState=state, maxChanges=0)
    assert error["type"] == "invalidArguments"


async def tree(jmap):
    """Make A/B/C and A2, return name -> id."""
    create = {
        "c": {"name": "C", "parentId": "#b"},
        "b": {"name": "B", "parentId": "#a", "sortOrder": 1},
        "a": {"name": "A", "sortOrder": 3},
        "a2": {"name": "A2", "sortOrder": 2},
    }
    result = await jmap.call("Mailbox/set", create=create)
    assert result["notCreated"] is None
    return {key: value["id"] for key, value in result["created"].items()}


@with_jmap()
async def test_create(jmap):
    made = await jmap.call("Mailbox/set", create={"k": {"name": "Cafe\u0301"}})
    box = made["created"]["k"]
    assert box["name"] == "Café"
    assert box["sortOrder"] == box["totalEmails"] == 0
    assert box["isSubscribed"] is True
    assert box["role"] is None
    assert made["oldState"] != made["newState"]
    again = await jmap.call("Mailbox/set", create={"k": {"name": "Café"}})
    assert again["notCreated"]["k"]["type"] == "invalidProperties"
    assert again["notCreated"]["k"]["properties"] == ["name"]
    assert again["created"] is None


@with_jmap()
async def test_wrong_properties_are_all_named(jmap):
    bad = {
        "name": 1,
        "role": 5,
        "sortOrder": -1,
        "isSubscribed": None,
        "parentId": "m999x",
        "id": "m1",
        "totalEmails": 1,
        "colour": "red",
    }
    result = await jmap.call("Mailbox/set", create={"k": bad, "empty": {}})
    assert set(result["notCreated"]["k"]["properties"]) == set(bad)
    assert result["notCreated"]["empty"]["properties"] == ["name"]
    for properties, name in (
        ({"name": "x", "parentId": "m999"}, "parentId"),
        ({"name": "x", "role": "nonsense"}, "role"),
        ({"name": "x", "role": "inbox"}, "role"),
        ({"name": "a/b"}, "name"),
        ({"name": "a\u0000"}, "name"),
        ({"name": "x" * 256}, "name"),
    ):
        result = await jmap.call("Mailbox/set", create={"k": properties})
        assert result["notCreated"]["k"]["properties"] == [name], properties


@with_jmap()
async def test_update(jmap):
    ids = await tree(jmap)
    update = {
        ids["c"]: {"name": "See", "parentId": None, "isSubscribed": False},
        ids["a2"]: {"sortOrder": None, "totalEmails": 0, "id": ids["a2"]},
        ids["a"]: {"parentId": ids["b"]},
        ids["b"]: {"totalEmails": 5, "name/x": 1},
        "m999": {"name": "x"},
        jmap.roles["inbox"]: {"name": "Mine"},
    }
    result = await jmap.call("Mailbox/set", update=update)
    assert result["updated"] == {ids["c"]: None, ids["a2"]: {"sortOrder": 0}}
    refused = {key: error["type"] for key, error in result["notUpdated"].items()}
    assert refused == {
        ids["a"]: "invalidProperties",
        ids["b"]: "invalidPatch",
        "m999": "notFound",
        jmap.roles["inbox"]: "forbidden",
    }
    found = await jmap.call("Mailbox/get", ids=[ids["c"]])
    box = found["list"][0]
    assert (box["name"], box["parentId"], box["isSubscribed"]) == ("See", None, False)


@with_jmap()
async def test_whole_objects_may_be_sent_back(jmap):
    ids = await tree(jmap)
    found = (await jmap.call("Mailbox/get", ids=[ids["b"]]))["list"][0]
    result = await jmap.call("Mailbox/set", update={ids["b"]: found | {"name": "New"}})
    assert result["updated"] == {ids["b"]: None}
    result = await jmap.call(
        "Mailbox/set", update={ids["b"]: found | {"totalEmails": 9, "myRights": {}}}
    )
    error = result["notUpdated"][ids["b"]]
    assert set(error["properties"]) == {"totalEmails", "myRights"}


@with_jmap()
async def test_destroy(jmap):
    ids = await tree(jmap)
    result = await jmap.call("Mailbox/set", destroy=[ids["a"], jmap.roles["inbox"]])
    assert result["notDestroyed"][ids["a"]]["type"] == "mailboxHasChild"
    assert result["notDestroyed"][jmap.roles["inbox"]]["type"] == "forbidden"
    jmap.roles["a2"] = ids["a2"]
    email = await jmap.add(message(), "a2")
    result = await jmap.call("Mailbox/set", destroy=[ids["a2"]])
    assert result["notDestroyed"][ids["a2"]]["type"] == "mailboxHasEmail"
    result = await jmap.call(
        "Mailbox/set", destroy=[ids["a2"]], onDestroyRemoveEmails=True
    )
    assert result["destroyed"] == [ids["a2"]]
    assert result["oldState"] is not None
    gone = await jmap.call("Email/get", ids=[email])
    assert gone["notFound"] == [email]
    whole = await jmap.call("Mailbox/set", destroy=[ids["a"], ids["b"], ids["c"]])
    assert sorted(whole["destroyed"]) == sorted([ids["a"], ids["b"], ids["c"]])


@with_jmap()
async def test_emails_elsewhere_survive_their_mailbox(jmap):
    ids = await tree(jmap)
    email = await jmap.add(message())
    await jmap.call("Email/set", update={email: {f"mailboxIds/{ids['a2']}": True}})
    await jmap.call("Mailbox/set", destroy=[ids["a2"]], onDestroyRemoveEmails=True)
    assert (await jmap.get(email))["mailboxIds"] == {jmap.roles["inbox"]: True}


@with_jmap()
async def test_if_in_state(jmap):
    state = (await jmap.call("Mailbox/get", ids=[]))["state"]
    await jmap.call("Mailbox/set", ifInState=state, create={"k": {"name": "x"}})
    error = await jmap.fails("Mailbox/set", ifInState=state, create={})
    assert error == {"type": "stateMismatch"}


@with_jmap()
async def test_will_destroy(jmap):
    ids = await tree(jmap)
    result = await jmap.call(
        "Mailbox/set", update={ids["a2"]: {"name": "x"}}, destroy=[ids["a2"]]
    )
    assert result["notUpdated"][ids["a2"]]["type"] == "willDestroy"
    assert result["destroyed"] == [ids["a2"]]


@with_jmap()
async def test_destroyed_by_creation_id(jmap):
    made = await jmap.call("Mailbox/set", create={"a": {"name": "a"}})
    real = made["created"]["a"]["id"]
    requests = [
        {"create": {"k": {"name": "k", "parentId": real}}, "destroy": ["#k"]},
        {"create": {"k": {"name": "k", "parentId": real}}, "destroy": [real]},
    ]
    first, second = [await jmap.call("Mailbox/set", **given) for given in requests]
    assert first["destroyed"] == [first["created"]["k"]["id"]]
    assert first["notDestroyed"] is None
    assert second["notDestroyed"][real]["type"] == "mailboxHasChild"
    result = await jmap.call("Mailbox/set", destroy=["#unknown"])
    assert result["notDestroyed"]["#unknown"]["type"] == "notFound"


async def names(jmap, **args):
    result = await jmap.call("Mailbox/query", **args)
    found = await jmap.call("Mailbox/get", ids=result["ids"], properties=["name"])
    by_id = {box["id"]: box["name"] for box in found["list"]}
    return [by_id[text] for text in result["ids"]]


@with_jmap()
async def test_query(jmap):
    ids = await tree(jmap)
    by_name = [{"property": "name"}]
    assert (await names(jmap, sort=by_name))[:5] == ["A", "A2", "Archive", "B", "C"]
    no_role = {"hasAnyRole": False}
    assert await names(jmap, filter=no_role, sort=by_name) == ["A", "A2", "B", "C"]
    assert await names(jmap, filter={"parentId": ids["a"]}) == ["B"]
    assert await names(jmap, filter={"name": "a2"}) == ["A2"]
    assert await names(jmap, filter={"role": "inbox"}) == ["INBOX"]
    either = {
        "operator": "OR",
        "conditions": [{"name": "A2"}, {"parentId": ids["b"]}],
    }
    assert sorted(await names(jmap, filter=either)) == ["A2", "C"]
    neither = {"operator": "NOT", "conditions": [either, {"hasAnyRole": True}]}
    assert sorted(await names(jmap, filter=neither)) == ["A", "B"]
    order = [{"property": "sortOrder", "isAscending": False}, {"property": "name"}]
    assert await names(jmap, filter=no_role, sort=order) == ["A", "A2", "B", "C"]
    assert await names(jmap, filter={"isSubscribed": False}) == []
    assert await names(jmap, filter=None, sort=None, position=-1) == ["A2"]


@with_jmap()
async def test_query_as_tree(jmap):
    await tree(jmap)
    no_role = {"hasAnyRole": False}
    order = [{"property": "sortOrder"}]
    tree_order = await names(jmap, filter=no_role, sort=order, sortAsTree=True)
    assert tree_order == ["A2", "A", "B", "C"]
    some = {"operator": "OR", "conditions": [{"name": "C"}, {"name": "A"}]}
    found = await names(
        jmap,
        filter={"operator": "AND", "conditions": [some, no_role]},
        sort=order,
        filterAsTree=True,
    )
    assert found == ["A2", "A"]


@with_jmap()
async def test_windows_of_a_query(jmap):
    await tree(jmap)
    args = {"filter": {"hasAnyRole": False}, "sort": [{"property": "name"}]}
    whole = await jmap.call("Mailbox/query", **args, calculateTotal=True)
    ids = whole["ids"]
    assert whole["total"] == 4
    assert whole["canCalculateChanges"] is True
    for more, part, position in (
        ({"position": 1, "limit": 2}, ids[1:3], 1),
        ({"position": -3}, ids[1:], 1),
        ({"position": -99}, ids, 0),
        ({"position": 99}, [], 99),
        ({"limit": 0}, [], 0),
        ({"anchor": ids[2]}, ids[2:], 2),
        ({"anchor": ids[2], "anchorOffset": -1, "limit": 1}, ids[1:2], 1),
        ({"anchor": ids[0], "anchorOffset": -9}, ids, 0),
    ):
        found = await jmap.call("Mailbox/query", **args, **more)
        assert (found["ids"], found["position"]) == (part, position), more
        assert "total" not in found
    error = await jmap.fails("Mailbox/query", **args, anchor="m999")
    assert error["type"] == "anchorNotFound"


@with_jmap()
async def test_queries_that_are_refused(jmap):
    for args, kind in (
        ({"filter": {"colour": "red"}}, "unsupportedFilter"),
        ({"filter": {"name": 1}}, "invalidArguments"),
        ({"filter": {"operator": "XOR", "conditions": []}}, "invalidArguments"),
        ({"filter": {"operator": "AND"}}, "invalidArguments"),
        ({"sort": [{"property": "colour"}]}, "unsupportedSort"),
        ({"sort": [{"property": "name", "collation": "x"}]}, "unsupportedSort"),
        ({"sort": [{}]}, "invalidArguments"),
        ({"limit": -1}, "invalidArguments"),
    ):
        error = await jmap.fails("Mailbox/query", **args)
        assert error["type"] == kind, args
    deep = {"name": "x"}
    for _ in range(20):
        deep = {"operator": "NOT", "conditions": [deep]}
    error = await jmap.fails("Mailbox/query", filter=deep)
    assert error["type"] == "unsupportedFilter"


def follow(ids, changes):
    """Apply queryChanges as a client does."""
    left = [text for text in ids if text not in changes["removed"]]
    for one in changes["added"]:
        left.insert(one["index"], one["id"])
    return left


@with_jmap()
async def test_query_changes(jmap):
    ids = await tree(jmap)
    args = {"sort": [{"property": "name"}], "sortAsTree": True}
    known = await jmap.call("Mailbox/query", **args)
    since = {"sinceQueryState": known["queryState"]}
    same = await jmap.call("Mailbox/queryChanges", **args, **since)
    assert (same["removed"], same["added"]) == ([], [])
    await jmap.add(message())
    same = await jmap.call("Mailbox/queryChanges", **args, **since)
    assert (same["removed"], same["added"]) == ([], [])
    await jmap.call(
        "Mailbox/set",
        create={"k": {"name": "Zed", "parentId": ids["a"]}},
        update={ids["a2"]: {"name": "Aaa"}},
        destroy=[ids["c"]],
    )
    now = (await jmap.call("Mailbox/query", **args))["ids"]
    changes = await jmap.call(
        "Mailbox/queryChanges", **args, **since, calculateTotal=True
    )
    assert follow(known["ids"], changes) == now
    assert changes["total"] == len(now)
    error = await jmap.fails("Mailbox/queryChanges", **args, **since, maxChanges=1)
    assert error["type"] == "tooManyChanges"
    error = await jmap.fails("Mailbox/queryChanges", **args, sinceQueryState="zzz")
    assert error["type"] == "cannotCalculateChanges"
