"""The promises of ``Database`` and ``MetadataStore``, on every engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Access, system
from storage.directory import AddDomain
from storage.metadata import directory, directory_read
from storage.metadata.shards import Shards
from tests.lib import databases

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable

    from storage.api import Database, Tx

ENGINES = ["sqlite"]
Scenario = Any


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Scenario:
    """Run a scenario on new databases (of the directory's kind) of each engine."""

    def runner(scenario: Callable[..., Awaitable[None]], count: int = 1) -> None:
        async def whole() -> None:
            assert request.param == "sqlite"
            opened = [
                databases.make(tmp_path, "directory", name=f"db-{n}")
                for n in range(count)
            ]
            async with asyncio.timeout(30):
                await scenario(*opened)
                for database in opened:
                    await database.close()

        asyncio.run(whole())

    return runner


def add(tx: Tx, _account: int, name: str) -> float:
    """Add a domain; a unit like any other."""
    directory.add_domain(tx, 0, AddDomain(name))
    return tx.now


def add_then_refuse(tx: Tx, _account: int, name: str) -> None:
    """Add a domain, then refuse."""
    add(tx, 0, name)
    raise MailError(Kind.OVER_QUOTA, "full", limit=5)


def names(tx: Tx, _account: int, _args: None) -> list[str]:
    """Return all domains in order of creation, twice from one snapshot."""
    first = [r.name for r in directory.list_domains(tx, 0, None)]
    assert first == [r.name for r in directory.list_domains(tx, 0, None)]
    return first


def test_reads_include_every_write_that_returned(run: Scenario) -> None:
    async def scenario(db: Database) -> None:
        async def one(n: int) -> None:
            await db.write(add, 0, f"d{n}.example")
            assert f"d{n}.example" in await db.read(names, 0, None)
            assert await db.read(directory_read.is_domain, 0, f"d{n}.example")

        await asyncio.gather(*(one(n) for n in range(30)))

    run(scenario)


def test_a_refusal_undoes_its_unit_and_reaches_its_caller_whole(run: Scenario) -> None:
    async def scenario(db: Database) -> None:
        good = [db.write(add, 0, f"d{n}.example") for n in range(5)]
        bad = db.write(add_then_refuse, 0, "bad.example")
        found = await asyncio.gather(*good, bad, return_exceptions=True)
        error = found[-1]
        assert isinstance(error, MailError)
        assert (error.kind, error.text) == (Kind.OVER_QUOTA, "full")
        assert error.details == {"limit": 5}
        assert len(await db.read(names, 0, None)) == 5

    run(scenario)


def test_units_run_in_the_order_of_one_caller(run: Scenario) -> None:
    async def scenario(db: Database) -> None:
        tasks = [
            asyncio.create_task(db.write(add, 0, f"d{n}.example")) for n in range(50)
        ]
        times = await asyncio.gather(*tasks)
        assert times == sorted(times)
        versions = await db.read(directory_read.changes, 0, 0)
        assert versions is not None
        assert versions.version == 50

    run(scenario)


def test_readers_see_whole_transactions_while_others_write(run: Scenario) -> None:
    async def scenario(db: Database) -> None:
        writes = [db.write(add, 0, f"d{n}.example") for n in range(100)]
        reads = [db.read(names, 0, None) for _ in range(20)]
        await asyncio.gather(*writes, *reads)

    run(scenario)


def test_a_closed_database_is_unavailable(run: Scenario) -> None:
    async def scenario(db: Database) -> None:
        pending = asyncio.create_task(db.write(add, 0, "last.example"))
        await asyncio.sleep(0)
        await db.close()
        await pending
        for call in (db.write(add, 0, "x.example"), db.read(names, 0, None)):
            with pytest.raises(MailError) as caught:
                await call
            assert caught.value.kind is Kind.UNAVAILABLE

    run(scenario)


def test_shards_send_each_account_to_its_database(run: Scenario) -> None:
    async def scenario(*opened: Database) -> None:
        def locate(account: int) -> int:
            if account > 8:
                raise MailError(Kind.NOT_FOUND, "no such account")
            return account % 4

        store = Shards(opened, locate)
        await asyncio.gather(
            *(store.write(system(n), add, f"d{n}.example") for n in range(8))
        )
        for n in range(4):
            found = await store.read(Access(1, n), names, None)
            assert sorted(found) == [f"d{n}.example", f"d{n + 4}.example"]
            assert store.shard_of(n + 4) == n
        for call in (
            store.read(system(9), names, None),
            store.write(system(9), add, "x.example"),
        ):
            with pytest.raises(MailError) as caught:
                await call
            assert caught.value.kind is Kind.NOT_FOUND
        await opened[1].close()  # one that is down concerns its own accounts alone
        with pytest.raises(MailError) as caught:
            await store.read(system(1), names, None)
        assert caught.value.kind is Kind.UNAVAILABLE
        assert len(await store.read(system(2), names, None)) == 2
        await store.close()

    run(scenario, 4)
