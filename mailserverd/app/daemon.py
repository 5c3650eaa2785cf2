"""The life of the daemon: open, listen, serve, reload, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from mailserverd.app.commands import Commands
from mailserverd.app.fronts import Fronts
from mailserverd.app.graph import build
from mailserverd.app.stores import data_lock, open_stores
from mailserverd.config.load import ConfigError
from mailserverd.core import log as logs
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.ports import SystemClock
from mailserverd.net import control, systemd
from mailserverd.net.listeners import ListenError
from mailserverd.net.tls import CertificateError
from mailserverd.settings import Settings, read

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable

    from mailserverd.app.graph import Graph

log = get_logger("daemon")
GC_THRESHOLDS = (20_000, 20, 20)  # measured: 15-25 % less CPU per message
AT_START = (  # settings that services keep as they were at the start
    "storage",
    "dns",
    "server.data_dir",
    "server.hostname",
    "limits.password_memory",
)
CERTIFICATE_POLL = 30.0  # seconds between looks at the certificate files


async def run(settings: Settings, config: str, reactor: Any) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status."""
    os.umask(0o077)
    logs.configure(settings.server.log_level, settings.server.log_format)
    clock = SystemClock()
    with data_lock(settings) as base:
        _fresh_spool(base / "spool")
        async with contextlib.AsyncExitStack() as stack:
            stores = await open_stores(settings, clock)
            stack.push_async_callback(stores.close)
            graph = build(settings, stores, clock)
            stack.push_async_callback(graph.close)
            await graph.recover()
            daemon = Daemon(settings, config, graph, reactor)
            stack.push_async_callback(daemon.stop_tasks)
            await daemon.serve(base)
    log.info("stopped")
    return 0


def _fresh_spool(spool: pathlib.Path) -> None:
    """Messages that were arriving when a daemon died were never acknowledged."""
    spool.mkdir(exist_ok=True, mode=0o700)
    for left in spool.iterdir():
        left.unlink()


class Daemon:
    """A running instance: signals, background tasks and the control socket."""

    def __init__(
        self, settings: Settings, config: str, graph: Graph, reactor: Any
    ) -> None:
        self._started = self._settings = settings
        self._config = config
        self._graph = graph
        self._stopping = asyncio.Event()
        self._changing = asyncio.Lock()  # what listens: opened, reloaded, drained
        self._tasks: list[asyncio.Task[None]] = []
        self._commands = Commands(settings, graph)
        try:
            self._fronts = Fronts(graph, settings, reactor)
        except CertificateError as error:
            raise MailError(Kind.INVALID, f"certificate: {error}") from error

    async def serve(self, base: pathlib.Path) -> None:
        """Listen, be ready, wait for the end, drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._start("reload", self.reload))
        server = await control.serve(base / "control.sock", self._command)
        try:
            async with self._changing:
                await self._fronts.open(self._settings)
            for name, work in self._graph.background().items():
                self._spawn(name, work)
            self._spawn("certificates", self._watch_certificates)
            self._spawn("watchdog", _watchdog)
            _collect_less()
            systemd.notify("READY=1")
            log.info("ready", pid=os.getpid(), hostname=self._settings.server.hostname)
            await self._stopping.wait()
        except ListenError as error:
            raise MailError(Kind.UNAVAILABLE, str(error)) from error
        finally:
            self._stopping.set()
            systemd.notify("STOPPING=1")
            log.info("stopping")
            server.close()
            (base / "control.sock").unlink(missing_ok=True)
            async with self._changing:
                await self._fronts.drain(self._settings.server.drain)

    async def reload(self) -> None:
        """Read the configuration again; a faulty one is logged and changes nothing."""
        async with self._changing:
            if self._stopping.is_set():
                return
            systemd.notify("RELOADING=1")
            try:
                fresh = read(self._config)
                await self._fronts.apply(fresh)
            except ConfigError as error:
                for problem in error.problems:
                    log.error("config-refused", problem=str(problem))  # noqa: TRY400
            except (CertificateError, ListenError) as error:
                log.error("reload-failed", error=str(error))  # noqa: TRY400
            else:
                self._warn_of_restart(fresh)
                logs.configure(fresh.server.log_level, fresh.server.log_format)
                self._settings = fresh
                log.info("reloaded")
            systemd.notify("READY=1")

    def _warn_of_restart(self, fresh: Settings) -> None:
        changed = [
            name
            for name in AT_START
            if attrgetter(name)(self._started) != attrgetter(name)(fresh)
        ]
        if changed:
            log.warning("restart-needed", settings=changed)

    async def stop_tasks(self) -> None:
        """End the background tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _command(
        self,
        command: str,
        args: dict[str, Any],
        progress: Callable[[dict[str, Any]], None],
    ) -> Any:
        return await self._commands.run(command, args, progress)

    def _start(
        self, name: str, work: Callable[[], Awaitable[None]]
    ) -> Callable[[], None]:
        return lambda: self._spawn(name, work)

    def _spawn(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(asyncio.create_task(_lasting(name, work), name=name))

    async def _watch_certificates(self) -> None:
        while True:
            await asyncio.sleep(CERTIFICATE_POLL)
            if self._fronts.certificates is not None:  # a reload may bring them
                self._fronts.certificates.reload_if_changed()


def _collect_less() -> None:
    """Leave out of every collection what lives as long as the daemon."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    gc.enable()


async def _lasting(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run background work; one that fails is logged and started again."""
    pause = 1.0
    while True:
        try:
            return await work()
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("task-failed", task=name)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 60.0)


async def _watchdog() -> None:
    interval = systemd.watchdog_interval()
    while interval:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(interval)
