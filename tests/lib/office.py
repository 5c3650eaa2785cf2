"""The mail services of one or two accounts on a real shard and blob store."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from mailserverd.core.types import Access
from mailserverd.services.changes import Changes
from mailserverd.services.facts import read_facts
from mailserverd.services.mailboxes import Mailboxes
from mailserverd.services.messages import Messages
from storage.blobs.file import FileBlobStore
from storage.bus.local import LocalBus
from storage.metadata.deliver import add_email, prepare_account
from storage.metadata.shards import Shards
from storage.model import Added, AddEmail, NewAccount
from tests.lib import databases
from tests.lib.clock import ManualClock

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator

    from storage.api import Database

ME = Access(1, 1)
OTHER = Access(2, 2)


@dataclasses.dataclass
class Office:
    """Everything that a test of services needs; ``heard`` are announcements."""

    database: Database
    store: Any
    blobs: FileBlobStore
    changes: Changes
    clock: ManualClock
    mailboxes: Mailboxes
    messages: Messages
    heard: list[tuple[int, int]]

    async def add(self, raw: bytes, access: Access = ME, **how: Any) -> Added:
        """Store a message as delivery does: blob first, then metadata."""
        blob = await self.blobs.put(raw)
        facts = await read_facts(raw, _inline)
        if "mailboxes" not in how:
            how.setdefault("roles", ("inbox",))
        how.setdefault("received_at", int(self.clock.now()))
        args = AddEmail(facts.email(blob), **how)
        added: Added = await self.store.write(access, add_email, args)
        self.changes.announce(access.account, added.modseq)
        return added


async def _inline(work: Any, *args: object) -> Any:
    return work(*args)


def mail(subject: str, body: str = "hello", **fields: str) -> bytes:
    """Return a small message; ``fields`` are further header fields."""
    lines = [
        "From: Ann <ann@example.org>",
        "To: bob@example.org",
        f"Subject: {subject}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items()),
    ]
    return ("\r\n".join([*lines, "", body]) + "\r\n").encode()


@contextlib.asynccontextmanager
async def office(directory: pathlib.Path, wrap: Any = None) -> AsyncIterator[Office]:
    """Open the services with accounts 1 and 2; ``wrap`` may replace the store."""
    clock = ManualClock()
    database = await databases.make(directory, "shard", clock)
    store: Any = Shards([database], lambda _: 0)
    for account in (1, 2):
        new = NewAccount(f"user{account}@example.org")
        await store.write(Access(0, account), prepare_account, new)
    if wrap:
        store = wrap(store)
    blobs = await FileBlobStore.open(str(directory / "blobs"), clock=clock)
    changes = Changes(LocalBus())
    heard: list[tuple[int, int]] = []
    for account in (1, 2):
        changes.subscribe(account, lambda a, m: heard.append((a, m)))
    try:
        yield Office(
            database,
            store,
            blobs,
            changes,
            clock,
            Mailboxes(store, changes),
            Messages(store, blobs, changes, clock),
            heard,
        )
    finally:
        await blobs.close()
        await database.close()
