"""The life of the daemon: open, listen, serve, reload, drain."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from mailserverd.app.commands import Commands
from mailserverd.app.fronts import Fronts
from mailserverd.app.graph import build
from mailserverd.app.stores import data_lock, open_stores
from mailserverd.app.tasks import Tasks, collect_less, fresh_spool
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
    from collections.abc import Callable

    from mailserverd.app.graph import Graph

log = get_logger("daemon")
AT_START = (  # settings that services keep as they were at the start
    "storage",
    "dns",
    "server.data_dir",
    "server.workers",
    "server.hostname",
    "limits.password_memory",
)


async def run(settings: Settings, config: str, reactor: Any) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status."""
    os.umask(0o077)
    logs.configure(settings.server.log_level, settings.server.log_format)
    clock = SystemClock()
    with data_lock(settings) as base:
        fresh_spool(base / "spool")
        async with contextlib.AsyncExitStack() as stack:
            stores = await open_stores(settings, clock)
            stack.push_async_callback(stores.close)
            graph = build(settings, stores, clock)
            stack.push_async_callback(graph.close)
            await graph.recover()
            daemon = Daemon(settings, config, graph, reactor)
            stack.push_async_callback(daemon.tasks.stop)
            stack.push_async_callback(graph.runner.rest)
            await daemon.serve(base)
    log.info("stopped")
    return 0


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
        self.tasks = Tasks()
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
        loop.add_signal_handler(
            signal.SIGHUP, lambda: self.tasks.spawn("reload", self.reload)
        )
        sock = control.bind(base / "control.sock")
        server = await control.serve(sock, self._command)
        try:
            async with self._changing:
                await self._fronts.open(self._settings)
            graph = self._graph
            for name, work in (graph.beside() | graph.background()).items():
                self.tasks.spawn(name, work)
            self.tasks.spawn("certificates", self._fronts.watch_certificates)
            self.tasks.spawn("watchdog", _watchdog)
            collect_less()
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
                warn_of_restart(self._started, fresh)
                logs.configure(fresh.server.log_level, fresh.server.log_format)
                self._settings = fresh
                log.info("reloaded")
            systemd.notify("READY=1")

    async def _command(
        self,
        command: str,
        args: dict[str, Any],
        progress: Callable[[dict[str, Any]], None],
    ) -> Any:
        return await self._commands.run(command, args, progress)


def warn_of_restart(started: Settings, fresh: Settings) -> None:
    """Name what a reload cannot change."""
    changed = [
        name
        for name in AT_START
        if attrgetter(name)(started) != attrgetter(name)(fresh)
    ]
    if changed:
        log.warning("restart-needed", settings=changed)


def kept(started: Settings, fresh: Settings) -> Settings:
    """Return new settings with those of the start where a restart is needed.

    A process that is forked later must work on the databases that the others have.
    """
    changes: dict[str, Any] = {}
    for name in AT_START:
        table, _, key = name.partition(".")
        value = getattr(started, table)
        if key:
            now = changes.get(table, getattr(fresh, table))
            value = dataclasses.replace(now, **{key: getattr(value, key)})
        changes[table] = value
    return dataclasses.replace(fresh, **changes)


async def _watchdog() -> None:
    interval = systemd.watchdog_interval()
    while interval:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(interval)
