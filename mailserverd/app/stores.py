"""Opening what is stored: the data directory's lock, databases, blobs."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pathlib
from typing import TYPE_CHECKING

from auth.people.directory import Directory
from mailserverd.app.shards import accept, open_shards
from mailserverd.core.errors import Kind, MailError
from storage.engines import (
    inspect_database,
    migrate_database,
    open_blobs,
    open_database,
)
from storage.metadata.owner.shared import Share, SharedDatabase
from storage.metadata.shards import Shards

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailserverd.core.ports import Clock
    from mailserverd.settings import Settings
    from storage.api import Database, SegmentStore


@contextlib.contextmanager
def data_lock(settings: Settings, hint: str = "") -> Iterator[pathlib.Path]:
    """Hold ``DATA_DIR/lock``: one daemon, or one command beside none, at a time.

    UNAVAILABLE, with the hint, while another process holds it.
    """
    base = pathlib.Path(settings.server.data_dir)
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(
            base / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise MailError(
            Kind.FORBIDDEN,
            f"server.data_dir {base}: {error.strerror}; it must be writable by the "
            "user that runs mailserverd",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield base
    except BlockingIOError as error:
        raise MailError(
            Kind.UNAVAILABLE, f"{base} is in use by another mailserverd process{hint}"
        ) from error
    finally:
        os.close(descriptor)


@dataclasses.dataclass(slots=True)
class Stores:
    """Everything durable, open."""

    directory_db: Database
    shard_dbs: tuple[Database, ...]
    queue_db: Database
    directory: Directory
    shards: Shards
    blobs: SegmentStore

    @property
    def databases(self) -> tuple[Database, ...]:
        """All databases: the directory, the shards, the queue."""
        return self.directory_db, *self.shard_dbs, self.queue_db

    async def close(self) -> None:
        """Finish what is pending everywhere, then close."""
        await self.blobs.close()
        await self.shards.close()
        await self.queue_db.close()
        await self.directory_db.close()


def databases(settings: Settings) -> list[tuple[str, str, str]]:
    """Return (name, kind, URL) of every database."""
    storage = settings.storage
    shards = [(f"shard-{n}", "shard", url) for n, url in enumerate(storage.shards)]
    return [
        ("directory", "directory", storage.directory),
        *shards,
        ("queue", "queue", storage.queue),
    ]


async def make_missing(settings: Settings, clock: Clock) -> None:
    """Make the schema in databases that do not exist yet; older ones stay."""
    for name, kind, url in databases(settings):
        if not (await inspect_database(url)).schema:
            await migrate_database(url, kind, clock)
            if kind == "shard":
                await accept(settings.storage.directory, url, name, clock)


class Alone:
    """How the one process of a daemon opens what is stored: it owns all of it."""

    exclusive = True  # nobody else writes blobs

    async def __call__(self, url: str, kind: str, clock: Clock, name: str) -> Database:
        """Open a database."""
        return await open_database(url, kind, clock, name=name)


class Together:
    """How one of several processes opens it; see ``SharedDatabase``.

    The workers are the preferred owners of the databases, turn by turn; any other
    process is no candidate and has no ``worker`` number.
    """

    exclusive = False

    def __init__(self, settings: Settings, run_dir: pathlib.Path, worker: int) -> None:
        names = [name for name, _, _ in databases(settings)]
        self._turns = {name: number for number, name in enumerate(names)}
        self._run_dir = run_dir
        self._workers = settings.server.processes
        self._worker = worker

    async def __call__(self, url: str, kind: str, clock: Clock, name: str) -> Database:
        """Open a database with the others."""
        share = Share(
            self._run_dir,
            prefer=self._turns[name] % self._workers == self._worker,
            candidate=self._worker >= 0,
        )
        return await SharedDatabase.open(url, kind, clock, name=name, share=share)


ALONE = Alone()


async def open_stores(
    settings: Settings, clock: Clock, opening: Alone | Together = ALONE
) -> Stores:
    """Open everything; UNAVAILABLE, saying what to do, when something is not right.

    A shard that cannot be reached is waited for; the directory and the queue are not.
    """

    async def opened(name: str, kind: str, url: str) -> Database:
        database = await opening(url, kind, clock, name)
        stack.push_async_callback(database.close)
        return database

    async def open_shard(name: str, url: str) -> Database:
        return await opening(url, "shard", clock, name)

    (_, _, directory_url), *shard_urls, (_, _, queue_url) = databases(settings)
    async with contextlib.AsyncExitStack() as stack:
        directory_db = await opened("directory", "directory", directory_url)
        queue_db = await opened("queue", "queue", queue_url)
        shard_dbs = await open_shards(
            [(name, url) for name, _, url in shard_urls], directory_db, open_shard
        )
        for database in shard_dbs:
            stack.push_async_callback(database.close)
        directory = Directory(directory_db, clock, [db.uuid for db in shard_dbs])
        await directory.start()
        blobs = await open_blobs(
            settings.storage.blobs,
            clock,
            exclusive=opening.exclusive,
            scratch=f"{settings.server.data_dir}/cache",
        )
        stack.pop_all()
    return Stores(
        directory_db,
        tuple(shard_dbs),
        queue_db,
        directory,
        Shards(shard_dbs, directory.shard_of),
        blobs,
    )
