"""Units of the directory database, and that none of them reads whole tables."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.directory import (
    ACTIVE,
    APP_PASSWORD,
    DELETED,
    AddAccount,
    AddAlias,
    AddDomain,
    DkimKey,
    Lookup,
    SetCredential,
    Target,
)
from storage.metadata import (
    acceptances,
    aliases,
    directory,
    directory_read,
    queue_admin,
    queue_rows,
    queue_units,
)
from storage.metadata.sql import Sql
from tests.lib import databases

if TYPE_CHECKING:
    import pathlib
    import types
    from collections.abc import Awaitable, Callable

    from storage.api import Database

SHARD = b"s" * 16


def run(path: pathlib.Path, scenario: Callable[[Database], Awaitable[None]]) -> None:
    """Run a scenario on a directory that serves example.org."""

    async def whole() -> None:
        db = await databases.make(path, "directory")
        await db.write(directory.add_domain, 0, AddDomain("example.org"))
        await scenario(db)
        await db.close()

    asyncio.run(whole())


async def account(db: Database, local: str, domain: str = "example.org") -> int:
    """Make an account."""
    new = AddAccount(local, domain, SHARD, "hash")
    made = await db.write(directory.reserve_account, 0, new)
    record = await db.write(directory.activate_account, made, new)
    assert (record.account_id, record.state) == (made, ACTIVE)
    return made


def test_every_change_raises_the_version_and_stamps_the_account(
    place: pathlib.Path,
) -> None:
    async def scenario(db: Database) -> None:
        seen = 0

        async def changed() -> set[int]:
            nonlocal seen
            change = await db.read(directory_read.changes, 0, seen)
            assert change is not None
            assert change.version > seen
            seen = change.version
            return {row[0] for row in change.accounts}

        assert await changed() == set()
        one = await account(db, "one")
        two = await account(db, "two")
        assert await changed() == {one, two}
        assert await db.read(directory_read.changes, 0, seen) is None
        for unit, args in (
            (directory.set_credential, SetCredential(one, "h2")),
            (directory.set_credential, SetCredential(one, "h3", APP_PASSWORD, "p")),
            (directory.remove_credential, (APP_PASSWORD, "p")),
            (directory.set_state, "disabled"),
            (directory.set_shard, b"t" * 16),
            (directory.remove_account, None),
        ):
            await db.write(unit, one, args)
            assert await changed() == {one}, unit
        add: Any = AddAlias("a", "example.org", ("two@example.org",), send_as=True)
        for unit, args in (
            (aliases.add_alias, add),
            (aliases.remove_alias, ("a", "example.org")),
            (directory.set_postmaster, ("example.org", "two@example.org")),
        ):
            await db.write(unit, 0, args)
            assert await changed() == set(), unit

    run(place, scenario)


def test_credential_versions_never_come_again(place: pathlib.Path) -> None:
    async def scenario(db: Database) -> None:
        one = await account(db, "one")
        versions = set()
        for n in range(5):
            await db.write(directory.set_credential, one, SetCredential(one, f"h{n}"))
            login = await db.read(directory_read.login, 0, ("one", "example.org"))
            assert login is not None
            (credential,) = login.credentials
            assert credential.hash == f"h{n}"
            versions.add(credential.version)
        assert len(versions) == 5
        before = max(versions)
        args = (credential.credential_id, before, "rehashed")
        await db.write(directory.rehash, 0, args)
        stale = (credential.credential_id, before - 1, "too late")
        await db.write(directory.rehash, 0, stale)
        login = await db.read(directory_read.login_of, one, None)
        assert login is not None
        assert login.credentials[0].hash == "rehashed"
        assert login.credentials[0].version == before

    run(place, scenario)


def test_removed_accounts_keep_their_id_for_ever(place: pathlib.Path) -> None:
    async def scenario(db: Database) -> None:
        one = await account(db, "one")
        await db.write(directory.remove_account, one, None)
        await db.write(directory.mark_purged, one, None)
        two = await account(db, "one")
        assert two > one
        for unit in (directory.remove_account, directory.set_state):
            with pytest.raises(MailError) as caught:
                await db.write(unit, one, "active")
            assert caught.value.kind is Kind.NOT_FOUND
        record = await db.read(directory_read.account, one, None)
        assert record.state != DELETED

    run(place, scenario)


def test_a_lost_account_is_restored_under_its_id(place: pathlib.Path) -> None:
    """Ids go on behind it, and those between are never given out."""

    async def scenario(db: Database) -> None:
        one = await account(db, "one")
        for lost in (one + 5, one + 3):
            args = (f"u{lost}", "example.org", b"t" * 16)
            await db.write(directory.restore_account, lost, args)
            record = await db.read(directory_read.account, lost, None)
            assert (record.address, record.shard) == (f"u{lost}@example.org", b"t" * 16)
            assert record.state == "disabled"
            login = await db.read(directory_read.login, 0, (f"u{lost}", "example.org"))
            assert login is not None
            assert login.account == lost
            assert login.credentials == ()
            with pytest.raises(MailError):
                await db.write(directory.restore_account, lost, args)
        for args in (
            ("one", "example.org", b"t" * 16),
            ("new", "elsewhere.example", b"t" * 16),
        ):
            with pytest.raises(MailError):
                await db.write(directory.restore_account, 50, args)
        assert await db.read(directory.last_account, 0, None) == one + 5
        assert await account(db, "two") > one + 5
        records = await db.read(directory.list_accounts, 0, (0, 100))
        assert len(records) == 4

    run(place, scenario)


def test_domains_keep_keys_and_count_addresses(place: pathlib.Path) -> None:
    async def scenario(db: Database) -> None:
        keys = (DkimKey("a", "rsa", "p1", "t1"), DkimKey("b", "ed25519", "p2", "t2"))
        await db.write(directory.add_domain, 0, AddDomain("x.example", keys))
        await account(db, "one", "x.example")
        new = AddAlias("al", "x.example", ("one@x.example",), send_as=False)
        await db.write(aliases.add_alias, 0, new)
        rows = await db.read(directory.list_domains, 0, None)
        assert [(r.name, r.accounts, r.aliases, r.keys) for r in rows] == [
            ("example.org", 0, 0, ()),
            ("x.example", 1, 1, keys),
        ]
        await db.write(directory.remove_domain, 0, ("x.example", True))
        assert await db.read(directory_read.dkim_keys, 0, "x.example") == ()
        await db.write(directory.add_domain, 0, AddDomain("x.example"))
        assert await db.read(directory_read.dkim_keys, 0, "x.example") == ()

    run(place, scenario)


def test_resolving_agrees_with_a_naive_model(place: pathlib.Path) -> None:
    """Random aliases over ten names; the model expands a plain dict."""
    rng = random.Random(7)
    names = [f"n{i}" for i in range(10)]

    def model(graph: dict[str, list[str]], name: str, seen: set[str]) -> set[str]:
        if name in seen:
            return set()
        seen.add(name)
        if name not in graph:
            return {name}
        found: set[str] = set()
        return found.union(*(model(graph, target, seen) for target in graph[name]))

    async def scenario(db: Database) -> None:
        leaves = {await account(db, name): name for name in names[:4]}
        graph: dict[str, list[str]] = {}
        for _ in range(60):
            alias = rng.choice(names[4:])
            chosen = [t for t in rng.sample(names, 3) if t in graph or t in names[:4]]
            targets = tuple(f"{t}@example.org" for t in chosen)
            new = AddAlias(alias, "example.org", targets, send_as=True, replace=True)
            try:
                await db.write(aliases.add_alias, 0, new)
                graph[alias] = chosen
            except MailError as error:
                assert error.kind is Kind.INVALID
            for name in graph:
                found = await db.read(
                    directory_read.resolve, 0, Lookup(name, "example.org")
                )
                reached = {leaves[t.account] for t in found.targets} if found else set()
                assert reached == model(graph, name, set())
        assert len(graph) > 3
        for number, name in leaves.items():
            own = await db.read(directory_read.sender_addresses, number, None)
            wanted = {a for a in graph if name in model(graph, a, set())} | {name}
            assert own == {f"{a}@example.org" for a in wanted}

    run(place, scenario)


def test_a_large_alias_is_refused_not_cut(place: pathlib.Path) -> None:
    async def scenario(db: Database) -> None:
        number = await account(db, "one")
        many = tuple(f"u{n}@else.example" for n in range(201))
        with pytest.raises(MailError) as caught:
            new = AddAlias("big", "example.org", many, send_as=False)
            await db.write(aliases.add_alias, 0, new)
        assert caught.value.kind is Kind.INVALID
        for n in range(4):
            part = (*(f"u{n}-{m}@else.example" for m in range(199)), "one@example.org")
            new = AddAlias(f"part{n}", "example.org", part, send_as=False)
            await db.write(aliases.add_alias, 0, new)
        parts = tuple(f"part{n}@example.org" for n in range(4))
        new = AddAlias("all", "example.org", parts, send_as=False)
        await db.write(aliases.add_alias, 0, new)
        found = await db.read(directory_read.resolve, 0, Lookup("part1", "example.org"))
        assert found is not None
        assert found.targets == (Target(number),)
        assert len(found.forwards) == 199
        with pytest.raises(MailError) as caught:
            await db.read(directory_read.resolve, 0, Lookup("all", "example.org"))
        assert caught.value.kind is Kind.LIMIT

    run(place, scenario)


# --- plans -------------------------------------------------------------------

WHOLE_TABLE_ON_PURPOSE = {
    "aliases.ALL_TARGETS",  # alias list
    "directory.BY_SHARD",  # account add
    "directory.DOMAINS",  # domain list
    "directory.UNFINISHED",  # at start
    "directory.LAST_ACCOUNT",  # ends at the last account
    "directory_read.FIRST",  # ends at the first account
    "directory_read.PLACES",  # at start
}


async def opened_and_closed(path: pathlib.Path, kind: str) -> None:
    await (await databases.make(path, kind)).close()


def statements(*modules: types.ModuleType) -> dict[str, str]:
    """Return every statement of some modules, by name."""
    found = {}
    for module in modules:
        for name, value in vars(module).items():
            for way, one in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(one, Sql):
                    module_name = module.__name__.rpartition(".")[2]
                    found[f"{module_name}.{name} {way}".strip()] = one.sqlite
    return found


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("directory", (directory, directory_read, aliases)),
        ("queue", (queue_rows, queue_units, queue_admin, acceptances)),
    ],
)
def test_statements_use_indexes(
    kind: str, modules: tuple[types.ModuleType, ...], tmp_path: pathlib.Path
) -> None:
    asyncio.run(opened_and_closed(tmp_path, kind))
    with contextlib.closing(sqlite3.connect(tmp_path / f"{kind}.db")) as connection:
        scans = {}
        for name, sql in statements(*modules).items():
            names = dict.fromkeys(("busy", "seen", "positions", "numbers"), b"[]")
            plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", _Anything(names))
            lines = [row[3] for row in plan]
            bad = [
                line
                for line in lines
                if line.startswith("SCAN") and "json_each" not in line
                if "CONSTANT" not in line and line != "SCAN new"  # a row of values
            ]
            if bad:
                scans[name] = bad
    unexpected = {
        name: lines
        for name, lines in scans.items()
        if name.split()[0] not in WHOLE_TABLE_ON_PURPOSE and not name.endswith(" all")
    }
    assert unexpected == {}


class _Anything(dict[str, object]):
    def __missing__(self, key: str) -> object:
        return 1
