"""One process of the daemon, as its supervisor sees it."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from mailserverd.core import log as logs
from mailserverd.core.log import get_logger
from mailserverd.net.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Callable

log = get_logger("supervisor")
STEADY = 10.0  # seconds after which a process is not said to fail at once
FIRST_PAUSE, LAST_PAUSE = 0.5, 30.0  # seconds before one that failed at once returns
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # prctl(2)
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the supervisor's to act on


class State(enum.Enum):
    """How far a process is."""

    GONE = "gone"
    STARTING = "starting"
    READY = "ready"
    SERVING = "serving"
    DRAINED = "drained"


class Child:
    """A process that is started again when it ends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.GONE
        self.pid = 0
        self.channel: Channel | None = None
        self.pinged = self.ponged = 0
        self.silent = 0.0  # seconds for which a ping has not been answered
        self.not_before = 0.0  # when it may be started again
        self._started = 0.0
        self._failures = 0

    def start(self, body: Callable[[Channel], int], now: float) -> None:
        """Fork; the child runs ``body`` and never returns from here."""
        ours, theirs = Channel.pair()
        supervisor = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._become(supervisor, lambda: body(theirs))
        theirs.close()
        self.pid, self.channel, self.state = pid, ours, State.STARTING
        self.pinged = self.ponged = 0
        self.silent = 0.0
        self._started = now

    def _become(self, supervisor: int, body: Callable[[], int]) -> NoReturn:
        status = os.EX_SOFTWARE
        try:
            signal.set_wakeup_fd(-1)
            for number in IGNORED:
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            kind, _, place = self.name.partition("-")
            die_with(supervisor, f"mailserverd-{kind[0]}{place}")
            logs.name_process(self.name)
            status = body()
        except BaseException:
            log.exception("process-failed")
        finally:
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os._exit(status)

    def send(self, order: object, descriptors: tuple[int, ...] = ()) -> bool:
        """Give an order; False when the process is gone or does not listen."""
        return self.channel is not None and self.channel.send(order, descriptors)

    def reap(self) -> int | None:
        """Return the exit status (or minus the signal) when it has ended."""
        if not self.pid:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def ended(self, now: float) -> float:
        """Forget the process; return in how many seconds to start it again.

        At once, unless it ends again and again.
        """
        if self.channel is not None:
            self.channel.close()
        self.pid, self.channel, self.state = 0, None, State.GONE
        self._failures = 0 if now - self._started >= STEADY else self._failures + 1
        pause = 0.0
        if self._failures > 1:
            pause = min(FIRST_PAUSE * 2.0 ** (self._failures - 2), LAST_PAUSE)
        self.not_before = now + pause
        return pause

    def kill(self) -> None:
        """End the process now and wait for it; harmless when it has ended."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid, self.state = 0, State.GONE


def die_with(supervisor: int, name: str) -> None:
    """Be killed by the kernel when the supervisor ends; show a name in ``ps``."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != supervisor:  # it ended before it was asked for
        os._exit(os.EX_TEMPFAIL)
    libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)
