"""Shards and what the directory expects of them: opening, accepting, refusing.

A shard that cannot be reached is waited for in its place.  A database that can be
read and is not what the directory expects stops the start: served as if it were, it
would show its users an empty account, or somebody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from storage.engines import inspect_database, open_database
from storage.metadata import known_shards as units
from storage.metadata.meta import EmptyDatabase, UnfitDatabase
from storage.metadata.prune import account_ids
from storage.metadata.unavailable import AbsentDatabase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from mailserverd.core.ports import Clock
    from storage.api import Database
    from storage.metadata.known_shards import KnownShard

    Opener = Callable[[str, str], Awaitable[Database]]  # name, URL

OPEN_LIMIT = 10.0  # seconds that opening one shard may hold up the start


async def open_shards(
    shards: Sequence[tuple[str, str]], directory: Database, open_one: Opener
) -> list[Database]:
    """Open shards (name, URL), all at once, in their order.

    One that cannot be reached becomes an ``AbsentDatabase``.  UNAVAILABLE, with all
    closed again, when one is not what the directory expects.
    """
    known = await directory.read(units.known, 0, None)
    attempts = await asyncio.gather(
        *(_attempt(open_one, name, url) for name, url in shards), return_exceptions=True
    )
    found = dict(zip((name for name, _ in shards), attempts, strict=True))
    opened = {n: one for n, one in found.items() if not isinstance(one, BaseException)}
    async with contextlib.AsyncExitStack() as stack:
        for database in opened.values():
            stack.push_async_callback(database.close)
        _check(opened.values(), known)
        absent = _absent(
            {n: one for n, one in found.items() if isinstance(one, BaseException)},
            [one for one in known if one.uuid not in {d.uuid for d in opened.values()}],
        )
        await _remember(directory, opened.values(), known)
        stack.pop_all()
    urls = dict(shards)
    waiting = {
        name: AbsentDatabase(
            name, uuid, functools.partial(_attempt, open_one, name, urls[name]), problem
        )
        for name, (uuid, problem) in absent.items()
    }
    for one in waiting.values():
        one.start()
    return [opened[name] if name in opened else waiting[name] for name, _ in shards]


async def _attempt(open_one: Opener, name: str, url: str) -> Database:
    try:
        async with asyncio.timeout(OPEN_LIMIT):
            return await open_one(name, url)
    except TimeoutError:
        raise MailError(Kind.UNAVAILABLE, f"{name}: no answer in time") from None


def _check(opened: Iterable[Database], known: Sequence[KnownShard]) -> None:
    expected = {one.uuid for one in known}
    for database in opened:
        if database.uuid not in expected:
            raise UnfitDatabase(
                Kind.UNAVAILABLE,
                f"{database.name}: the directory does not know this database (UUID "
                f"{database.uuid.hex()}); to use it as a new shard run: "
                "mailserverd storage migrate",
            )


def _absent(
    failed: dict[str, BaseException], missing: Sequence[KnownShard]
) -> dict[str, tuple[bytes, str]]:
    """Return UUID and problem of each shard to wait for; raise where that is wrong.

    A file that is missing or empty is waited for if accounts live on that shard:
    then it is a disk that is not there, not a shard yet to be made.
    """
    by_name = {one.name: one for one in missing if one.name}
    unnamed = [one for one in missing if one.accounts and one.name not in failed]
    absent: dict[str, tuple[bytes, str]] = {}
    for name, error in failed.items():
        expected = by_name.get(name)
        if expected is None and len(unnamed) == 1 and len(failed) == 1:
            (expected,) = unnamed  # the only one that it can be
        if not isinstance(error, MailError) or expected is None:
            raise error
        lost = isinstance(error, EmptyDatabase) and expected.accounts
        if isinstance(error, UnfitDatabase) and not lost:
            raise error
        absent[name] = expected.uuid, lost_text(expected) if lost else error.text
    return absent


def lost_text(expected: KnownShard) -> str:
    """Say what is missing where an empty database stands, and what can be done."""
    return (
        f"empty, but {expected.accounts} accounts live on the database with UUID "
        f"{expected.uuid.hex()}: put that back"
    )


async def _remember(
    directory: Database, opened: Iterable[Database], known: Sequence[KnownShard]
) -> None:
    """Note where shards stand, if that changed."""
    before = {one.uuid: one.name for one in known}
    moved = [(one.uuid, one.name) for one in opened if before[one.uuid] != one.name]
    if moved:
        await directory.write(units.remember, 0, moved)


# --- accepting ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Expectations:
    """What the directory expects, compared with what is configured."""

    known: tuple[KnownShard, ...]
    present: frozenset[bytes]  # UUIDs that could be read
    unreadable: frozenset[str]  # names of shards that could not

    def lost(self) -> list[KnownShard]:
        """Return shards with accounts that are nowhere to be seen."""
        return [
            one
            for one in self.known
            if one.accounts
            and one.uuid not in self.present
            and one.name not in self.unreadable
        ]

    def is_new(self, uuid: bytes) -> bool:
        """Return whether the directory has never heard of a database."""
        return uuid not in {one.uuid for one in self.known}

    def why_not(self, name: str, uuid: bytes) -> str:
        """Say why a new database must not become a shard; "" when it may.

        ``uuid`` is b"" for one that would be made.
        """
        if not self.is_new(uuid):
            return ""
        for one in sorted(self.lost(), key=lambda one: one.name != name):
            return f"{lost_text(one)}, or begin anew with: --accept {name}"
        return ""


async def expectations(
    directory_url: str, shards: Sequence[tuple[str, str]], clock: Clock
) -> Expectations:
    """Compare the directory with the configured shards (name, URL)."""
    database = await open_database(directory_url, "directory", clock, name="directory")
    try:
        known = await database.read(units.known, 0, None)
    finally:
        await database.close()
    present, unreadable = set(), set()
    for name, url in shards:
        try:
            present.add((await inspect_database(url)).uuid)
        except MailError:
            unreadable.add(name)
    return Expectations(known, frozenset(present), frozenset(unreadable))


async def accept(directory_url: str, url: str, name: str, clock: Clock) -> None:
    """Let the directory expect a database as a shard from now on."""
    uuid = (await inspect_database(url)).uuid
    database = await open_database(directory_url, "directory", clock, name="directory")
    try:
        await database.write(units.remember, 0, [(uuid, name)])
    finally:
        await database.close()


async def holds_accounts(url: str, name: str, clock: Clock) -> bool:
    """Return whether accounts have rows on a shard."""
    database = await open_database(url, "shard", clock, name=name)
    try:
        return bool(await database.read(account_ids, 0, (0, 1)))
    finally:
        await database.close()
