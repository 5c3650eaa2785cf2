"""Email/query and Email/queryChanges (RFC 8621 sections 4.4 and 4.5), threads."""

from __future__ import annotations

import random

from tests.lib.jmap import ARRIVED, message, with_jmap


async def subjects(jmap, **args):
    result = await jmap.call("Email/query", **args)
    found = await jmap.call("Email/get", ids=result["ids"], properties=["subject"])
    by_id = {one["id"]: one["subject"] for one in found["list"]}
    return [by_id[text] for text in result["ids"]]


async def fill(jmap):
    """Five emails, named A to E, oldest first."""
    emails = {}
    for number, (name, fields) in enumerate(
        {
            "A": {"From": "Zoe <z@x.example>", "Message_ID": "<a@x>"},
            "B": {"From": "Adam <a@x.example>", "body": "x" * 5000},
            "C": {"From": "m@x.example", "To": "Zed <z@z.example>"},
            "D": {"Date": "Thu, 01 Jan 2015 00:00:00 +0000"},
            "E": {"Content_Type": "application/pdf", "body": "pdf"},
        }.items()
    ):
        at = ARRIVED + number * 60
        emails[name] = await jmap.add(message(name, **fields), at=at)
    return emails


@with_jmap()
async def test_filters(jmap):
    ids = await fill(jmap)
    inbox, trash = jmap.roles["inbox"], jmap.roles["trash"]
    await jmap.call(
        "Email/set",
        update={
            ids["A"]: {"keywords": {"$seen": True, "own": True}},
            ids["B"]: {"mailboxIds": {trash: True}},
            ids["C"]: {f"mailboxIds/{trash}": True},
        },
    )
    for given, found in (
        (None, "EDCBA"),
        ({}, "EDCBA"),
        ({"inMailbox": inbox}, "EDCA"),
        ({"inMailbox": "m999"}, ""),
        ({"inMailbox": "nonsense"}, ""),
        ({"inMailboxOtherThan": [trash]}, "EDCA"),
        ({"inMailboxOtherThan": [inbox, trash]}, ""),
        ({"before": "2027-01-15T08:02:00Z"}, "BA"),
        ({"after": "2027-01-15T08:02:00Z"}, "EDC"),
        ({"minSize": 5000}, "B"),
        ({"maxSize": 5000}, "EDCA"),
        ({"hasKeyword": "OWN"}, "A"),
        ({"hasKeyword": "$seen"}, "A"),
        ({"notKeyword": "$seen"}, "EDCB"),
        ({"hasAttachment": True}, "E"),
        ({"hasAttachment": False}, "DCBA"),
        ({"hasKeyword": "own", "inMailbox": trash}, ""),
        (
            {
                "operator": "OR",
                "conditions": [{"hasKeyword": "own"}, {"minSize": 5000}],
            },
            "BA",
        ),
        (
            {"operator": "NOT", "conditions": [{"hasKeyword": "own"}, {"minSize": 9}]},
            "",
        ),
        ({"operator": "AND", "conditions": []}, "EDCBA"),
    ):
        assert "".join(await subjects(jmap, filter=given)) == found, given


@with_jmap()
async def test_sorts(jmap):
    ids = await fill(jmap)
    await jmap.call("Email/set", update={ids["D"]: {"keywords/$flagged": True}})
    for sort, found in (
        (None, "EDCBA"),
        ([], "EDCBA"),
        ([{"property": "receivedAt"}], "ABCDE"),
        ([{"property": "receivedAt", "isAscending": False}], "EDCBA"),
        ([{"property": "subject", "isAscending": False}], "EDCBA"),
        ([{"property": "subject", "collation": "i;unicode-casemap"}], "ABCDE"),
        ([{"property": "from"}, {"property": "receivedAt"}], "BDECA"),
        ([{"property": "to"}, {"property": "receivedAt"}], "ABDEC"),
        (
            [
                {"property": "hasKeyword", "keyword": "$flagged", "isAscending": False},
                {"property": "receivedAt"},
            ],
            "DABCE",
        ),
    ):
        assert "".join(await subjects(jmap, sort=sort)) == found, sort
    by_size = await subjects(jmap, sort=[{"property": "size", "isAscending": False}])
    assert by_size[0] == "B"
    by_sent = await subjects(jmap, sort=[{"property": "sentAt"}])
    assert by_sent[0] == "D"


