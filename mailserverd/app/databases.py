"""``storage status | migrate``: every database as it is, reachable or not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mailserverd.app import shards
from mailserverd.app.stores import databases
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.urls import shown
from storage.engines import (
    blobs_size,
    database_size,
    inspect_database,
    migrate_database,
    open_database,
)
from storage.metadata import accounts, known_shards
from storage.metadata.meta import SCHEMAS, EmptyDatabase, check_meta

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.app.stores import Stores
    from mailserverd.core.ports import Clock
    from mailserverd.settings import Settings
    from storage.api import Database
    from storage.metadata.known_shards import KnownShard
    from storage.metadata.meta import Meta

    Row = dict[str, Any]

ANSWER_LIMIT = 5.0  # seconds that a database has to say what it is
STUCK = 5.0  # seconds after which a batch under way is worth telling


# --- migrate -----------------------------------------------------------------------


async def migrate(
    settings: Settings, clock: Clock, *, accept: str = "", dry_run: bool = False
) -> list[Row]:
    """Make or upgrade every schema, and let the directory expect new shards.

    Returns {name, before, after, problem} per database: one that fails does not stop
    the others.  ``accept`` names a shard to be taken although it is not what the
    directory would expect there.
    """
    if accept and accept not in {name for name, _, _ in databases(settings)[1:-1]}:
        raise MailError(Kind.INVALID, f"no shard {accept[:40]!a} is configured")
    rows = []
    for name, kind, url in databases(settings):
        row: Row = {"name": name, "before": None, "after": None, "problem": ""}
        try:
            meta = await inspect_database(url)
            row["before"] = row["after"] = meta.schema
            new = kind == "shard" and await _is_new(settings, clock, meta)
            if new and name != accept:
                await _check_new(settings, clock, meta, name, url)
            if not dry_run:
                await migrate_database(url, kind, clock)
                if new:
                    await shards.accept(settings.storage.directory, url, name, clock)
            row["after"] = max(meta.schema, SCHEMAS[kind])
        except MailError as error:
            row["problem"] = error.text
        rows.append(row)
    return rows


async def _expected(settings: Settings, clock: Clock) -> shards.Expectations | None:
    """Return what the directory expects; None while there is no directory."""
    url = settings.storage.directory
    if not (await inspect_database(url)).schema:
        return None
    found = [(name, one) for name, kind, one in databases(settings) if kind == "shard"]
    return await shards.expectations(url, found, clock)


async def _is_new(settings: Settings, clock: Clock, meta: Meta) -> bool:
    """Return whether the directory has never heard of a shard.

    One with tables is brought up to date even if the directory cannot be asked.
    """
    try:
        expected = await _expected(settings, clock)
    except MailError:
        if not meta.schema:
            raise
        return False
    return expected is None or expected.is_new(meta.uuid)


async def _check_new(
    settings: Settings, clock: Clock, meta: Meta, name: str, url: str
) -> None:
    """UNAVAILABLE for a shard that must not be made, or taken, without being asked."""
    expected = await _expected(settings, clock)
    if expected is None:
        return
    problem = expected.why_not(name, meta.uuid)
    readable = not problem and meta.schema == SCHEMAS["shard"]
    if readable and await shards.holds_accounts(url, name, clock):
        problem = (
            "holds accounts that the directory does not know; if it belongs here run: "
            f"mailserverd storage migrate --accept {name}"
        )
    if problem:
        raise MailError(Kind.UNAVAILABLE, problem)


# --- status ------------------------------------------------------------------------


async def status(
    settings: Settings, clock: Clock, stores: Stores | None = None
) -> list[Row]:
    """Return what is known of every database and of the blobs.

    Rows are {name, kind, engine, url, uuid, schema, size, accounts, problem}; what
    cannot be known is None, and URLs are without passwords.  With ``stores`` they
    say what the daemon has to say of them, too.
    """
    known = await _known(settings, clock, stores)
    opened = stores.shard_dbs if stores is not None else ()
    rows = await asyncio.gather(
        *(_database(*one, known) for one in databases(settings))
    )
    await asyncio.gather(*(_ask(row, _named(opened, row)) for row in rows))
    _find_copies(rows)
    return [*rows, *_missing(rows, known), await _blobs(settings.storage.blobs)]


async def _known(
    settings: Settings, clock: Clock, stores: Stores | None
) -> tuple[KnownShard, ...] | None:
    """Return what the directory expects; None when it cannot be asked."""
    try:
        if stores is not None:
            return await stores.directory.read(known_shards.known, 0, None)
        database = await open_database(
            settings.storage.directory, "directory", clock, name="directory"
        )
    except MailError:
        return None
    try:
        return await database.read(known_shards.known, 0, None)
    except MailError:
        return None
    finally:
        await database.close()


async def _database(
    name: str, kind: str, url: str, known: Sequence[KnownShard] | None
) -> Row:
    row: Row = {
        "name": name,
        "kind": kind,
        "engine": url.partition(":")[0],
        "url": shown(url),
        "uuid": None,
        "schema": None,
        "size": None,
        "accounts": None,
        "problem": "",
    }
    try:
        async with asyncio.timeout(ANSWER_LIMIT):
            meta = await inspect_database(url)
            row["schema"] = meta.schema
            row["uuid"] = meta.uuid.hex() or None
            row["size"] = await database_size(url)
            check_meta(meta, kind, name)
    except TimeoutError:
        row["problem"] = "no answer in time"
    except MailError as error:
        row["problem"] = error.text
        lost = [one for one in known or () if one.name == name and one.accounts]
        if isinstance(error, EmptyDatabase) and lost:
            row["problem"] = shards.lost_text(lost[0])
    if kind == "shard" and known is not None and row["uuid"]:
        found = {one.uuid.hex(): one.accounts for one in known}
        row["accounts"] = found.get(row["uuid"], 0)
        if row["uuid"] not in found:
            row["problem"] = row["problem"] or (
                "the directory does not know it; run: mailserverd storage migrate"
            )
    return row


def _named(opened: Sequence[Database], row: Row) -> Database | None:
    return next((one for one in opened if one.name == row["name"]), None)


async def _ask(row: Row, database: Database | None) -> None:
    """Add what the daemon's own connection to a database shows."""
    if database is None or row["problem"]:
        return
    try:
        async with asyncio.timeout(ANSWER_LIMIT):
            await database.read(accounts.exists, 0, None)
    except TimeoutError:
        row["problem"] = "the daemon gets no answer in time"
    except MailError as error:
        row["problem"] = f"the daemon cannot use it: {error.text}"
    else:
        if (seconds := database.stuck_for()) > STUCK:
            row["problem"] = f"a change has been waiting for {seconds:.0f} seconds"


