"""What processes do when their supervisor says so, in one process here."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    import pathlib

    import pytest

    from mailserverd.settings import Settings

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


def test_settings_that_come_before_serving_hold(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do when a process was just replaced."""
    monkeypatch.setattr("os.nice", lambda _: 0)
    for module in (worker, background):
        monkeypatch.setattr(module, "collect_less", lambda: None)
    (tmp_path / "mailserverd.toml").write_text(TEXT)
    old, new = free(), free()
    settings = dataclasses.replace(read(tmp_path / "mailserverd.toml"), listener=(old,))
    outbound = dataclasses.replace(settings.outbound, concurrency=7)
    fresh = dataclasses.replace(settings, listener=(new,), outbound=outbound)
    base = tmp_path / "data"

    async def main() -> None:
        base.mkdir()
        private_directory(base / "run")
        await make_missing(settings, CLOCK)
        bound = Shared()
        bound.bind((old.address, new.address))
        commons = [
            common_of(settings, name, base, bound)
            for name in ("worker-0", "background")
        ]
        serving, working = Worker(commons[0], None), Background(commons[1], None)
        await asyncio.gather(serving.open(), working.open())
        try:
            for role, common in zip((serving, working), commons, strict=True):
                give(bound, common.sockets, fresh)
                await role.apply(fresh)
                common.sockets.keep((new.address,))
                await role.serve()
                assert role.graph.runner.settings.concurrency == 7
            bound.keep((new.address,))
            assert await accepts(new)
            assert not await accepts(old)
        finally:
            for role in (working, serving):
                await role.drain()
            for role in (working, serving):
                await role.close()
            bound.keep(())
            for common in commons:
                common.sockets.keep(())

    asyncio.run(main())
