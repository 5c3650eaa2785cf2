"""How often PostgreSQL is asked: counted, so that it cannot creep."""

from __future__ import annotations

import asyncio

import pytest

from storage.metadata.counters import COMMITS, TRIPS
from tests.lib import databases
from tests.lib.jmap import ALICE, USING, jmap
from tests.lib.mailhost import mail_host

PER_PAGE = 3  # of an inbox
PER_BATCH = 13  # of deliveries, however many
SHARD = "shard-0"


@pytest.fixture
def place(tmp_path):
    """A directory whose databases are on PostgreSQL."""
    with databases.on("postgresql", tmp_path):
        yield tmp_path


def trips():
    return TRIPS.labels(SHARD)._value.get()


def commits():
    return COMMITS.labels(SHARD)._value.get()


def mail(subject):
    return f"From: s@example.net\r\nSubject: {subject}\r\n\r\nhello\r\n".encode()


def page(it):
    """Return the request of a web client that opens: counters, the first fifty."""
    query = {
        "accountId": it.account,
        "filter": {"inMailbox": it.roles["inbox"]},
        "sort": [{"property": "receivedAt", "isAscending": False}],
        "limit": 50,
        "calculateTotal": True,
    }
    shown = ["threadId", "mailboxIds", "keywords", "from", "subject", "receivedAt",
             "preview", "size", "hasAttachment"]  # fmt: skip
    ids = {"resultOf": "query", "name": "Email/query", "path": "/ids"}
    get = {"accountId": it.account, "#ids": ids, "properties": shown}
    return {
        "using": USING,
        "methodCalls": [
            ["Mailbox/get", {"accountId": it.account, "ids": None}, "boxes"],
            ["Email/query", query, "query"],
            ["Email/get", get, "emails"],
        ],
    }


def test_an_inbox_page(place):
    """With nothing of it in a cache, then with all but the newest."""

    async def run():
        async with jmap(place) as it:
            for number in range(60):
                await it.host.send(mail(f"m{number}"), ALICE)
            echo = [["Core/echo", {}, "hello"]]  # the login is known from here on
            await it.post({"using": USING, "methodCalls": echo})
            for number in range(3):
                await it.host.send(mail(f"newer {number}"), ALICE)
                before = trips()
                answers = (await it.post(page(it)))["methodResponses"]
                spent = trips() - before
                assert [one[0] for one in answers] == [
                    *("Mailbox/get", "Email/query", "Email/get"),
                ]
                assert len(answers[2][1]["list"]) == 50
                assert answers[2][1]["list"][0]["subject"] == f"newer {number}"
                assert spent <= PER_PAGE

    asyncio.run(run())


def test_deliveries_in_batches(place):
    """One at a time, and many at once to many: a batch costs the same."""
    people = [f"user{number}@example.org" for number in range(12)]

    async def run():
        async with mail_host(place, *people) as host:

            async def send(to, count):
                for number in range(count):
                    await host.send(mail(f"m{number}"), to)

            await send(people[0], 1)
            before = trips(), commits()
            await send(people[0], 3)
            assert commits() - before[1] == 3
            assert trips() - before[0] <= 3 * PER_BATCH
            await asyncio.gather(*(send(to, 1) for to in people))
            before = trips(), commits()
            await asyncio.gather(*(send(to, 10) for to in people))
            batches = commits() - before[1]
            assert batches <= 10 * len(people) / 3
            assert trips() - before[0] <= PER_BATCH * batches

    asyncio.run(run())