def _find_copies(rows: Sequence[Row]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        if row["uuid"] in seen:
            row["problem"] = f"has the UUID of {seen[row['uuid']]}: one is a copy"
        elif row["uuid"]:
            seen[row["uuid"]] = row["name"]


def _missing(rows: Sequence[Row], known: Sequence[KnownShard] | None) -> list[Row]:
    """Return a row for each shard with accounts that is not configured."""
    there = {row["uuid"] for row in rows}
    down = {row["name"] for row in rows if row["uuid"] is None}
    return [
        {
            "name": f"{one.name or 'shard'} (missing)",
            "kind": "shard",
            "uuid": one.uuid.hex(),
            "accounts": one.accounts,
            "problem": "accounts live there, and it is not configured",
        }
        for one in known or ()
        if one.accounts and one.uuid.hex() not in there and one.name not in down
    ]


async def _blobs(url: str) -> Row:
    row: Row = {
        "name": "blobs",
        "kind": "blobs",
        "engine": url.partition(":")[0],
        "url": shown(url),
        "size": None,
        "problem": "",
    }
    try:
        async with asyncio.timeout(ANSWER_LIMIT * 4):
            row["size"] = await blobs_size(url)
    except TimeoutError:
        row["problem"] = "no answer in time"
    except MailError as error:
        row["problem"] = error.text
    return row
