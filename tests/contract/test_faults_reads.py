"""What people see of engines that fail: temporary errors, or the truth.

Nothing is ever shown as missing that is there: no empty folder, no message without
its text, no search with half of its hits, no account that "does not exist".
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.services import indexer as indexing
from mailserverd.services.indexer import Indexer
from mailserverd.services.search import Search
from protocols.jmap.site import JmapSite
from storage.cache.memory import MemoryCache
from storage.model import Condition
from tests.lib.failing import (
    MODES,
    FailingCache,
    FailingSearchIndex,
    FailingStore,
    Faults,
)
from tests.lib.imap import Client, imap_host
from tests.lib.jmap import ALICE, jmap
from tests.lib.mailhost import offload
from tests.lib.memory_index import MemoryIndex
from tests.lib.office import ME, Office, mail, office

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

MESSAGES = 5
ROLES = ("shard-0", "blobs", "directory")
TEMPORARY = {"serverUnavailable", "serverFail", "serverPartialFail"}


def text(number: int) -> bytes:
    """Return a message."""
    head = f"From: s@example.net\r\nTo: {ALICE}\r\nSubject: number {number}\r\n"
    return f"{head}\r\nfox {number}\r\n".encode()


# --- IMAP ---------------------------------------------------------------------------


def exists(untagged: list[bytes]) -> bool:
    return b"* %d EXISTS" % MESSAGES in untagged


def fetched(untagged: list[bytes]) -> bool:
    return sum(b"fox" in line for line in untagged) == MESSAGES


def counted(what: bytes) -> Callable[[list[bytes]], bool]:
    """Say whether each message is there with something."""
    return lambda found: sum(what in line for line in found) == MESSAGES


IMAP: tuple[tuple[str, Callable[[list[bytes]], bool]], ...] = (
    ("SELECT INBOX", exists),
    ("FETCH 1:* (UID FLAGS)", counted(b"UID")),
    ("FETCH 1:* (ENVELOPE BODYSTRUCTURE)", counted(b"number")),
    ("FETCH 1:* BODY.PEEK[]", fetched),
    ("FETCH 1:* BODY.PEEK[HEADER.FIELDS (SUBJECT)]", counted(b"number")),
    ("SEARCH BODY fox", lambda found: b"* SEARCH 1 2 3 4 5" in found),
    ("SEARCH HEADER Subject number", lambda found: b"* SEARCH 1 2 3 4 5" in found),
    ("STATUS Drafts (MESSAGES)", lambda found: b"(MESSAGES 0)" in found[0]),
    ('LIST "" *', lambda found: len(found) >= 5),
    ("EXAMINE INBOX", exists),
)


async def ask(client: Client, faults: Faults, mode: str, role: str) -> int:
    """Give each command; return how many were answered with NO."""
    refused = 0
    for command, truth in IMAP:
        faults.set(mode, role)
        reply, untagged = await client.run(command)
        faults.mend()
        if reply.startswith(b"OK"):
            assert truth(untagged), (command, untagged)
        else:
            assert re.match(rb"NO \[(UNAVAILABLE|SERVERBUG)\]", reply), (command, reply)
            refused += 1
            if "INBOX" in command:  # nothing is selected now
                await client.ok("SELECT INBOX")
    return refused


@pytest.mark.parametrize("mode", MODES)
def test_imap_shows_the_truth_or_says_unavailable(
    tmp_path: pathlib.Path, mode: str
) -> None:
    async def whole() -> None:
        faults = Faults()
        async with asyncio.timeout(30), imap_host(tmp_path, wrap=faults.wrap) as it:
            first = await it.client()
            for number in range(MESSAGES):
                assert (await first.append("INBOX", text(number))).startswith(b"OK")
            refused = 0
            for role in ROLES:
                client = await it.client()
                await client.ok("SELECT INBOX")
                refused += await ask(client, faults, mode, role)
            assert faults.failed
            assert refused or mode == "slowly"
            if mode == "slowly":
                assert not refused
            for command, truth in IMAP:
                assert truth(await first.ok(command)), command

    asyncio.run(whole())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("role", ["directory", "shard-0"])
def test_a_password_is_not_wrong_while_nobody_can_look_it_up(
    tmp_path: pathlib.Path, role: str, mode: str
) -> None:
    async def whole() -> None:
        faults = Faults()
        async with asyncio.timeout(30), imap_host(tmp_path, wrap=faults.wrap) as it:
            for number in range(4):
                client = await it.client(login=False)
                faults.set(mode, role)
                reply, _ = await client.run(f'LOGIN {ALICE} "correct horse battery"')
                unknown, _ = await client.run(f'LOGIN nobody{number}@example.org "x"')
                faults.mend()
                if not reply.startswith(b"OK"):
                    assert reply.startswith(b"NO [UNAVAILABLE]"), reply
                assert not unknown.startswith(b"OK")
            await it.client()

    asyncio.run(whole())


@pytest.mark.parametrize("mode", ["always", "sometimes", "slowly", "after"])
def test_a_session_hears_of_mail_whatever_becomes_of_hints(
    tmp_path: pathlib.Path, mode: str
) -> None:
    """Losing a hint costs time: the next command shows what there is."""

    async def whole() -> None:
        faults = Faults()
        async with asyncio.timeout(30), imap_host(tmp_path, wrap=faults.wrap) as it:
            reader, writer = await it.client(), await it.client()
            await reader.ok("SELECT INBOX")
            faults.set(mode, "bus")
            for number in range(4):
                assert (await writer.append("INBOX", text(number))).startswith(b"OK")
            for _ in range(2):
                await reader.ok("NOOP")
            assert len(await reader.ok("FETCH 1:* UID")) == 4

    asyncio.run(whole())


# --- JMAP ---------------------------------------------------------------------------


async def requests(it: Any, ids: list[str]) -> list[tuple[list[Any], Any]]:
    """Return calls with what shows that an answer is whole."""
    inbox = it.roles["inbox"]
    parts = {"fetchTextBodyValues": True, "properties": ["subject", "bodyValues"]}

    def all_there(found: dict[str, Any]) -> bool:
        return len(found["list"]) == len(ids) and not found["notFound"]

    def with_text(found: dict[str, Any]) -> bool:
        values = [v for e in found["list"] for v in e["bodyValues"].values()]
        whole = [v for v in values if "fox" in v["value"]]
        return all_there(found) and len(whole) == len(ids)

    def queried(found: dict[str, Any]) -> bool:
        return set(found["ids"]) == set(ids)

    def one_box(found: dict[str, Any]) -> bool:
        return [box["totalEmails"] for box in found["list"]] == [len(ids)]

    return [
        (["Mailbox/get", {"ids": [inbox]}, "c"], one_box),
        (["Email/query", {"filter": {"inMailbox": inbox}}, "c"], queried),
        (["Email/query", {"filter": {"text": "fox"}}, "c"], queried),
        (["Email/get", {"ids": ids, "properties": ["subject"]}, "c"], all_there),
        (["Email/get", {"ids": ids, **parts}, "c"], with_text),
        (["Email/get", {"ids": ids, "properties": ["header:Subject"]}, "c"], all_there),
        (["Thread/get", {"ids": await threads(it, ids)}, "c"], all_there),
        (["Identity/get", {"ids": None}, "c"], lambda found: found["list"]),
    ]


async def threads(it: Any, ids: list[str]) -> list[str]:
    found = await it.call("Email/get", ids=ids, properties=["threadId"])
    return [email["threadId"] for email in found["list"]]


async def post(it: Any, call: list[Any]) -> tuple[int, Any]:
    """Make one call; return the status and the response to it."""
    name, args, tag = call
    body = {"using": list(USING), "methodCalls": [[name, {**args}, tag]]}
    body["methodCalls"][0][1]["accountId"] = it.account
    answer = await it.http(
        "POST", "/jmap/api", json.dumps(body).encode(), content_type="application/json"
    )
    if answer.status != 200:
        return answer.status, None
    return 200, json.loads(answer.body)["methodResponses"][0]


USING = (
    "urn:ietf:params:jmap:core",
    "urn:ietf:params:jmap:mail",
    "urn:ietf:params:jmap:submission",
)


@pytest.mark.parametrize("mode", MODES)
def test_jmap_shows_the_truth_or_says_unavailable(
    tmp_path: pathlib.Path, mode: str
) -> None:
    async def whole() -> None:
        faults = Faults()
        async with asyncio.timeout(30), jmap(tmp_path, wrap=faults.wrap) as it:
            ids = [await it.add(text(number)) for number in range(MESSAGES)]
            failed = 0
            for call, whole_ in await requests(it, ids):
                for role in ROLES:
                    faults.set(mode, role)
                    status, answer = await post(it, call)
                    faults.mend()
                    failed += jmap_failed(status, answer, whole_, call)
            assert faults.failed
            assert failed or mode == "slowly"
            for call, whole_ in await requests(it, ids):
                assert whole_((await post(it, call))[1][1]), call

    asyncio.run(whole())


def jmap_failed(status: int, answer: Any, whole: Any, call: list[Any]) -> bool:
    """Tell whether a call failed; then for a while, and else it is all there."""
    if status != 200:
        assert status == 503, (call, status)
        return True
    if answer[0] == "error":
        assert answer[1]["type"] in TEMPORARY, (call, answer)
        return True
    assert whole(answer[1]), (call, answer)
    return False


@pytest.mark.parametrize("mode", ["always", "sometimes", "after"])
def test_a_change_over_jmap_is_made_or_refused_for_now(
    tmp_path: pathlib.Path, mode: str
) -> None:
    async def whole() -> None:
        faults = Faults()
        async with asyncio.timeout(30), jmap(tmp_path, wrap=faults.wrap) as it:
            [email] = [await it.add(text(0))]
            for number in range(6):
                faults.set(mode, "shard-0")
                update = {email: {f"keywords/k{number}": True}}
                calls: list[Any] = ["Email/set", {"update": update}, "c"]
                status, answer = await post(it, calls)
                faults.mend()
                done = (await it.get(email, "keywords"))["keywords"]
                if status != 200 or answer[0] == "error":
                    jmap_failed(status, answer, None, calls)
                elif answer[1].get("notUpdated"):
                    error = answer[1]["notUpdated"][email]
                    assert error["type"] in TEMPORARY | {"rateLimit"}, error
                else:
                    assert f"k{number}" in done

    asyncio.run(whole())


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_that_forgets_changes_no_answer(
    tmp_path: pathlib.Path, mode: str
) -> None:
    async def whole() -> None:
        async with asyncio.timeout(30), jmap(tmp_path) as it:
            cache = FailingCache(MemoryCache(), mode)
            it.site = JmapSite(dataclasses.replace(it.services, cache=cache))
            ids = [await it.add(text(number)) for number in range(MESSAGES)]
            for _ in range(3):
                for call, whole_ in await requests(it, ids):
                    assert whole_((await post(it, call))[1][1]), call

    asyncio.run(whole())


# --- the index ----------------------------------------------------------------------


class Bench:
    """An office, its indexer and search, over an index that may fail."""

    def __init__(self, it: Office) -> None:
        self.it = it
        self.memory = MemoryIndex()
        self.index = FailingSearchIndex(self.memory)
        self.store = FailingStore(it.store)
        self.indexer = Indexer(self.store, self.index, [it.database], it.clock)
        self.search = Search(it.store, self.index, it.messages, offload)
        self.truth: dict[int, str] = {}

    async def change(self, rng: random.Random, number: int) -> None:
        """Add a message, or remove one."""
        if self.truth and rng.random() < 0.3:
            gone = rng.choice(sorted(self.truth))
            await self.it.messages.destroy(ME, [gone])
            del self.truth[gone]
            return
        word = rng.choice(("fox", "dog", "owl"))
        added = await self.it.add(mail(f"{word} {number}", word))
        self.truth[added.email_id] = word

    async def check(self) -> None:
        """Every search finds all there is, and nothing else."""
        for word in ("fox", "dog", "owl"):
            found = await self.search.resolve(ME, Condition("text", word))
            live = {key for key in found.value if key in self.truth}
            assert live == {k for k, w in self.truth.items() if w == word}

    async def step(self) -> None:
        self.it.clock.move(300)
        await self.indexer.step()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["index", "store"])
def test_a_search_finds_everything_whatever_the_index_does(
    tmp_path: pathlib.Path, which: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "FLUSH_MESSAGES", 2)

    async def whole() -> None:
        async with asyncio.timeout(30), office(tmp_path) as it:
            bench, rng = Bench(it), random.Random(3)
            failing = bench.index if which == "index" else bench.store
            for number in range(24):
                failing.mode = mode if number % 8 > 3 else "never"
                await bench.change(rng, number)
                await bench.step()
                await bench.check()
            assert failing.failed
            failing.mode = "never"
            for _ in range(6):
                await bench.step()
            assert bench.indexer.lag == 0
            assert set(bench.memory.kept[1]) == set(bench.truth)

    asyncio.run(whole())


# --- slowly -------------------------------------------------------------------------


def test_a_slow_engine_holds_up_neither_the_loop_nor_others(
    tmp_path: pathlib.Path,
) -> None:
    async def whole() -> None:
        faults, gaps = Faults(), [0.0]

        async def beat() -> None:
            while True:
                began = time.monotonic()
                await asyncio.sleep(0.005)
                gaps.append(time.monotonic() - began)

        async with (
            asyncio.timeout(30),
            jmap(tmp_path, wrap=faults.wrap, shards=2) as it,
        ):
            host = it.host
            ids = {n: host.shards.shard_of(n) for n in (1, 2)}
            assert set(ids.values()) == {0, 1}
            faults.set("slowly", f"shard-{ids[2]}", "blobs")
            faults[f"shard-{ids[2]}"].delay = faults["blobs"].delay = 0.5
            beating = asyncio.create_task(beat())
            bob = await host.account("bob@example.org")
            slow = [asyncio.create_task(host.mailboxes.list(bob)) for _ in range(20)]
            await asyncio.sleep(0)
            began = time.monotonic()
            for _ in range(10):
                await host.mailboxes.list(it.access)
            quick = time.monotonic() - began
            beating.cancel()
            assert not all(task.done() for task in slow)
            faults.mend()
            await asyncio.gather(*slow)
            assert quick < 0.5
            assert max(gaps) < 0.4

    asyncio.run(whole())
