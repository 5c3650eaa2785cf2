"""A database that is waited for: UNAVAILABLE, then itself, never another one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.metadata import unavailable
from storage.metadata.accounts import exists
from storage.metadata.unavailable import AbsentDatabase
from tests.lib import databases
from tests.lib.waiting import until

if TYPE_CHECKING:
    import pathlib

    from storage.api import Database


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unavailable, "FIRST", 0.01)


def test_what_is_there_again_is_used(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        real = await databases.make(tmp_path, "shard")
        tries = 0

        async def open_again() -> Database:
            nonlocal tries
            tries += 1
            if tries < 4:
                raise MailError(Kind.UNAVAILABLE, f"not yet: {min(tries, 2)}")
            return real

        absent = AbsentDatabase("shard-0", real.uuid, open_again, "not yet: 1")
        absent.start()
        for run in (absent.read, absent.write):
            with pytest.raises(MailError) as caught:
                await run(exists, 1, None)
            assert caught.value.kind is Kind.UNAVAILABLE
        assert absent.stuck_for() == 0
        await until(lambda: tries == 4)
        assert await absent.read(exists, 1, None) is False
        await absent.close()
        with pytest.raises(MailError, match="shutting down"):
            await real.read(exists, 1, None)

    asyncio.run(main())


def test_another_database_in_its_place_is_closed_again(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        made: list[Database] = []

        async def open_again() -> Database:
            made.append(await databases.make(tmp_path, "shard", name="other"))
            return made[-1]

        absent = AbsentDatabase("shard-0", bytes(16), open_again, "gone")
        absent.start()
        await until(lambda: len(made) > 1)  # the first had let go of its file
        with pytest.raises(MailError, match="unavailable"):
            await absent.read(exists, 1, None)
        await absent.close()

    asyncio.run(main())


def test_an_end_while_it_is_waited_for() -> None:
    async def main() -> None:
        async def open_again() -> Database:
            raise AssertionError("never")

        absent = AbsentDatabase("shard-0", bytes(16), open_again, "gone")
        await absent.close()
        absent.start()
        await absent.close()

    asyncio.run(main())