@with_jmap()
async def test_what_is_refused(jmap):
    for args, kind in (
        ({"filter": {"nonsense": 1, "other": 2}}, "unsupportedFilter"),
        ({"filter": {"inMailbox": 1}}, "invalidArguments"),
        ({"filter": {"before": "yesterday"}}, "invalidArguments"),
        ({"filter": {"hasKeyword": "a b"}}, "invalidArguments"),
        ({"filter": {"header": []}}, "invalidArguments"),
        ({"filter": {"header": ["a", "b", "c"]}}, "invalidArguments"),
        ({"filter": {"text": 1}}, "invalidArguments"),
        ({"sort": [{"property": "preview"}]}, "unsupportedSort"),
        ({"sort": [{"property": "hasKeyword"}]}, "invalidArguments"),
        ({"sort": "receivedAt"}, "invalidArguments"),
        ({"position": "1"}, "invalidArguments"),
        ({"anchor": "e99"}, "anchorNotFound"),
        ({"anchor": "zz"}, "anchorNotFound"),
        ({"unknown": 1}, "invalidArguments"),
    ):
        error = await jmap.fails("Email/query", **args)
        assert error["type"] == kind, args


@with_jmap()
async def test_windows(jmap):
    ids = await fill(jmap)
    order = [ids[name] for name in "EDCBA"]
    for more, part, position in (
        ({"limit": 2}, order[:2], 0),
        ({"position": 2, "limit": 2}, order[2:4], 2),
        ({"position": -2}, order[3:], 3),
        ({"position": 9}, [], 9),
        ({"anchor": ids["C"], "anchorOffset": -1, "limit": 2}, order[1:3], 1),
        ({"anchor": ids["C"], "anchorOffset": 1}, order[3:], 3),
        ({"anchor": ids["E"], "anchorOffset": -5}, order, 0),
    ):
        for filter_ in (None, {"inMailbox": jmap.roles["inbox"]}):
            found = await jmap.call(
                "Email/query", filter=filter_, calculateTotal=True, **more
            )
            assert found["ids"] == part, (more, filter_)
            assert found["position"] == position
            assert found["total"] == 5


@with_jmap()
async def test_texts(jmap):
    """Whole words, in fields or anywhere, found the moment they are stored."""
    texts = {
        "apple": {"From": "Ann Pie <ann@x.example>", "Cc": "cook@x.example"},
        "pear": {"body": "An apple a day\n", "X_Own": "Some Value"},
        "plum": {"Bcc": "=?utf-8?Q?K=C3=A4se?= <k@x.example>"},
    }
    for number, (name, fields) in enumerate(texts.items()):
        await jmap.add(message(name, **fields), at=ARRIVED + number)
    for given, found in (
        ({"text": "apple"}, ["pear", "apple"]),
        ({"text": "APPLE day"}, ["pear"]),
        ({"text": '"apple a day"'}, ["pear"]),
        ({"text": '"day apple"'}, []),
        ({"subject": "apple"}, ["apple"]),
        ({"body": "apple"}, ["pear"]),
        ({"from": "ann"}, ["apple"]),
        ({"from": "ann@x.example"}, ["apple"]),
        ({"to": "alice"}, ["plum", "pear", "apple"]),
        ({"cc": "cook"}, ["apple"]),
        ({"bcc": "käse"}, ["plum"]),
        ({"header": ["X-Own"]}, ["pear"]),
        ({"header": ["x-own", "some value"]}, ["pear"]),
        ({"header": ["x-own", "other"]}, []),
        ({"text": "apple", "inMailbox": jmap.roles["trash"]}, []),
        ({"text": "apple", "subject": "pear"}, ["pear"]),
        ({"text": ""}, ["plum", "pear", "apple"]),
        ({"operator": "NOT", "conditions": [{"text": "apple"}]}, ["plum"]),
        (
            {"operator": "OR", "conditions": [{"subject": "plum"}, {"cc": "cook"}]},
            ["plum", "apple"],
        ),
    ):
        assert await subjects(jmap, filter=given) == found, given
    error = await jmap.fails("Email/query", filter={"text": "x" * 1001})
    assert error["type"] == "invalidArguments"


