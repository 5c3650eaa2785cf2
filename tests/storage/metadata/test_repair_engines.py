"""Checking and mending are the same on every engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from mailserverd.core.errors import MailError
from storage.metadata import blobs, check, check_ends, copies, known_shards, repair
from storage.metadata.check_sql import ORPHANS
from storage.metadata.deliver import add_email, prepare_account
from storage.metadata.prune import last_account
from storage.metadata.sql import Sql
from storage.model import NewAccount
from tests.lib import databases
from tests.lib.shard import delivery, keys

if TYPE_CHECKING:
    import pathlib

    from storage.api import Database, Tx

DAMAGE = (
    "UPDATE mailbox SET messages = 9, uidnext = 1, highestmodseq = 1",
    "UPDATE mailbox SET parent_id = 9 - mailbox_id WHERE mailbox_id IN (4, 5)",
    "UPDATE mailbox SET role = '' WHERE mailbox_id = 1",
    "UPDATE account SET quota_used = 1, modseq = 2, last_email = 0, email_modseq = 1",
    "UPDATE email_state SET system = 1, shown = 0 WHERE email_id = 1",
    "UPDATE mailbox_email SET deleted = 3 WHERE uid = 2",
    "UPDATE mailbox_email SET mailbox_id = 77 WHERE uid = 3",
    "DELETE FROM mailbox_email WHERE uid = 1",
    "DELETE FROM email_state WHERE email_id = 2",
    "DELETE FROM email WHERE email_id = 3",
    "DELETE FROM mailbox_thread",
    "UPDATE destroyed SET object_id = 1",
    "UPDATE expunged SET uid = 1, mailbox_id = 1",
)


def execute(tx: Tx, _: int, statement: str) -> None:
    tx.run(Sql(text(statement)))


async def mended(database: Database) -> list[str]:
    lines: list[str] = []
    distrust = False
    for step in range(await database.read(repair.steps, 1, None)):
        done = await database.write(repair.mend, 1, step)
        lines += done.lines
        distrust = distrust or done.distrust
    if distrust:
        lines.append(await database.write(repair.renew, 1, None))
    return lines


def test_every_damage_at_once(place: pathlib.Path) -> None:
    async def main() -> None:
        database = await databases.make(place, "shard")
        try:
            await database.write(prepare_account, 1, NewAccount("me@example.org"))
            for number in range(1, 7):
                new = delivery(number, thread_keys=keys(number, number % 2))
                await database.write(add_email, 1, new)
            await database.write(add_email, 1, delivery(9, mailboxes=(2,)))
            await database.write(copies.empty_some, 1, (2, 5))
            assert await found(database) == ()
            for statement in DAMAGE:
                await database.write(execute, 0, statement)
            before = await found(database)
            assert len(before) > 15
            with pytest.raises(MailError) as caught:
                await database.write(repair.rehearse, 1, None)
            assert await found(database) == before
            said: Any = caught.value.details["lines"]
            assert await mended(database) == [*said, (await renewed(database))]
            assert await found(database) == ()
            assert await mended(database) == []
            await database.write(execute, 0, "DELETE FROM account")
            for table in ORPHANS:
                assert await database.read(check.orphans, 0, table) in {1, None}
            assert await database.read(check.who, 1, None) == ("me@example.org", 5)
            await database.write(repair.restore, 1, NewAccount())
            await mended(database)
            assert await found(database) == ()
            assert await database.read(last_account, 0, None) == 1
            assert await database.read(blobs.blobless, 0, 9) == ()
            assert await database.write(blobs.drop_homeless, 0, None) == 0
        finally:
            await database.close()

    asyncio.run(main())


async def found(database: Database) -> tuple[str, ...]:
    return (
        *await database.read(check.check_account, 1, None),
        *await database.read(check.check_shard, 0, None),
    )


async def renewed(database: Database) -> str:
    row = await database.read(epoch, 1, None)
    return f"epoch raised to {row}, every UIDVALIDITY renewed"


def epoch(tx: Tx, account: int, _: None) -> int:
    row = tx.one(Sql(text(f"SELECT epoch FROM account WHERE account_id = {account:d}")))
    assert row is not None
    value: int = row[0]
    return value


def test_the_directory_and_the_queue(place: pathlib.Path) -> None:
    async def main() -> None:
        directory = await databases.make(place, "directory")
        queue = await databases.make(place, "queue")
        try:
            for statement in (
                "INSERT INTO address VALUES (9, 'x', NULL, 0)",
                "INSERT INTO alias_target VALUES (9, 'y', 0, 'a@b.c', 0)",
                "INSERT INTO dkim_key VALUES (9, 's', 'r', 'p', 't', 'active', 0)",
            ):
                await directory.write(execute, 0, statement)
            assert len(await directory.read(check_ends.check_directory, 0, None)) == 3
            assert len(await directory.write(check_ends.mend_directory, 0, None)) == 3
            assert await directory.read(check_ends.check_directory, 0, None) == ()
            assert await queue.read(check_ends.check_queue, 0, None) == ()
            assert await queue.write(check_ends.mend_queue, 0, None) == ()
            for name in ("shard-0", "shard-1"):
                shards = [(b"u" * 16, name)]
                await directory.write(known_shards.remember, 0, shards)
                (one,) = await directory.read(known_shards.known, 0, None)
                assert (one.uuid, one.name, one.accounts) == (b"u" * 16, name, 0)
        finally:
            await directory.close()
            await queue.close()

    asyncio.run(main())
