"""What is old goes, what is young stays, and a database that is down stops nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Recipient
from mailserverd.services.pruning import Pruning
from storage.metadata.prune import DAY
from storage.metadata.queue import MailQueue
from storage.model import BlobRef
from storage.queue import NewQueued, Page, Selection
from tests.lib import databases
from tests.lib.people import people

if TYPE_CHECKING:
    import pathlib

BLOB = BlobRef(b"h" * 32, b"s" * 16, 1, 0, 1, 1)


class Down:
    """A shard that is down."""

    async def read(self, *_: Any) -> None:
        """Fail."""
        raise MailError(Kind.UNAVAILABLE)


def count(database: Any, table: str) -> int:
    """Return the number of rows."""
    row = database._writer.execute(f"SELECT count(*) FROM {table}").fetchone()
    found: int = row[0]
    return found


def test_a_pass_forgets_what_is_old(tmp_path: pathlib.Path) -> None:
    async def scenario() -> None:
        async with people(tmp_path) as p:
            queue = MailQueue(await databases.make(tmp_path, "queue", p.clock))
            await p.accounts.domain_add("example.org")
            made = await p.accounts.account_add("alice@example.org", "correct horse")
            shard: Any = p.shards.databases[0]
            now = int(p.clock.now())
            for modseq, at in ((1, now), (2, now + 20 * DAY)):
                shard._writer.execute(
                    "INSERT INTO expunged (account_id, mailbox_id, modseq, uid, at) "
                    "VALUES (?, 1, ?, ?, ?)",
                    (made["account"], modseq, modseq, at),
                )
                shard._writer.execute(
                    "INSERT INTO delivered (account_id, acceptance, email_id, "
                    "thread_id, modseq, at) VALUES (?, ?, 1, 1, 1, ?)",
                    (made["account"], b"%d" % modseq, at),
                )
            for n in range(3):
                new = NewQueued("", (Recipient(f"{n}@x.example"),), BLOB, now + DAY)
                queued = await queue.enqueue(new)
            for entry in (await queue.list())[:2]:
                await queue.cancel(Selection(entry.message.queue_id))
            p.clock.move(31 * DAY)
            down: Any = Down()
            await Pruning([down, shard], queue, p.clock).run()
            assert count(shard, "expunged") == 1
            assert count(shard, "delivered") == 0
            (left,) = await queue.list()
            assert left.message.queue_id == queued
            assert await queue.list(Page(finished=True)) == ()
            await queue.close()

    asyncio.run(scenario())