async def conversations(jmap):
    """Two threads: (1, 3, 5) and (2, 4), by age."""
    emails = []
    for number in range(1, 6):
        root = 2 - number % 2
        fields = {"Message_ID": f"<{number}@x>"}
        if number != root:
            fields["References"] = f"<{root}@x>"
        raw = message(
            f"Topic {root}" if number == root else f"Re: Topic {root}", **fields
        )
        emails.append(await jmap.add(raw, at=ARRIVED + number))
    return emails


@with_jmap()
async def test_collapsed_threads(jmap):
    emails = await conversations(jmap)
    got = await jmap.call("Email/query", collapseThreads=True, calculateTotal=True)
    assert got["ids"] == [emails[4], emails[3]]
    assert got["total"] == 2
    got = await jmap.call(
        "Email/query", collapseThreads=True, sort=[{"property": "receivedAt"}]
    )
    assert got["ids"] == [emails[0], emails[1]]
    inbox = {"inMailbox": jmap.roles["inbox"]}
    got = await jmap.call(
        "Email/query", filter=inbox, collapseThreads=True, position=1, limit=1
    )
    assert got["ids"] == [emails[3]]


@with_jmap()
async def test_keywords_of_threads(jmap):
    emails = await conversations(jmap)
    await jmap.call("Email/set", update={emails[0]: {"keywords/own": True}})
    await jmap.call(
        "Email/set", update={one: {"keywords/all": True} for one in emails[1::2]}
    )
    first, second = sorted(emails[::2]), sorted(emails[1::2])
    for given, found in (
        ({"someInThreadHaveKeyword": "own"}, first),
        ({"noneInThreadHaveKeyword": "own"}, second),
        ({"allInThreadHaveKeyword": "all"}, second),
        ({"allInThreadHaveKeyword": "own"}, []),
    ):
        got = await jmap.call("Email/query", filter=given)
        assert sorted(got["ids"]) == found, given
    by = [{"property": "someInThreadHaveKeyword", "keyword": "own"}]
    got = await jmap.call("Email/query", sort=by, collapseThreads=True)
    assert got["ids"][0] in second


@with_jmap()
async def test_threads(jmap):
    emails = await conversations(jmap)
    found = await jmap.call("Email/get", ids=emails, properties=["threadId"])
    threads = [one["threadId"] for one in found["list"]]
    got = await jmap.call("Thread/get", ids=[*threads, "t99", "x"])
    assert {tuple(one["emailIds"]) for one in got["list"]} == {
        tuple(emails[::2]),
        tuple(emails[1::2]),
    }
    assert sorted(got["notFound"]) == ["t99", "x"]
    before = got["state"]
    await jmap.call("Email/set", update={emails[0]: {"keywords/$seen": True}})
    same = await jmap.call("Thread/changes", sinceState=before)
    assert (same["created"], same["updated"], same["destroyed"]) == ([], [], [])
    assert same["newState"] == before
    await jmap.call("Email/set", destroy=[emails[0], *emails[1::2]])
    await jmap.add(message("Alone"))
    changes = await jmap.call("Thread/changes", sinceState=before)
    assert changes["updated"] == [threads[0]]
    assert changes["destroyed"] == [threads[1]]
    assert len(changes["created"]) == 1
    assert (await jmap.fails("Thread/get", properties=["x"], ids=[]))["type"] == (
        "invalidArguments"
    )


@with_jmap()
async def test_changes_in_pieces(jmap):
    state = (await jmap.call("Email/get", ids=[]))["state"]
    emails = [await jmap.add(message(f"{n}")) for n in range(7)]
    update = {one: {"keywords/$seen": True} for one in emails}
    await jmap.call("Email/set", update=update)
    gone = await jmap.call("Email/set", destroy=emails[:3])
    seen = []
    more = True
    while more:
        changes = await jmap.call("Email/changes", sinceState=state, maxChanges=2)
        count = sum(len(changes[k]) for k in ("created", "updated", "destroyed"))
        assert count <= 2
        seen += changes["created"]
        state, more = changes["newState"], changes["hasMoreChanges"]
    assert set(emails[3:]) <= set(seen)
    assert state == gone["newState"]


