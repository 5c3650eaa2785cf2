"""A mail host in one process: real stores under a directory, real services.

Domain ``example.org`` with the accounts given (password ``PASSWORD``), on one or
several shards.  DNS answers come from a dict.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from auth.people.authenticate import Authenticator
from auth.people.directory import Directory
from auth.people.passwords import CHEAP, Passwords
from mailserverd.core.ports import SystemClock
from mailserverd.core.types import Access, Envelope, Peer, Recipient
from mailserverd.services.acceptances import Acceptances
from mailserverd.services.accounts import Accounts, Tools
from mailserverd.services.changes import Changes
from mailserverd.services.deliver import Deliver
from mailserverd.services.mailboxes import Mailboxes
from mailserverd.services.messages import Messages
from mailserverd.services.policy import Context, InboundPolicy
from mailserverd.services.receive import Kernel, Receipt, Receive
from storage.blobs.file import FileBlobStore
from storage.bus.local import LocalBus
from storage.metadata.queue import MailQueue
from storage.metadata.shards import Shards
from storage.model import Column
from tests.lib import databases
from tests.lib.zones import ZoneResolver

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from mailserverd.core.ports import Clock
    from storage.api import Database

HOSTNAME = "mx.example.org"
PASSWORD = "correct horse battery"
POLICY = InboundPolicy(accept_temperror=True)
PEER = Peer("192.0.2.1", 40000, "client.example.net", protocol="ESMTP")


async def offload(work: Callable[..., Any], *args: object) -> Any:
    """Run in a thread, as the daemon's pool does."""
    return await asyncio.to_thread(work, *args)


@dataclasses.dataclass(slots=True)
class MailHost:
    """Everything, open; ``account`` and ``mail`` look at what was delivered."""

    clock: Clock
    directory: Directory
    accounts: Accounts
    authenticator: Authenticator
    databases: Sequence[Database]
    shards: Shards
    queue: MailQueue
    blobs: FileBlobStore
    changes: Changes
    resolver: ZoneResolver
    acceptances: Acceptances
    deliver: Deliver
    receive: Receive
    mailboxes: Mailboxes
    messages: Messages

    async def account(self, address: str) -> Access:
        """Return the owner's access to an account."""
        found = await self.directory.account_by_address(address)
        assert found is not None, address
        return Access(found.account_id, found.account_id)

    async def mail(self, address: str, role: str = "inbox") -> list[bytes]:
        """Return the messages in an account's mailbox, oldest first."""
        access = await self.account(address)
        boxes = (await self.mailboxes.list(access)).mailboxes
        box = next(b.mailbox_id for b in boxes if b.role == role)
        view = await self.messages.view(access, box)
        ids = list(view.email_ids)
        rows = await self.messages.rows(access, ids, Column.BASIC)
        assert len(rows) == len(ids)
        return [await self.messages.read(access, n) for n in ids]

    async def send(
        self, message: bytes, *to: str, sender: str = "s@example.net", **how: Any
    ) -> Receipt:
        """Let a message arrive."""
        envelope = Envelope(sender, tuple(map(Recipient, to)))
        incoming = await self.receive.open(envelope, PEER, **how)
        await incoming.write(message)
        return await incoming.finish()


@contextlib.asynccontextmanager
async def mail_host(
    directory: pathlib.Path,
    *addresses: str,
    shards: int = 1,
    clock: Clock | None = None,
    records: Mapping[tuple[str, str], object] | None = None,
    policy: InboundPolicy = POLICY,
    wrap: Callable[[str, Any], Any] = lambda _, engine: engine,
) -> AsyncIterator[MailHost]:
    """Open a mail host for the addresses (default: alice@ and bob@example.org).

    ``wrap(role, engine)`` may put something around an engine (``tests.lib.failing``).
    """
    time = clock or SystemClock()

    async def opened(kind: str, name: str = "") -> Any:
        database = await databases.make(directory, kind, time, name)
        return wrap(name or kind, database)

    names = [f"shard-{n}" for n in range(shards)]
    stores = [await opened("shard", name) for name in names]
    queue_db, directory_db = await opened("queue"), await opened("directory")
    people = Directory(directory_db, time, [db.uuid for db in stores])
    await people.start()
    store = Shards(stores, people.shard_of)
    files = await FileBlobStore.open(str(directory / "blobs"), clock=time)
    blobs = wrap("blobs", files)
    changes = Changes(wrap("bus", LocalBus()))
    queue = MailQueue(queue_db)
    hasher = Passwords(CHEAP)
    accounts = Accounts(people, store, Tools(hasher, offload, time, HOSTNAME))
    await _add(accounts, addresses or ("alice@example.org", "bob@example.org"))
    acceptances = Acceptances(queue, blobs, time, offload)
    deliver = Deliver(store, acceptances, people, changes)
    resolver = ZoneResolver(records or {})
    kernel = Kernel(store, blobs, people, changes, time, offload, HOSTNAME)
    host = MailHost(
        clock=time,
        directory=people,
        accounts=accounts,
        authenticator=Authenticator(people, time, offload, hasher=hasher),
        databases=stores,
        shards=store,
        queue=queue,
        blobs=blobs,
        changes=changes,
        resolver=resolver,
        acceptances=acceptances,
        deliver=deliver,
        receive=Receive(kernel, deliver, Context(resolver, offload, policy)),
        mailboxes=Mailboxes(store, changes),
        messages=Messages(store, blobs, changes, time),
    )
    try:
        yield host
    finally:
        await acceptances.close()
        await blobs.close()
        for database in (*stores, queue_db, directory_db):
            await database.close()


async def _add(accounts: Accounts, addresses: Sequence[str]) -> None:
    for domain in dict.fromkeys(a.partition("@")[2] for a in addresses):
        await accounts.domain_add(domain)
    for address in addresses:
        await accounts.account_add(address, PASSWORD)
