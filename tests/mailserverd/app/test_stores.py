"""Opening what is stored: one user at a time, all or nothing, closed in the end."""

from __future__ import annotations

import asyncio
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
from storage.metadata.sqlite_url import path_of
from tests.lib.daemon import ROOT

if TYPE_CHECKING:
    from mailserverd.settings import Settings

CLOCK = SystemClock()
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
    with data_lock(settings):
        pass


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


@pytest.mark.parametrize("number", range(4))
def test_what_cannot_be_opened_leaves_the_rest_closed(
    settings: Settings, number: int
) -> None:
    """It is named, and can be tried again in the same process."""
    asyncio.run(make_missing(settings, CLOCK))
    path = file(settings, number)
    good = path.read_bytes()
    path.write_bytes(b"nothing like a database" * 500)
    with pytest.raises(MailError, match=str(path)) as caught:
        asyncio.run(opened_and_closed(settings))
    assert caught.value.kind is Kind.UNAVAILABLE
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
