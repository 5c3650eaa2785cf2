"""What is large costs little: small sizes here, millions in ``scripts/bench size``.

Nothing depends on how fast the machine is: rows, statements and octets are counted.
"""

from __future__ import annotations

import asyncio
from array import array

import pytest

from mailserverd.core.types import system
from mailserverd.mail import mime
from scripts.benchmarks import filling, mailboxes
from storage.model import Column
from tests.lib import daemon, doors, instance

pytestmark = pytest.mark.timeout(180)
LARGE = 24_000_000  # octets of one message
ROOM = 64.0  # MiB that a message of 50 MB may take
EVERYTHING = Column.BASIC | Column.ENVELOPE | Column.LIST | Column.PARTS
LITTLE = ROOM * LARGE / 50_000_000 + 8.0


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    home = tmp_path_factory.mktemp("size") / "home"
    made = daemon.make(home, f"{doors.ADDRESS}:{doors.PASSWORD}")
    with daemon.running(made):
        for door in list(doors.DOORS)[:6]:  # what is loaded once does not count
            doors.through(made, door, 300_000)
        yield made


@pytest.mark.parametrize("door", doors.DOORS)
def test_a_large_message_takes_little_memory(ours, door):
    assert doors.through(ours, door, LARGE) < LITTLE


def test_many_messages_by_append_take_no_more_than_one(ours):
    peak = doors.Peak(ours.pid)
    peak.reset()
    asyncio.run(doors.append(ours, 400_000, 60))
    assert peak.rise() < 16.0


@pytest.mark.parametrize("door", ["IMAP FETCH", "JMAP download"])
def test_it_comes_back_as_it_was(ours, door):
    size = LARGE + 1
    asyncio.run(doors.append(ours, size))
    assert asyncio.run(doors.DOORS[door](ours, size)) == doors.digest(size)


# --- loadgen ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """An instance that ``loadgen`` filled: one account, and then the same again."""
    home = tmp_path_factory.mktemp("filled") / "home"
    made = daemon.make(home, domains=("example.test",))
    names = ["big@example.test"]
    wanted = filling.Wanted(home, names, 2500, 30, 7, "a password")
    for _ in range(2):
        asyncio.run(filling.run(wanted))
    return made


def test_loadgen_fills_as_deliveries_would(filled):
    async def look():
        async with instance.opened(filled.config) as graph:
            found = await graph.stores.directory.account_by_address("big@example.test")
            access = system(found.account_id)
            boxes = (await graph.mailboxes.list(access)).mailboxes
            assert sum(box.messages for box in boxes) == 2500
            assert sum(box.messages > 0 for box in boxes) > 20
            assert max(boxes, key=lambda box: box.messages).path == "INBOX"
            state = await graph.mailboxes.state(access)
            assert state.message_count == 2500
            view = await graph.messages.view(access, boxes[0].mailbox_id)
            assert view.uids == array("I", range(1, boxes[0].messages + 1))
            for email in view.email_ids[:40]:
                raw = await graph.messages.read(access, email)
                stored = await graph.messages.rows(access, [email], EVERYTHING)
                await compare(raw, stored[email])

    async def compare(raw, row):
        parsed = mime.parse(raw)
        assert row.envelope == parsed.envelope
        assert row.list_json == parsed.list_json
        assert row.part_table == parsed.part_table
        assert (row.size, row.header_size) == (len(raw), parsed.header_size)
        assert row.sent_at == parsed.sent_at

    asyncio.run(look())


def test_the_counters_of_a_filled_account_are_right(filled):
    report = filled.command("storage", "check")
    assert not report.get("faults"), report


def test_threads_are_what_parsing_would_find():
    async def inline(work, *args):
        return work(*args)

    async def made():
        pairs = await mailboxes.templates(3, inline)
        plan = mailboxes.Plan(300, 5, 3, "x")
        return list(mailboxes.batch(plan, pairs, 0)), list(
            mailboxes.batch(plan, pairs, 0)
        )

    first, again = asyncio.run(made())
    assert first == again
    for one in first:
        parsed = mime.parse(one.raw)
        assert one.email.thread_keys == parsed.thread_keys
        assert one.email.message_id == parsed.message_id
    assert sum(len(one.email.thread_keys) > 1 for one in first) > 60
