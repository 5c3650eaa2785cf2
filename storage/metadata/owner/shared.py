"""A database that several processes of one node write, through one owner at a time.

The owner holds a lock file, has the database's own engine open and serves a socket.
The others send their units there and read by themselves.  When the owner goes, the
first that gets the lock is the next one; what it may have done of a unit whose answer
is missing is looked up by the unit's key, so that each unit is applied exactly once.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import os
import pickle
from typing import TYPE_CHECKING, Any, TypeVar

from mailserverd.core import ipc
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import gauge
from storage import engines
from storage.metadata.lease import Lease
from storage.metadata.owner.applied import prune, under_key
from storage.metadata.owner.serving import SESSION, Serving, key_of
from storage.metadata.owner.waits import Waits

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Coroutine

    from mailserverd.core.ports import Clock
    from storage.api import Database, Reader, Work

    OpenIt = Callable[[], Coroutine[Any, Any, Database]]
    OpenLocal = Callable[..., Coroutine[Any, Any, Database]]
    OpenReader = Callable[..., Coroutine[Any, Any, Reader]]

A = TypeVar("A")
R = TypeVar("R")
log = get_logger("owner")
OWNER = gauge("metadata_owner", "1 where this process owns it", ("database",))

WINDOW = 256  # units of one process that the engine has at a time: the rest waits here
MAX_PENDING = 20_000  # units that may wait
MAX_TRIES = 5  # owners that may end under a unit before it is given up
PATIENCE = 5.0  # seconds that a unit waits for an owner
RESOLVE = 10.0  # the same for one whose answer is missing
GRACE = 0.04  # seconds that others leave to the preferred owner when one ends
MOVE_GRACE = 0.5  # the same when one hands over
START_GRACE = 1.0  # and when all processes start
PAUSE, REOPEN = 0.01, 1.0  # seconds between looks for an owner; after a fault
LEAVE_IT = 30.0  # seconds for which who could not open it leaves it to others
START_LIMIT = 20.0  # seconds in which an owner must be found at the start
PRUNE_EVERY, KEEP = 600.0, 3600  # seconds: outcomes that nobody asked for


@dataclasses.dataclass(slots=True)
class _Pending:
    count: int
    work: Work[Any, Any]
    account: int
    args: Any
    done: asyncio.Future[Any]
    since: float
    tries: int = 0  # times it was sent to an owner
    number: int = 0  # of the call, while it is sent
    task: asyncio.Task[None] | None = None  # while it runs here


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """How a process shares databases with the others of its node.

    The preferred owner gets a database from whoever has it; one that is no candidate
    never owns it.
    """

    run_dir: pathlib.Path  # of the daemon, 0700
    prefer: bool = False
    candidate: bool = True
    open_local: OpenLocal = engines.open_database
    open_reader: OpenReader = engines.open_reader


class SharedDatabase:
    """``Database`` in each process that shares it; made by ``open``.

    A caller that is cancelled before its unit ran withdraws it, wherever it runs.
    """

    def __init__(self, reader: Reader, name: str, run_dir: pathlib.Path) -> None:
        self.name = name
        self.uuid = reader.uuid
        self._reader = reader
        self._socket = run_dir / f"{name}.sock"
        self._lock = str(run_dir / f"{name}.owner")
        self._session = os.urandom(SESSION)
        self._count = 0
        self._loop = asyncio.get_running_loop()
        self._queue: collections.deque[_Pending] = collections.deque()
        self._flying: dict[int, _Pending] = {}  # by count, in their order
        self._direct = 0  # units of this process in its own engine
        self._local: Database | None = None  # while this process is the owner
        self._peer: ipc.Peer | None = None  # the owner, while another one is
        self._moving = False  # the owner hands over
        self._closing = self._stopped = False
        self._since = self._loop.time()  # when an owner was last missed
        self._not_before = 0.0  # when this process may try to be the owner
        self._want_after = 0.0  # when it may ask for it
        self._fault: MailError | None = None  # why it could not be
        self._settled = asyncio.Event()  # an owner was found, or it failed
        self._leave = asyncio.Event()  # hand over
        self._lost = asyncio.Event()  # the owner ended
        self._idle = asyncio.Event()  # nothing runs in this process's engine
        self._waits = Waits(name)
        self._prefer = False
        self._task: asyncio.Task[None] | None = None
        OWNER.labels(name).set(0)

    @classmethod
    async def open(
        cls, url: str, kind: str, clock: Clock, *, name: str, share: Share
    ) -> SharedDatabase:
        """Open for this process; a candidate waits until there is an owner.

        Raises what opening raises.
        """
        reader = await share.open_reader(url, kind, clock, name=name)
        self = cls(reader, name, share.run_dir)
        self._prefer = share.prefer and share.candidate
        if not share.prefer:
            self._not_before = self._loop.time() + START_GRACE

        async def open_it() -> Database:
            return await share.open_local(url, kind, clock, name=name)

        keeper = self._keep(open_it if share.candidate else None, clock)
        self._task = asyncio.create_task(keeper, name=f"owner-{name}")
        if share.candidate:
            try:
                await self._found()
            except BaseException:
                await self.close()
                raise
        return self

    async def _found(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), START_LIMIT)
        if self._fault is not None:
            raise self._fault
        if not self._settled.is_set():
            raise MailError(Kind.UNAVAILABLE, f"{self.name} has no owner")

    @property
    def owns(self) -> bool:
        """True while this process is the owner."""
        return self._local is not None

    # --- units ----------------------------------------------------------------

    async def write(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a writing unit, wherever the owner is; durable when it returns."""
        self._refuse_closed()
        started = self._loop.time()
        local = self._local
        if local is None or self._queue or self._direct >= WINDOW:
            return await self._elsewhere(work, account, args)
        self._direct += 1
        try:
            return await local.write(work, account, args)
        finally:
            self._direct -= 1
            self._after(started)

    async def read(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a reading unit on one snapshot, in this process."""
        self._refuse_closed()
        return await (self._local or self._reader).read(work, account, args)

    def stuck_for(self) -> float:
        """Return for how many seconds nothing has been done; 0 when idle."""
        if self._local is not None:
            return self._local.stuck_for()
        first = next(iter(self._flying.values()), None) or next(iter(self._queue), None)
        return 0.0 if first is None else self._loop.time() - first.since

    def _refuse_closed(self) -> None:
        if self._closing:
            raise MailError(Kind.UNAVAILABLE, "shutting down")

    async def _elsewhere(self, work: Work[A, R], account: int, args: A) -> R:
        """Wait for a turn, or for an owner, or for another process's answer."""
        now = self._loop.time()
        if len(self._queue) + len(self._flying) >= MAX_PENDING:
            raise MailError(Kind.UNAVAILABLE, "too many changes are waiting")
        if self._missing() and (self._fault or now - self._since > PATIENCE):
            raise _unavailable()
        self._count += 1
        done: asyncio.Future[R] = self._loop.create_future()
        pending = _Pending(self._count, work, account, args, done, now)
        self._queue.append(pending)
        self._pump()
        try:
            return await done
        except asyncio.CancelledError:
            self._withdraw(pending)
            raise
        finally:
            self._after(now)

    def _after(self, started: float) -> None:
        self._waits.note(self._loop.time() - started)
        if self._queue:
            self._pump()
        if not self._direct and not self._flying:
            self._idle.set()

    def _missing(self) -> bool:
        return self._local is None and self._peer is None

    def _pump(self) -> None:
        """Give waiting units to the owner, as many as it may have of this process."""
        local, peer = self._local, self._peer
        if local is None and (peer is None or self._moving):
            return
        while self._queue and len(self._flying) + self._direct < WINDOW:
            pending = self._queue.popleft()
            if pending.done.done():
                continue
            self._flying[pending.count] = pending
            if local is not None:
                pending.task = self._loop.create_task(self._here(local, pending))
            elif peer is not None and not self._send(peer, pending):
                break
        if not self._direct and not self._flying:
            self._idle.set()

    def _send(self, peer: ipc.Peer, pending: _Pending) -> bool:
        below = next(iter(self._flying))
        key = key_of(self._session, pending.count)
        again = pending.tries > 0
        unit = (key, pending.work, pending.account, pending.args, again, below)

        def answered(success: bool, value: Any) -> None:
            if not peer.closed:  # else it is sent again
                self._resolve(pending, success, value)

        try:
            pending.number = peer.request("unit", unit, answered)
        except MailError:
            del self._flying[pending.count]
            self._queue.appendleft(pending)
            return False
        pending.tries += 1
        return True

    async def _here(self, local: Database, pending: _Pending) -> None:
        """Run a unit in this process, which became the owner."""
        work, account, args = pending.work, pending.account, pending.args
        try:
            if not pending.tries:
                result = await local.write(work, account, args)
            else:
                key = key_of(self._session, pending.count)
                call = (key, work, args, True, None)
                outcome = await local.write(under_key(work), account, call)
                result = pickle.loads(outcome)
        except Exception as error:
            self._fail(pending, error)
        else:
            if not pending.done.done():
                pending.done.set_result(result)
        finally:
            self._flying.pop(pending.count, None)
            self._after(pending.since)

    def _resolve(self, pending: _Pending, success: bool, value: Any) -> None:
        if self._flying.pop(pending.count, None) is None or pending.done.done():
            return
        if success:
            pending.done.set_result(pickle.loads(value))
        else:
            pending.done.set_exception(value)

    def _fail(self, pending: _Pending, error: Exception) -> None:
        if not pending.done.done():
            pending.done.set_exception(error)

    def _withdraw(self, pending: _Pending) -> None:
        if pending.task is not None:
            pending.task.cancel()
        elif self._flying.pop(pending.count, None) is not None and self._peer:
            self._peer.withdraw(pending.number)

    # --- who owns it ----------------------------------------------------------

    async def _keep(self, open_it: OpenIt | None, clock: Clock) -> None:
        """Follow the owner or be it, until this process leaves."""
        service = {"moving": self._told_moving}
        while not self._stopped:
            try:
                peer = await ipc.connect(self._socket, service, lost=self._owner_lost)
            except OSError:
                peer = None
            if peer is not None and not peer.closed:
                await self._follow(peer)
            elif open_it is None or not await self._try(open_it, clock):
                self._expire()
                await asyncio.sleep(PAUSE)

    async def _follow(self, peer: ipc.Peer) -> None:
        """Send units to the owner until the connection ends."""
        self._lost.clear()
        self._peer, self._moving, self._fault = peer, False, None
        self._settled.set()
        if self._prefer and self._loop.time() >= self._want_after:
            peer.tell("want")
        self._pump()
        if not self._stopped:
            await self._lost.wait()
        peer.close()

    def _told_moving(self, peer: ipc.Peer, to_preferred: bool) -> None:
        if peer is self._peer:
            self._moving = True
            if to_preferred:
                self._missed(MOVE_GRACE)

    def _owner_lost(self, peer: ipc.Peer) -> None:
        """Take back what it did not answer, in its order."""
        if peer is not self._peer:
            return
        self._peer = None
        self._lost.set()
        back = list(self._flying.values())
        self._flying.clear()
        for pending in back:
            if pending.tries >= MAX_TRIES:
                log.error("unit-given-up", database=self.name, unit=str(pending.work))
                self._fail(pending, _unavailable())
        self._queue.extendleft(one for one in reversed(back) if not one.done.done())
        self._missed(GRACE)

    def _missed(self, grace: float) -> None:
        """Note that there is no owner; the preferred one tries first."""
        self._since = self._loop.time()
        if not self._prefer:
            self._not_before = max(self._not_before, self._since + grace)

    def _expire(self) -> None:
        """Fail what has waited for an owner for too long."""
        now = self._loop.time()
        if now - self._since < PATIENCE:
            return
        for pending in self._queue:
            limit = RESOLVE if pending.tries else PATIENCE
            if now - max(pending.since, self._since) > limit:
                self._fail(pending, _unavailable())
        waiting = [one for one in self._queue if not one.done.done()]
        self._queue = collections.deque(waiting)
        if not waiting:
            self._idle.set()

    async def _try(self, open_it: OpenIt, clock: Clock) -> bool:
        """Be the owner while it lasts; False when this process cannot be."""
        leaving = self._closing and not self._queue
        if leaving or self._loop.time() < self._not_before:
            return False
        try:
            lease = Lease(self._lock)
        except MailError:  # another process has it
            return False
        try:
            await self._own(await open_it(), clock)
        except MailError as error:
            self._failed(error)
            return False
        except Exception:
            log.exception("owner-crashed", database=self.name)
            self._failed(MailError(Kind.INTERNAL))
            return False
        finally:
            lease.release()
        return True

    def _failed(self, error: MailError) -> None:
        log.error("owner-failed", database=self.name, error=str(error))
        self._fault = error
        self._settled.set()
        self._not_before = self._loop.time() + REOPEN
        self._want_after = self._loop.time() + LEAVE_IT

    async def _own(self, local: Database, clock: Clock) -> None:
        """Serve everybody until told to leave, then finish and close."""
        serving = Serving(local, self._wanted)
        try:
            await serving.start(self._socket)
            self._leave.clear()
            self._local, self._fault = local, None
            self._settled.set()
            OWNER.labels(self.name).set(1)
            log.info("owner", database=self.name, waiting=len(self._queue))
            self._pump()
            while not await self._told_to_leave():
                with contextlib.suppress(MailError):  # logged by the engine
                    await local.write(prune, 0, int(clock.now()) - KEEP)
        except OSError as error:
            self._failed(MailError(Kind.UNAVAILABLE, f"{self._socket}: {error}"))
        finally:
            self._local = None  # what this process writes waits for the next owner
            self._missed(GRACE if self._stopped else MOVE_GRACE)
            OWNER.labels(self.name).set(0)
            try:
                await serving.drain(to_preferred=not self._stopped)
                await self._finished()
                await local.close()
            finally:
                self._loop.call_soon(serving.end)  # when the lock is free

    async def _told_to_leave(self) -> bool:
        with contextlib.suppress(TimeoutError):
            if not self._stopped:
                await asyncio.wait_for(self._leave.wait(), PRUNE_EVERY)
            return True
        return False

    def _wanted(self) -> None:
        if not self._prefer:
            self._leave.set()

    async def _finished(self, *, waiting: bool = False) -> None:
        """Wait until none of this process's units is under way (or waiting)."""
        while self._direct or self._flying or (waiting and self._queue):
            self._idle.clear()
            await self._idle.wait()

    async def close(self) -> None:
        """Finish this process's units, let another process be the owner, close."""
        if self._closing:
            return
        self._closing = True
        await self._finished(waiting=True)
        self._stopped = True
        self._leave.set()
        self._lost.set()
        if self._task is not None:
            await self._task
        await self._reader.close()


def _unavailable() -> MailError:
    return MailError(Kind.UNAVAILABLE, "storage is temporarily unavailable")
