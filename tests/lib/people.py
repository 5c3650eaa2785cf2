"""Accounts on real databases: a directory, shards, and the use cases over them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING

from auth.people.authenticate import Authenticator
from auth.people.directory import ADDRESSING, Addressing, Directory
from auth.people.passwords import CHEAP, Passwords
from mailserverd.services.accounts import Accounts, Tools
from storage.metadata.shards import Shards
from tests.lib import databases
from tests.lib.clock import ManualClock

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Callable
    from typing import TypeVar

    from storage.api import Database

    T = TypeVar("T")

HOSTNAME = "mail.example.org"


async def offload(work: Callable[..., T], *args: object) -> T:
    """Run in a thread, as the daemon does."""
    return await asyncio.to_thread(work, *args)


@dataclasses.dataclass(slots=True)
class People:
    """Everything that knows people, open."""

    clock: ManualClock
    directory: Directory
    shards: Shards
    accounts: Accounts
    authenticator: Authenticator
    forgotten: list[int]
    database: Database  # the directory's, which another process may write, too


@contextlib.asynccontextmanager
async def people(
    path: pathlib.Path,
    *,
    shards: int = 1,
    addressing: Addressing = ADDRESSING,
    dns_servers: tuple[str, ...] = (),
) -> AsyncIterator[People]:
    """Open (and make when missing) the databases under a directory."""
    clock = ManualClock()
    opened = [
        await databases.make(path, "shard", clock, f"shard-{n}") for n in range(shards)
    ]
    directory_db = await databases.make(path, "directory", clock)
    directory = Directory(directory_db, clock, [db.uuid for db in opened], addressing)
    await directory.start()
    store = Shards(opened, directory.shard_of)
    hasher = Passwords(CHEAP)
    forgotten: list[int] = []

    async def forget(account: int) -> None:
        forgotten.append(account)

    tools = Tools(hasher, offload, clock, HOSTNAME, dns_servers, forget)
    accounts = Accounts(directory, store, tools)
    authenticator = Authenticator(directory, clock, offload, hasher=hasher)
    try:
        yield People(
            clock,
            directory,
            store,
            accounts,
            authenticator,
            forgotten,
            directory_db,
        )
    finally:
        await store.close()
        await directory_db.close()
