"""``storage check --repair``: what spans databases is found, mended, and then clean."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from mailserverd.core.types import Recipient
from mailserverd.services.upkeep import Upkeep
from storage.directory import AddAccount
from storage.metadata import accounts, check, purge, retired
from storage.metadata import blobs as units
from storage.metadata.deliver import add_email, prepare_account
from storage.metadata.directory import mark_purged, remove_account, reserve_account
from storage.metadata.sql import Sql
from storage.model import NewAccount
from storage.queue import Acceptance, NewQueued, TargetPart
from tests.lib.mailhost import mail_host
from tests.lib.shard import delivery

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable
    from typing import Any

    from storage.api import Database, Tx
    from tests.lib.mailhost import MailHost

    Scenario = Callable[[MailHost], Awaitable[None]]

ALICE, BOB = "alice@example.org", "bob@example.org"  # on the first, second shard
MESSAGE = b"From: a@example.net\r\nSubject: x\r\n\r\ntext\r\n"


def execute(tx: Tx, _: int, args: tuple[str, dict[str, object]]) -> int:
    return tx.run(Sql(text(args[0])), args[1])


async def damage(database: Database, statement: str, **values: object) -> None:
    assert await database.write(execute, 0, (statement, values)), statement


async def run_check(host: MailHost, **how: Any) -> dict[str, Any]:
    upkeep = Upkeep(host.directory, host.shards, host.queue, host.blobs, host.changes)
    return await upkeep.check(lambda _: None, **how)


def run(path: pathlib.Path, scenario: Scenario, *addresses: str) -> None:
    async def whole() -> None:
        async with mail_host(path, *(addresses or (ALICE, BOB)), shards=2) as host:
            await host.send(MESSAGE, ALICE)
            await host.send(MESSAGE + b"other", BOB)
            assert (await run_check(host))["faults"] == []
            await scenario(host)

    asyncio.run(whole())


async def found_and_mended(host: MailHost, *words: str) -> dict[str, Any]:
    """Check that the faults are named, mended, and were not before that was asked."""
    seen = await run_check(host)
    for word in words:
        assert any(word in line for line in seen["faults"]), (word, seen["faults"])
    would = await run_check(host, repair=True, dry_run=True)
    assert would["faults"] == seen["faults"]
    assert would["repaired"]
    assert (await run_check(host))["faults"] == seen["faults"]
    done = await run_check(host, repair=True)
    assert done["repaired"]
    assert done["left"] == []
    assert (await run_check(host))["faults"] == []
    return done


async def left(host: MailHost, *words: str) -> None:
    """Check that repair says what it cannot mend, and leaves it."""
    before = (await run_check(host))["faults"]
    done = await run_check(host, repair=True)
    for word in words:
        assert any(word in line for line in done["left"]), (word, done["left"])
    assert (await run_check(host))["faults"] == before


def test_counters_are_mended_and_clients_told(tmp_path: pathlib.Path) -> None:
    async def scenario(host: MailHost) -> None:
        heard: list[int] = []
        access = await host.account(ALICE)
        host.changes.subscribe(access.account, lambda _, modseq: heard.append(modseq))
        await damage(host.databases[0], "UPDATE mailbox SET messages = 9")
        await found_and_mended(host, "alice@example.org (shard-0): mailbox 1: messages")
        state = await host.databases[0].read(accounts.state, access.account, None)
        assert heard[-1] == state.modseq

    run(tmp_path, scenario)


def test_a_lost_account_row_is_made_anew(tmp_path: pathlib.Path) -> None:
    async def scenario(host: MailHost) -> None:
        await damage(host.databases[0], "DELETE FROM account")
        await found_and_mended(host, "alice@example.org: has no row on shard-0")
        assert len(await host.mail(ALICE)) == 1
        await host.send(MESSAGE + b"more", ALICE)
        assert len(await host.mail(ALICE)) == 2

    run(tmp_path, scenario)


def test_an_account_of_which_nothing_is_left_begins_anew(
    tmp_path: pathlib.Path,
) -> None:
    async def scenario(host: MailHost) -> None:
        account = (await host.account(ALICE)).account
        await host.databases[0].write(purge.purge_account, account, 500)
        await found_and_mended(host, "has no row")
        await host.send(MESSAGE + b"more", ALICE)
        assert len(await host.mail(ALICE)) == 1

    run(tmp_path, scenario)


def test_an_account_is_found_where_its_rows_are(tmp_path: pathlib.Path) -> None:
    async def scenario(host: MailHost) -> None:
        other, account = host.databases[1], (await host.account(ALICE)).account
        directory = host.directory._database
        await damage(
            directory,
            "UPDATE account SET shard = :u, version = version + 100 "
            "WHERE account_id = :a",
            u=other.uuid,
            a=account,
        )
        await damage(directory, "UPDATE directory_state SET version = version + 200")
        await host.directory.refresh(now=True)
        await found_and_mended(host, "has no row on shard-1; shard-0 has one")
        assert len(await host.mail(ALICE)) == 1

    run(tmp_path, scenario)


def test_an_account_that_the_directory_lost_is_brought_back(
    tmp_path: pathlib.Path,
) -> None:
    async def scenario(host: MailHost) -> None:
        account = (await host.account(ALICE)).account
        for table in ("account", "address", "credential"):
            await damage(
                host.directory._database,
                f"DELETE FROM {table} WHERE account_id = :a",
                a=account,
            )
        await damage(host.directory._database, "UPDATE directory_state SET version=900")
        await host.directory.refresh(now=True)
        done = await found_and_mended(host, "(alice@example.org) is not in the direct")
        assert any("without a password" in line for line in done["repaired"])
        assert (await host.account(ALICE)).account == account
        assert len(await host.mail(ALICE)) == 1
        await host.accounts.account_enable(ALICE)
        await host.accounts.account_passwd(ALICE, "another pass word")

    run(tmp_path, scenario)


def test_mail_of_nobody_is_left_where_it_is(tmp_path: pathlib.Path) -> None:
    async def scenario(host: MailHost) -> None:
        shard = host.databases[1]
        await shard.write(prepare_account, 77, NewAccount())
        ref = await host.blobs.put(b"its blob")
        await shard.write(add_email, 77, delivery(1, blob=ref))
        await left(host, "account 77: its address is lost")

    run(tmp_path, scenario)


@pytest.mark.parametrize("emails", [0, 1])
def test_an_account_on_two_shards(tmp_path: pathlib.Path, emails: int) -> None:
    """An empty twin goes; of two with mail nothing tells which is right."""

    async def scenario(host: MailHost) -> None:
        account = (await host.account(ALICE)).account
        await host.databases[1].write(prepare_account, account, NewAccount(ALICE))
        if emails:
            ref = await host.blobs.put(b"its blob")
            new = delivery(1, blob=ref)
            await host.databases[1].write(add_email, account, new)
            await left(host, "it lives elsewhere, too")
        else:
            await found_and_mended(host, "lives on another shard")
        assert len(await host.mail(ALICE)) == 1

    run(tmp_path, scenario)


def test_what_is_left_of_a_removed_account_goes(tmp_path: pathlib.Path) -> None:
    async def scenario(host: MailHost) -> None:
        account = (await host.account(ALICE)).account
        await host.directory.write(remove_account, account, None)
        assert (await run_check(host))["faults"] == []  # it is being removed
        await host.directory.write(mark_purged, account, None)
        await found_and_mended(host, "was removed, and has rows yet: 1 emails")
        assert await host.databases[0].read(check.who, account, None) == ("", 0)

    run(tmp_path, scenario)


def test_rows_without_their_account_s_row_are_found(tmp_path: pathlib.Path) -> None:
    async def scenario(host: MailHost) -> None:
        shard = host.databases[1]
        await damage(shard, "INSERT INTO subscription VALUES (55, 'x')")
        await found_and_mended(host, "account 55 is not in the directory")

    run(tmp_path, scenario)


def test_accounts_being_made_are_no_faults(tmp_path: pathlib.Path) -> None:
    async def scenario(host: MailHost) -> None:
        shard = host.databases[0]
        new = AddAccount("carol", "example.org", shard.uuid, "hash")
        account = await host.directory.write(reserve_account, 0, new)
        assert (await run_check(host))["faults"] == []
        await shard.write(prepare_account, account, NewAccount("carol@example.org"))
        assert (await run_check(host))["faults"] == []

    run(tmp_path, scenario)


def test_a_blob_s_row_is_found_again_in_the_segments(tmp_path: pathlib.Path) -> None:
    async def scenario(host: MailHost) -> None:
        await damage(host.databases[0], "DELETE FROM blob")
        await damage(host.databases[1], 'UPDATE blob SET "offset" = "offset" + 1')
        await found_and_mended(host, "without its blob", "is not at segment")
        assert (await host.mail(ALICE))[0].endswith(b"text\r\n")
        assert (await host.mail(BOB))[0].endswith(b"other")

    run(tmp_path, scenario)


async def retire_all(host: MailHost) -> None:
    """Let no row point into the segments that there are."""
    host.blobs._appender.seal_active()
    numbers = tuple(info.segment for info in await host.blobs.segments())
    for database in (host.queue.database, *host.databases):
        await database.write(retired.retire, 0, numbers)


@pytest.mark.parametrize("copied", [False, True])
def test_what_lies_in_a_retired_segment_is_copied_out_unless_it_was(
    tmp_path: pathlib.Path, copied: bool
) -> None:
    async def scenario(host: MailHost) -> None:
        places = [
            (await database.read(units.list_blobs, 0, (b"", 10)))[0]
            for database in host.databases
        ]
        await retire_all(host)
        copies = await host.blobs.rewrite(places) if copied else {}
        await damage(host.databases[0], "DELETE FROM blob")
        await damage(host.databases[1], 'UPDATE blob SET "offset" = "offset" + 1')
        await found_and_mended(host, "without its blob", "is not at segment")
        assert (await host.mail(ALICE))[0].endswith(b"text\r\n")
        assert (await host.mail(BOB))[0].endswith(b"other")
        for database, before in zip(host.databases, places, strict=True):
            (now,) = await database.read(units.list_blobs, 0, (b"", 10))
            assert now.segment != before.segment
            assert now == copies.get(before, now)

    run(tmp_path, scenario)


def test_a_queued_blob_is_found_again(tmp_path: pathlib.Path) -> None:
    async def scenario(host: MailHost) -> None:
        ref = await host.blobs.put(MESSAGE)
        to = (Recipient("friend@example.com"),)
        await host.queue.enqueue(NewQueued(ALICE, to, ref, 1 << 40))
        wrong = dataclasses.replace(ref, offset=ref.offset + 1)
        await host.queue.move_blobs([(ref, wrong)])
        await found_and_mended(host, "queue: blob")
        assert await host.queue.live_blobs([ref.hash]) == {ref.hash: ref}

    run(tmp_path, scenario)


def test_bytes_that_are_lost_are_named(tmp_path: pathlib.Path) -> None:
    async def scenario(host: MailHost) -> None:
        (ref,) = await host.databases[0].read(units.list_blobs, 0, (b"", 10))
        await damage(host.databases[0], "UPDATE blob SET hash = :h", h=b"\0" * 32)
        await damage(host.databases[0], "UPDATE email SET hash = :h", h=b"\0" * 32)
        assert ref.hash != b"\0" * 32
        await left(host, f"blob {'00' * 32} is lost: restore it from a backup")

    run(tmp_path, scenario)


ENDS = {
    "directory": {
        "UPDATE address SET domain_id = 99 WHERE local = 'team'": "without its domain",
        "INSERT INTO address VALUES (1, 'x', 99, 0)": "account that is not there",
        "INSERT INTO alias_target VALUES (1, 'y', 0, 'a@b.c', 0)": "target of an alias",
        "INSERT INTO credential VALUES (99, 99, 'password', '', 'h', 1, 0)": (
            "credential of"
        ),
        "INSERT INTO dkim_key VALUES (99, 's', 'rsa', 'p', 't', 'active', 0)": "DKIM",
    },
    "queue": {
        "UPDATE queue_recipient SET message = message + 1": "without its message",
        "UPDATE queue_message SET open = 5": "what a message waits for",
        "UPDATE acceptance SET open = 7": "count of an acceptance's parts",
        "INSERT INTO acceptance_target VALUES (X'00', 'shard:0', X'00', 0)": (
            "part without its acceptance"
        ),
    },
}


@pytest.mark.parametrize(
    ("name", "statement"), [(name, one) for name in ENDS for one in ENDS[name]]
)
def test_the_directory_and_the_queue_are_mended(
    tmp_path: pathlib.Path, name: str, statement: str
) -> None:
    async def scenario(host: MailHost) -> None:
        await host.accounts.alias_add("team@example.org", (ALICE, BOB))
        ref = await host.blobs.put(MESSAGE)
        to = (Recipient("friend@example.com"),)
        await host.queue.enqueue(NewQueued(ALICE, to, ref, 1 << 40))
        parts = (TargetPart("shard:0", b"[]"), TargetPart("shard:1", b"[]"))
        await host.queue.accept(Acceptance(b"A" * 16, ref, b"{}", parts))
        assert (await run_check(host))["faults"] == []
        ends = {"directory": host.directory._database, "queue": host.queue.database}
        await damage(ends[name], statement)
        await found_and_mended(host, f"{name}: ", ENDS[name][statement])

    run(tmp_path, scenario)


def test_what_cannot_be_read_is_a_fault_and_left(tmp_path: pathlib.Path) -> None:
    async def scenario(host: MailHost) -> None:
        await host.databases[1].close()
        faults = (await run_check(host, repair=True))["left"]
        assert any(line.startswith(f"{BOB}: cannot be read") for line in faults)
        assert any(line.startswith("shard-1: cannot be read") for line in faults)

    run(tmp_path, scenario)


@pytest.mark.parametrize("small", [check.SMALL, 0])
def test_no_fault_is_seen_where_mail_arrives_and_accounts_come_and_go(
    tmp_path: pathlib.Path, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "SMALL", small)
    people = tuple(f"u{n}@example.org" for n in range(4))

    async def scenario(host: MailHost) -> None:
        stop, sent, gone = False, 0, 0

        async def mail() -> None:
            nonlocal sent
            while not stop:
                await host.send(MESSAGE + b"%d" % sent, *people[: 1 + sent % 4])
                sent += 1

        async def come_and_go() -> None:
            nonlocal gone
            while not stop:
                address = f"new{gone}@example.org"
                await host.accounts.account_add(address, "a long pass word")
                await host.send(MESSAGE + b"new%d" % gone, address)
                await host.accounts.account_remove(address)
                gone += 1

        others = [asyncio.create_task(mail()), asyncio.create_task(come_and_go())]
        checked = 0
        while checked < 4 or sent < 3 or gone < 2:
            for task in others:
                if task.done():
                    task.result()
            for how in ({}, {"repair": True}):
                done = await run_check(host, **how)
                assert done["faults"] == []
                assert done["repaired"] == []
            checked += 1
        stop = True
        await asyncio.gather(*others)

    run(tmp_path, scenario, ALICE, BOB, *people)