# --- queryChanges -------------------------------------------------------------------


def follow(ids, changes):
    """Apply queryChanges as a client does."""
    left = [text for text in ids if text not in set(changes["removed"])]
    for one in changes["added"]:
        left.insert(one["index"], one["id"])
    return left


QUERIES = [
    {},
    {"sort": [{"property": "subject"}]},
    {"sort": [{"property": "hasKeyword", "keyword": "$seen"}]},
    {"filter": {"hasKeyword": "$seen"}},
    {"filter": {"minSize": 300}},
    {"collapseThreads": True},
    {"filter": {"someInThreadHaveKeyword": "$seen"}},
    {
        "filter": {"allInThreadHaveKeyword": "$seen"},
        "sort": [{"property": "someInThreadHaveKeyword", "keyword": "$flagged"}],
        "collapseThreads": True,
    },
]


@with_jmap()
async def test_query_changes_follow_whatever_happens(jmap):
    """Random changes; after each, what a client computes is what a query says."""
    inbox, trash = jmap.roles["inbox"], jmap.roles["trash"]
    queries = [*QUERIES]
    queries += [
        {**one, "filter": {"inMailbox": inbox}} for one in (QUERIES[0], QUERIES[5])
    ]
    rng = random.Random(7)
    known = [await jmap.call("Email/query", **query) for query in queries]
    emails = []
    for step in range(40):
        await change(jmap, rng, emails, (inbox, trash), step)
        if rng.random() < 0.5:
            continue
        for place, query in enumerate(queries):
            before = known[place]
            now = await jmap.call("Email/query", **query)
            changes = await jmap.call(
                "Email/queryChanges",
                sinceQueryState=before["queryState"],
                calculateTotal=True,
                **query,
            )
            assert follow(before["ids"], changes) == now["ids"], (step, query)
            assert changes["newQueryState"] == now["queryState"]
            assert changes["total"] == len(now["ids"])
            if rng.random() < 0.6:
                known[place] = now


async def change(jmap, rng, emails, boxes, step):
    kind = rng.randrange(6) if len(emails) > 3 else 0
    if kind in (0, 1):
        parent = rng.randrange(step + 1)
        raw = message(
            f"Re: T{rng.randrange(3)}",
            Message_ID=f"<{step}@x>",
            References=f"<{parent}@x>",
            body="y" * rng.randrange(400),
        )
        emails.append(await jmap.add(raw, at=ARRIVED + rng.randrange(1000)))
        return
    some = rng.sample(emails, min(2, len(emails)))
    if kind == 2:
        await jmap.call("Email/set", destroy=some)
        for one in some:
            emails.remove(one)
        return
    word = rng.choice(["keywords/$seen", "keywords/$flagged"])
    given = {word: rng.choice([True, None])}
    if kind == 3:
        given = {"mailboxIds": {rng.choice(boxes): True}}
    await jmap.call("Email/set", update=dict.fromkeys(some, given))


@with_jmap()
async def test_query_changes_bounds(jmap):
    emails = await conversations(jmap)
    known = await jmap.call("Email/query", sort=[{"property": "receivedAt"}])
    args = {
        "sort": [{"property": "receivedAt"}],
        "sinceQueryState": known["queryState"],
    }
    same = await jmap.call("Email/queryChanges", **args)
    assert (same["removed"], same["added"]) == ([], [])
    assert same["newQueryState"] == same["oldQueryState"] == known["queryState"]
    assert "total" not in same
    await jmap.add(message("Late"), at=ARRIVED + 100)
    await jmap.add(message("Early"), at=ARRIVED - 100)
    whole = await jmap.call("Email/queryChanges", **args)
    assert [one["index"] for one in whole["added"]] == [0, 6]
    short = await jmap.call("Email/queryChanges", **args, upToId=emails[1])
    assert [one["index"] for one in short["added"]] == [0]
    error = await jmap.fails("Email/queryChanges", **args, maxChanges=1)
    assert error["type"] == "tooManyChanges"
    for bad in ("", "9-9", "zz"):
        error = await jmap.fails("Email/queryChanges", sinceQueryState=bad)
        assert error["type"] == "cannotCalculateChanges"
