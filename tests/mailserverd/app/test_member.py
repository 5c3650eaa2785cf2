"""What processes do when their supervisor says so, in one process here."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from typing import TYPE_CHECKING, TypeAlias

import pytest

from mailserverd.app import background, worker
from mailserverd.app.background import Background
from mailserverd.app.member import Common
from mailserverd.app.stores import make_missing
from mailserverd.app.worker import Worker
from mailserverd.core.ports import SystemClock
from mailserverd.core.sockets import private_directory
from mailserverd.core.tally import Table
from mailserverd.net import control
from mailserverd.net.listeners import Shared
from mailserverd.settings import Listener, read
from storage.metadata import leases

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from mailserverd.settings import Settings

    Pair: TypeAlias = tuple[Worker, Background]
    Roles: TypeAlias = Callable[[Settings, Shared], AbstractAsyncContextManager[Pair]]

CLOCK = SystemClock()
TEXT = '[server]\nhostname = "mail.example.test"\ndata_dir = "data"\nworkers = 1\n'


def common_of(
    settings: Settings, name: str, base: pathlib.Path, bound: Shared
) -> Common:
    """Return what the supervisor, which has ``bound``, gives a process."""
    sockets = Shared()
    give(bound, sockets, settings)
    number = int(name == "background")
    return Common(
        settings=settings,
        name=name,
        number=number,
        base=base,
        sockets=sockets,
        tally=Table(2).column(number),
        control=control.bind(base / "control.sock") if number else None,
    )


def give(bound: Shared, sockets: Shared, settings: Settings) -> None:
    for one in settings.listener:
        for sock in bound.take(one.address):
            sockets.add(one.address, sock)


def free() -> Listener:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    return Listener(protocol="smtp", address=address)


async def accepts(listener: Listener) -> bool:
    host, _, port = listener.address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


@pytest.fixture
def roles(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Roles:
    """Open a worker and the background process, and end them as a supervisor does."""
    monkeypatch.setattr("os.nice", lambda _: 0)
    for module in (worker, background):
        monkeypatch.setattr(module, "collect_less", lambda: None)
    base = tmp_path / "data"

    @contextlib.asynccontextmanager
    async def opened(settings: Settings, bound: Shared) -> AsyncIterator[Pair]:
        base.mkdir()
        private_directory(base / "run")
        await make_missing(settings, CLOCK)
        commons = [
            common_of(settings, name, base, bound)
            for name in ("worker-0", "background")
        ]
        pair = Worker(commons[0], None), Background(commons[1], None)
        await asyncio.gather(*(role.open() for role in pair))
        try:
            yield pair
        finally:
            for role in pair[::-1]:
                await role.drain()
            for role in pair[::-1]:
                await role.close()
            for common in commons:
                common.sockets.keep(())

    return opened


def test_settings_that_come_before_serving_hold(
    tmp_path: pathlib.Path, roles: Roles
) -> None:
    """As they do when a process was just replaced."""
    (tmp_path / "mailserverd.toml").write_text(TEXT)
    old, new = free(), free()
    settings = dataclasses.replace(read(tmp_path / "mailserverd.toml"), listener=(old,))
    outbound = dataclasses.replace(settings.outbound, concurrency=7)
    fresh = dataclasses.replace(settings, listener=(new,), outbound=outbound)

    async def main() -> None:
        bound = Shared()
        bound.bind((old.address, new.address))
        async with roles(settings, bound) as pair:
            for role in pair:
                sockets = role._common.sockets
                give(bound, sockets, fresh)
                await role.apply(fresh)
                sockets.keep((new.address,))
                await role.serve()
                assert role.graph.runner.settings.concurrency == 7
            bound.keep((new.address,))
            assert await accepts(new)
            assert not await accepts(old)
        bound.keep(())

    asyncio.run(main())


def test_no_other_node_takes_over_while_attempts_end(
    tmp_path: pathlib.Path, roles: Roles
) -> None:
    """It would begin them once more."""
    (tmp_path / "mailserverd.toml").write_text(TEXT)
    taken: list[int | None] = []

    async def main() -> None:
        async with roles(read(tmp_path / "mailserverd.toml"), Shared()) as (_, working):
            graph, begun = working.graph, asyncio.Event()

            async def take() -> None:
                args = ("queue", b"another node", 15.0)
                taken.append(await graph.stores.queue_db.write(leases.take, 0, args))

            async def run() -> None:
                begun.set()
                await asyncio.Event().wait()

            async def attempt() -> None:
                await asyncio.sleep(0.3)
                await take()

            graph.nodes = True
            graph.runner.run = run  # type: ignore[method-assign]
            await working.serve()
            await begun.wait()
            await take()
            under_way = asyncio.create_task(attempt())
            graph.runner._running[under_way] = None  # type: ignore[assignment]
        assert taken == [None, None]

    asyncio.run(main())
