"""The process that starts all others: binds, forks, replaces, reloads, stops.

It has no event loop, no threads and no databases, so that nothing of what it does can
hang or crash.  Everything is imported before it forks, and frozen: the processes
share that memory.  Listening sockets stay here, too, so that a connection that
arrives while a worker is replaced waits and is served.
"""

from __future__ import annotations

import enum
import gc
import importlib
import os
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

from mailserverd.app import orders
from mailserverd.app.background import Background
from mailserverd.app.child import Child, State
from mailserverd.app.daemon import kept, warn_of_restart
from mailserverd.app.fronts import certificates
from mailserverd.app.member import Common, obey
from mailserverd.app.stores import data_lock, databases
from mailserverd.app.tasks import fresh_spool
from mailserverd.app.worker import Worker
from mailserverd.config.load import ConfigError
from mailserverd.core import log as logs
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.sockets import private_directory
from mailserverd.core.tally import Table
from mailserverd.net import control, systemd
from mailserverd.net.listeners import ListenError, Shared
from mailserverd.net.tls import CertificateError
from mailserverd.settings import read
from storage.engines import preload

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable, Iterable

    from mailserverd.net.channel import Channel
    from mailserverd.settings import Settings

    Start = Callable[[Callable[[Any], Awaitable[int]]], int]

log = get_logger("supervisor")
BACKGROUND = "background"
RELOAD_LIMIT = 30.0  # seconds that processes may take to apply new settings
PING = 5.0  # seconds between questions whether processes still answer
HANG = 30.0  # seconds without an answer after which a process is killed
MARGIN = 10.0  # seconds beyond server.drain until a process is killed
LATER = 3600.0  # seconds: nothing is due
MODULES = (  # what processes import when they first need it
    "uvloop",
    "twisted.internet.asyncioreactor",
    "asyncio.selector_events",
)


class Phase(enum.Enum):
    """How far the daemon is."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"  # all finish what is under way
    CLOSING_BACKGROUND = "closing-background"  # it needs the others' databases
    CLOSING = "closing"


def run(settings: Settings, config: str, start: Start) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status.

    ``start`` runs a task on a reactor, in a new process.
    """
    os.umask(0o077)
    logs.configure(settings.server.log_level, settings.server.log_format)
    with data_lock(settings) as base:
        fresh_spool(base / "spool")
        private_directory(base / "run")
        return Supervisor(settings, config, start, base).serve()


