"""Opening what is stored: one user at a time, all or nothing, closed in the end."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.app.offline import offline
from mailserverd.app.offload import ThreadOffload
from mailserverd.app.stores import data_lock, databases, make_missing, open_stores
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ports import SystemClock
from mailserverd.settings import read
from storage.engines import migrate_database
from storage.metadata.accounts import exists
from storage.metadata.sqlite_url import path_of
from tests.lib.daemon import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailserverd.settings import Settings
    from storage.api import Database

CLOCK = SystemClock()
GARBAGE = b"nothing like a database" * 500
TEXT = '[server]\nhostname = "mail.example.test"\ndata_dir = "data"\n'


@pytest.fixture
def settings(tmp_path: pathlib.Path) -> Settings:
    path = tmp_path / "mailserverd.toml"
    urls = [f'"sqlite:///{tmp_path}/data/shard-{number}.db"' for number in (0, 1)]
    path.write_text(f"{TEXT}[storage]\nshards = [{', '.join(urls)}]\n")
    return read(path)


def file(settings: Settings, number: int) -> pathlib.Path:
    """Return the file of the directory, a shard or the queue, in this order."""
    return pathlib.Path(path_of(databases(settings)[number][2]))


async def opened_and_closed(settings: Settings) -> None:
    stores = await open_stores(settings, CLOCK)
    assert len(stores.shards.databases) == 2
    await stores.close()


def test_the_data_is_locked_for_others(settings: Settings) -> None:
    with data_lock(settings) as base:
        program = (
            "import fcntl, sys; file = open(sys.argv[1])\n"
            "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
        )
        lock = str(base / "lock")
        done = subprocess.run(
            [sys.executable, "-c", program, lock], capture_output=True, check=False
        )
        assert b"BlockingIOError" in done.stderr
        with pytest.raises(MailError, match="in use by another"), data_lock(settings):
            pass
        with pytest.raises(MailError, match=r"control\.sock: it is starting"):
            asyncio.run(command(settings))
    with data_lock(settings):
        pass


async def command(settings: Settings) -> None:
    async with offline(settings) as handler:
        await handler("storage.status", {}, lambda _: None)


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "data").write_text("a file\n")
    path = tmp_path / "mailserverd.toml"
    path.write_text(TEXT)
    with (
        pytest.raises(MailError, match=str(tmp_path / "data")) as caught,
        data_lock(read(path)),
    ):
        pass
    assert caught.value.kind is Kind.FORBIDDEN


def test_databases_are_made_only_where_they_are_missing(settings: Settings) -> None:
    asyncio.run(make_missing(settings, CLOCK))
    before = [file(settings, number).read_bytes() for number in range(4)]
    asyncio.run(make_missing(settings, CLOCK))
    assert [file(settings, number).read_bytes() for number in range(4)] == before
    asyncio.run(opened_and_closed(settings))


@pytest.mark.parametrize("number", [0, 3])
def test_what_cannot_be_opened_leaves_the_rest_closed(
    settings: Settings, number: int
) -> None:
    """It is named, and can be tried again in the same process."""
    asyncio.run(make_missing(settings, CLOCK))
    path = file(settings, number)
    good = path.read_bytes()
    path.write_bytes(GARBAGE)
    with pytest.raises(MailError, match=str(path)) as caught:
        asyncio.run(opened_and_closed(settings))
    assert caught.value.kind is Kind.UNAVAILABLE
    path.write_bytes(good)
    asyncio.run(opened_and_closed(settings))


def spoil_as_garbage(path: pathlib.Path) -> None:
    path.write_bytes(GARBAGE)


def spoil_as_directory(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("spoil", [spoil_as_garbage, spoil_as_directory])
def test_a_shard_that_cannot_be_opened_is_waited_for(
    settings: Settings, spoil: Callable[[pathlib.Path], None], number: int
) -> None:
    """In its position, while the others are served."""
    asyncio.run(make_missing(settings, CLOCK))
    asyncio.run(opened_and_closed(settings))
    path = file(settings, number)
    good = path.read_bytes()
    spoil(path)

    async def works(database: Database) -> bool:
        with contextlib.suppress(MailError):
            return await database.read(exists, 1, None) is False
        return False

    async def main() -> None:
        stores = await open_stores(settings, CLOCK)
        try:
            down, up = stores.shard_dbs[number - 1], stores.shard_dbs[2 - number]
            assert await works(up)
            assert down.uuid in set(stores.directory.shards) - {up.uuid}
            with pytest.raises(MailError) as caught:
                await down.write(exists, 1, None)
            assert caught.value.kind is Kind.UNAVAILABLE
            if path.is_dir():
                path.rmdir()
            path.write_bytes(good)
            async with asyncio.timeout(10):
                while not await works(down):  # noqa: ASYNC110 - of a file
                    await asyncio.sleep(0.05)
        finally:
            await stores.close()

    asyncio.run(main())


def test_another_database_in_a_shard_s_place_stops_the_start(
    settings: Settings, tmp_path: pathlib.Path
) -> None:
    """It says what to run."""
    asyncio.run(make_missing(settings, CLOCK))
    path = file(settings, 2)
    good = path.read_bytes()
    asyncio.run(migrate_database(f"sqlite:///{tmp_path}/new.db", "shard", CLOCK))
    path.write_bytes((tmp_path / "new.db").read_bytes())
    with pytest.raises(MailError, match=r"shard-1.*storage migrate"):
        asyncio.run(opened_and_closed(settings))
    path.write_bytes(good)
    asyncio.run(opened_and_closed(settings))


def test_a_missing_database_is_never_made_by_the_daemon(settings: Settings) -> None:
    """An empty one in its place would be an empty server."""
    asyncio.run(make_missing(settings, CLOCK))
    file(settings, 1).write_bytes(b"")
    with pytest.raises(MailError, match="storage migrate"):
        asyncio.run(opened_and_closed(settings))


def test_commands_without_a_daemon_leave_nothing_open(settings: Settings) -> None:
    async def commands() -> Any:
        async with offline(settings, make=True) as handler:
            await handler("domain.add", {"domain": "example.test"}, lambda _: None)
            with pytest.raises(MailError) as caught:
                await handler("no.such", {}, lambda _: None)
            assert caught.value.kind is Kind.INVALID
            return await handler("domain.list", {}, lambda _: None)

    assert [row["domain"] for row in asyncio.run(commands())] == ["example.test"]
    asyncio.run(opened_and_closed(settings))


def test_offloaded_work_is_bounded_and_tells_its_errors() -> None:
    running, most, gate = 0, 0, threading.Lock()
    full = threading.Barrier(3, timeout=10)

    def work(_number: int) -> int:
        nonlocal running, most
        with gate:
            running += 1
            most = max(most, running)
        full.wait()
        with gate:
            running -= 1
        return 1

    def broken() -> None:
        raise LookupError("told")

    async def main() -> int:
        offload = ThreadOffload(3, "test")
        done = await asyncio.gather(*(offload(work, n) for n in range(9)))
        with pytest.raises(LookupError, match="told"):
            await offload(broken)
        offload.close()
        return sum(done)

    assert asyncio.run(main()) == 9
    assert most == 3


def test_the_packages_of_generic_names_are_ours() -> None:
    """``auth`` and ``storage`` could be anybody's: STYLE section 6, item 4."""
    program = "import auth, storage, protocols; print(auth.__file__, storage.__file__)"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert all(str(path).startswith(str(ROOT)) for path in shown)