class Supervisor:
    """All processes, and the sockets that they share."""

    def __init__(
        self, settings: Settings, config: str, start: Start, base: pathlib.Path
    ) -> None:
        self._started = self._settings = settings
        self._config = config
        self._start = start
        self._base = base
        self._phase = Phase.STARTING
        self._sockets = Shared()
        self._control: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._signals: list[int] = []
        workers = [f"worker-{n}" for n in range(settings.server.processes)]
        self._children = [Child(name) for name in (*workers, BACKGROUND)]
        self._table = Table(len(self._children))
        self._applying: set[str] = set()  # processes that have not answered
        self._reload_until = LATER
        self._reload_again = False
        self._problem = ""
        self._deadline = float("inf")  # when what has not ended is killed
        self._interval = min(systemd.watchdog_interval() or PING, PING)
        self._ping_at = float("inf")
        self._status = os.EX_OK

    # --- the life -------------------------------------------------------------

    def serve(self) -> int:
        """Start everything; replace what ends; until all has ended."""
        self._listen()
        self._take_signals()
        storage = self._settings.storage
        engines = [url for _, _, url in databases(self._settings)]
        preload([*engines, storage.blobs, storage.search, storage.cache])
        for name in MODULES:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()
        gc.enable()
        try:
            for child in self._children:
                self._fork(child)
            while any(child.pid for child in self._children) or self._running:
                self._turn()
        finally:
            for child in self._children:
                child.kill()
            self._unlink_control()
        log.info("stopped")
        return self._status

    @property
    def _running(self) -> bool:
        return self._phase in {Phase.STARTING, Phase.SERVING}

    def _listen(self) -> None:
        """Bind everything; MailError as the only process of a daemon would raise."""
        try:
            certificates(self._settings)
            self._sockets.bind(one.address for one in self._settings.listener)
        except CertificateError as error:
            raise MailError(Kind.INVALID, f"certificate: {error}") from error
        except ListenError as error:
            raise MailError(Kind.UNAVAILABLE, str(error)) from error
        self._control = control.bind(self._base / "control.sock")

    def _take_signals(self) -> None:
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda signum, _: self._signals.append(signum))

    def _turn(self) -> None:
        """Wait for something to happen, and act."""
        for key, _ in self._selector.select(self._patience()):
            if key.data is None:
                self._drain_wake()
            else:
                self._hear(key.data)
        signals, self._signals = self._signals, []
        for number in signals:
            if number in {signal.SIGTERM, signal.SIGINT}:
                self._stop()
            elif number == signal.SIGHUP:
                self._reload()
        for child in self._children:
            status = child.reap()
            if status is not None:
                self._ended(child, status)
        self._look_at_clock()

    def _drain_wake(self) -> None:
        try:
            while self._wake.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _patience(self) -> float:
        now = time.monotonic()
        due = [self._deadline, self._ping_at, now + LATER]
        if self._applying:
            due.append(self._reload_until)
        if self._running:
            due += [c.not_before for c in self._children if c.state is State.GONE]
        return max(min(due) - now, 0.0)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if self._running:
            for child in self._children:
                if child.state is State.GONE and child.not_before <= now:
                    self._fork(child)
        if now >= self._ping_at:
            self._ping(now)
        if self._applying and now >= self._reload_until:
            log.error("reload-unanswered", processes=sorted(self._applying))
            self._problem = "no answer"
            self._applying.clear()
            self._reloaded()
        if now >= self._deadline:
            self._kill_all()

    # --- processes ------------------------------------------------------------

    def _fork(self, child: Child) -> None:
        self._have_run_directory()
        child.start(lambda channel: self._body(child, channel), time.monotonic())
        assert child.channel is not None
        self._selector.register(child.channel, selectors.EVENT_READ, child)
        log.info("process-started", name=child.name, pid=child.pid)

    def _have_run_directory(self) -> None:
        """Begin anew together when somebody removed it: processes that live could not
        be found in another, and owners there would not know of them."""
        place = self._base / "run"
        if not place.is_dir():
            log.error("run-directory-gone", path=str(place))
            private_directory(place)
            for child in self._children:
                if child.pid:
                    os.kill(child.pid, signal.SIGKILL)

    def _body(self, child: Child, channel: Channel) -> int:
        """In the new process: let go of what is the supervisor's, and work."""
        self._selector.close()
        self._wake.close()
        self._woken.close()
        for other in self._children:
            if other.channel is not None:
                other.channel.close()
        number = self._children.index(child)
        common = Common(
            settings=self._settings,
            name=child.name,
            number=number,
            base=self._base,
            sockets=self._sockets,
            tally=self._table.column(number),
            control=self._control,
        )
        kind = Background if child.name == BACKGROUND else Worker

        async def work(reactor: Any) -> int:
            return await obey(channel, kind(common, reactor), common)

        return self._start(work)

    def _hear(self, child: Child) -> None:
        """Act on what a process says."""
        assert child.channel is not None
        try:
            received = child.channel.receive()
        except BlockingIOError:
            return
        if received is None:  # it has ended, or is about to
            self._selector.unregister(child.channel)
            return
        match received[0]:
            case orders.Ready():
                child.state = State.READY
                self._begin(child)
            case orders.Failed(error):
                self._failed(child, error)
            case orders.Serving():
                child.state = State.SERVING
                self._all_serving()
            case orders.Pong(number):
                child.ponged = number
            case orders.Applied(problem):
                self._applied(child, problem)
            case orders.Drained():
                child.state = State.DRAINED
                self._all_drained()

    def _begin(self, child: Child) -> None:
        """Serve once everything is open; a replacement does at once."""
        if self._phase is Phase.SERVING:
            child.send(orders.Serve())
        elif self._phase is Phase.STARTING and all(
            one.state is State.READY for one in self._children
        ):
            for one in self._children:
                one.send(orders.Serve())

    def _all_serving(self) -> None:
        if self._phase is Phase.STARTING and all(
            one.state is State.SERVING for one in self._children
        ):
            self._phase = Phase.SERVING
            self._ping_at = time.monotonic() + self._interval
            systemd.notify("READY=1")
            server = self._settings.server
            log.info(
                "ready",
                pid=os.getpid(),
                hostname=server.hostname,
                workers=server.processes,
            )
            self._reload_if_asked()

    def _failed(self, child: Child, error: MailError) -> None:
        if self._phase is Phase.STARTING:
            raise error
        log.error("process-cannot-start", name=child.name, error=str(error))

    def _ended(self, child: Child, status: int) -> None:
        if child.channel is not None and child.channel in self._selector.get_map():
            self._selector.unregister(child.channel)
        self._table.column(self._children.index(child))  # it counts no more
        expected = not self._running and status == os.EX_OK
        pause = child.ended(time.monotonic())
        if not expected:
            log.error("process-ended", name=child.name, status=status, pause=pause)
        if self._phase is Phase.STARTING:
            raise MailError(Kind.INTERNAL, f"{child.name} ended; see the log")
        for other in self._children:
            if not expected:
                other.send(orders.Died())
        self._applied(child, "")
        self._all_drained()

    # --- processes that hang ------------------------------------------------------

    def _ping(self, now: float) -> None:
        """Tell the service manager that all is well while every process that serves
        answers; kill one that has not for long, so that it is replaced.

        What it waits for is counted while we run: nobody is killed because the
        whole daemon was frozen for a while.
        """
        serving = [c for c in self._children if c.state is State.SERVING]
        if all(child.ponged == child.pinged for child in serving):
            systemd.notify("WATCHDOG=1")
        for child in serving:
            if child.ponged == child.pinged:
                child.pinged += 1
                child.silent = 0.0
                child.send(orders.Ping(child.pinged))
                continue
            child.silent += self._interval
            if child.silent >= HANG and self._running:
                log.error("process-hangs", name=child.name, pid=child.pid)
                os.kill(child.pid, signal.SIGKILL)
        self._ping_at = now + self._interval

    # --- reload -----------------------------------------------------------------

    def _reload(self) -> None:
        """Read the configuration again; a faulty one changes nothing anywhere."""
        if not self._running:
            return
        if self._applying or self._phase is Phase.STARTING:
            self._reload_again = True
            return
        systemd.notify("RELOADING=1")
        try:
            fresh = read(self._config)
            certificates(fresh)
            opened = self._sockets.bind(one.address for one in fresh.listener)
        except ConfigError as error:
            for problem in error.problems:
                log.error("config-refused", problem=str(problem))  # noqa: TRY400
        except (CertificateError, ListenError) as error:
            log.error("reload-failed", error=str(error))  # noqa: TRY400
        else:
            warn_of_restart(self._started, fresh)
            self._take_over(kept(self._started, fresh), opened)
            return
        systemd.notify("READY=1")

    def _take_over(self, fresh: Settings, opened: Iterable[str]) -> None:
        listed = self._sockets.listed(opened)
        self._problem = ""
        self._reload_until = time.monotonic() + RELOAD_LIMIT
        self._settings = fresh
        for child in self._children:
            if not child.pid:
                continue
            for start in range(0, len(listed), 100):
                part = listed[start : start + 100]
                addresses = tuple(address for address, _ in part)
                child.send(orders.Sockets(addresses), tuple(fd for _, fd in part))
            if child.send(orders.Apply(fresh)):
                self._applying.add(child.name)
            else:
                self._applied(child, "cannot be told")
        self._sockets.keep(one.address for one in fresh.listener)
        if not self._applying:
            self._reloaded()

    def _applied(self, child: Child, problem: str) -> None:
        if problem:
            log.error("reload-failed", name=child.name, error=problem)
            self._problem = problem
        if child.name in self._applying:
            self._applying.discard(child.name)
            if not self._applying:
                self._reloaded()

    def _reloaded(self) -> None:
        if not self._problem:
            server = self._settings.server
            logs.configure(server.log_level, server.log_format)
            log.info("reloaded")
        if self._running:
            systemd.notify("READY=1")
        self._reload_if_asked()

    def _reload_if_asked(self) -> None:
        """Do what SIGHUP asked for while it could not be done."""
        if self._reload_again:
            self._reload_again = False
            self._reload()

    # --- the end ------------------------------------------------------------------

    def _stop(self) -> None:
        """Accept nothing new; let every process finish what is under way."""
        if not self._running:
            return
        self._phase = Phase.DRAINING
        systemd.notify("STOPPING=1")
        log.info("stopping")
        self._sockets.keep(())
        self._unlink_control()
        for child in self._children:
            child.send(orders.Drain())
        limit = self._settings.server.drain + MARGIN
        self._deadline = time.monotonic() + limit
        self._all_drained()

    def _unlink_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
            (self._base / "control.sock").unlink(missing_ok=True)

    def _all_drained(self) -> None:
        """Close the background process first, then the owners of databases."""
        living = [child for child in self._children if child.pid]
        if self._phase is Phase.DRAINING and all(
            child.state is State.DRAINED for child in living
        ):
            self._phase = Phase.CLOSING_BACKGROUND
            self._deadline = time.monotonic() + MARGIN
            for child in living:
                if child.name == BACKGROUND:
                    child.send(orders.Close())
        if self._phase is Phase.CLOSING_BACKGROUND and not any(
            child.name == BACKGROUND for child in living
        ):
            self._phase = Phase.CLOSING
            for child in living:
                child.send(orders.Close())

    def _kill_all(self) -> None:
        left = [child.name for child in self._children if child.pid]
        log.error("killed", processes=left)
        self._status = os.EX_SOFTWARE
        self._deadline = float("inf")
        for child in self._children:
            child.kill()
