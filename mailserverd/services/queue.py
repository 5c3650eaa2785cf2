"""The queue's loop: claim what is due, try, record, come back later, give up.

Nothing is polled: the loop sleeps until something is enqueued, released or retried,
an attempt ends, or the next one is due.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.types import Envelope, Recipient
from mailserverd.services import trace
from mailserverd.services.notices import LOCAL
from mailserverd.services.outbound import read_header, read_outbound, read_reported
from mailserverd.services.relay import Said
from storage.queue import ClaimLimits, Notice, Outcome, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.core.ports import Clock
    from mailserverd.services.receive import Receive
    from mailserverd.services.relay import Relay
    from storage.metadata.queue import MailQueue
    from storage.queue import Claim, Entry, QueuedRecipient

LEASE = 600  # seconds without heartbeat until an attempt counts as dead
HEARTBEAT = 120.0  # seconds
LONGEST_SLEEP = 300.0  # seconds: a guard, not a poll
PAUSE = 5.0  # seconds after the database failed
RECORD_AGAIN = 0.2  # seconds until an outcome is written again, at first
EXPIRED = "4.4.7"  # RFC 3463 section 3.5
STATUS = {
    Kind.NO_SUCH_USER: "5.1.1",
    Kind.OVER_QUOTA: "5.2.2",
    Kind.TOO_LARGE: "5.3.4",
    Kind.MAIL_LOOP: "5.4.6",
}
log = get_logger("queue")


@dataclasses.dataclass(frozen=True, slots=True)
class QueueSettings:
    """When the queue tries and warns (seconds), and how much at once."""

    retry_min: float = 60
    retry_max: float = 4 * 3600
    delay_notice: float = 4 * 3600  # 0: none
    concurrency: int = 50
    per_destination: int = 5
    drain: float = 30

    def pause(self, attempts: int, chance: float) -> float:
        """Return how long to wait after so many attempts; ``chance`` is in [0, 1).

        It doubles, and is spread by a quarter each way so that what failed together
        does not come back together.
        """
        pause = self.retry_min * 2.0 ** min(max(attempts, 1) - 1, 30)
        return min(pause, self.retry_max) * (0.75 + chance / 2)


class QueueRunner:
    """Runs attempts; one per queue database."""

    def __init__(
        self,
        queue: MailQueue,
        relay: Relay,
        receive: Receive,
        settings: QueueSettings = QueueSettings(),
    ) -> None:
        self._queue = queue
        self._relay = relay
        self._receive = receive
        self.settings = settings
        self._clock: Clock = receive.kernel.clock
        self._running: dict[asyncio.Task[None], Claim] = {}
        self._recording: set[asyncio.Task[None]] = set()  # of those
        self._busy: collections.Counter[str] = collections.Counter()
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._ended = asyncio.Event()
        self._notice = asyncio.Event()
        self._resting = False

    # --- loops ----------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled; then call ``drain``."""
        if not self._running:  # else it is a second start, with leases of our own
            await self._queue.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._claim_loop())
            group.create_task(self._notice_loop())
            group.create_task(self._heartbeat_loop())

    async def rest(self) -> None:
        """Begin no more attempts, and let those under way end, beside ``run``.

        While that goes on no other node takes the queue's work over, and begins them
        once more.
        """
        self._resting = True
        await self._end_attempts()

    async def drain(self) -> None:
        """Let reports and attempts end, then close connections."""
        await self._receive.notices.close()
        await self._end_attempts()
        await self._relay.close()

    async def _end_attempts(self) -> None:
        """After ``drain`` seconds they are cut off, to be tried again."""
        tasks = list(self._running)
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=self.settings.drain)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)

    async def _claim_loop(self) -> None:
        while True:
            self._queue.changed.clear()
            self._ended.clear()
            try:
                if not await self.claim():
                    await self._sleep()
            except MailError as error:
                log.warning("queue-unavailable", error=str(error))
                await asyncio.sleep(PAUSE)

    async def _sleep(self) -> None:
        """Wait for a change, the end of an attempt, or the next due time."""
        due = await self._queue.next_due(self._full) if self._free else 0
        limit = LONGEST_SLEEP
        if due:
            limit = min(max(due - self._clock.now(), 0.05), LONGEST_SLEEP)
        waits = [
            asyncio.ensure_future(event.wait())
            for event in (self._queue.changed, self._ended)
        ]
        try:
            await asyncio.wait(
                waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()

    @property
    def _free(self) -> int:
        if self._resting:
            return 0
        return max(self.settings.concurrency - len(self._running), 0)

    @property
    def _full(self) -> tuple[str, ...]:
        """Domains with as many attempts under way as they may have."""
        most = self.settings.per_destination
        return tuple(d for d, count in self._busy.items() if count >= most)

    async def claim(self) -> int:
        """Start attempts on what is due; returns how many."""
        if not self._free:
            return 0
        each = self.settings.per_destination
        limits = ClaimLimits(
            limit=self._free,
            per_domain=each,
            busy=self._full,
            lease=LEASE,
        )
        claims = self._new(await self._queue.claim(limits))
        if self._resting:  # meanwhile; who begins next ends these leases
            return 0
        for claim in claims:
            self._busy[claim.domain] += 1
            task = asyncio.get_running_loop().create_task(self._run(claim))
            self._running[task] = claim
            task.add_done_callback(self._forget)
        return len(claims)

    def _new(self, claims: Sequence[Claim]) -> list[Claim]:
        """Return those that no attempt of ours is about.

        While the database was away leases lapsed whose attempts still run, or wait to
        be recorded: begun anew, they would be sent twice.  The new lease lapses, too.
        """
        ours = {
            (claim.queue_id, one.position)
            for claim in self._running.values()
            for one in claim.recipients
        }
        return [
            claim
            for claim in claims
            if not any((claim.queue_id, r.position) in ours for r in claim.recipients)
        ]

    def _forget(self, task: asyncio.Task[None]) -> None:
        claim = self._running.pop(task)
        self._recording.discard(task)
        self._busy[claim.domain] -= 1
        if not self._busy[claim.domain]:
            del self._busy[claim.domain]
            self._slots.pop(claim.domain, None)
        self._ended.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("attempt-failed", queue=claim.queue_id, exc_info=error)

    async def settle(self) -> None:
        """Wait for the attempts that run now (tests, draining)."""
        while self._running:
            await asyncio.wait(list(self._running))

    async def _heartbeat_loop(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            await self._keep_leases()

    async def _keep_leases(self) -> None:
        for task, claim in list(self._running.items()):
            with contextlib.suppress(MailError):
                if not await self._queue.extend(claim, LEASE):
                    log.warning("lease-lost", queue=claim.queue_id)
                    if task not in self._recording:
                        task.cancel()

    # --- one attempt ----------------------------------------------------------

    async def _run(self, claim: Claim) -> None:
        slots = self._slots.setdefault(
            claim.domain, asyncio.Semaphore(self.settings.per_destination)
        )
        async with slots:
            said = await self._attempt(claim)
        outcomes = [
            self._outcome(claim, recipient, one)
            for recipient, one in zip(claim.recipients, said, strict=True)
        ]
        task = asyncio.current_task()
        assert task is not None
        self._recording.add(task)
        await self._record(claim, outcomes)
        for recipient, outcome in zip(claim.recipients, outcomes, strict=True):
            log.info(
                "delivery-attempt",
                queue=claim.queue_id,
                recipient=recipient.address,
                state=outcome.state.name.lower(),
                attempt=recipient.attempts + 1,
                mta=outcome.mta,
                reply=outcome.reply,
                next=outcome.due,
            )
        if any(outcome.notice for outcome in outcomes):
            self._notice.set()

    async def _record(self, claim: Claim, outcomes: list[Outcome]) -> None:
        """Write down how an attempt ended.

        While the database refuses, the lease is kept and it is tried again: what the
        peer has taken would be sent once more otherwise.
        """
        pause = RECORD_AGAIN
        while True:
            try:
                await self._queue.finish(claim, outcomes)
            except MailError as error:
                if not error.temporary:
                    raise
                log.warning("outcome-deferred", queue=claim.queue_id, error=str(error))
            else:
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE)

    async def _attempt(self, claim: Claim) -> tuple[Said, ...]:
        """Return what was said of each recipient; what fails here is tried again."""
        try:
            if await self._receive.kernel.directory.is_local(claim.domain):
                return await self._deliver_here(claim)
            message = await read_outbound(claim, self._receive.kernel)
            return await self._relay.attempt(claim.domain, message)
        except MailError as error:
            said = _said(error)
        except Exception:
            log.exception("attempt-bug", queue=claim.queue_id)
            said = Said(451, "4.3.0", "internal error")
        return (said,) * len(claim.recipients)

    async def _deliver_here(self, claim: Claim) -> tuple[Said, ...]:
        """Deliver to recipients of ours, without SMTP: the same door as all mail."""
        said: dict[int, Said] = {}
        for recipient in claim.recipients:
            try:
                await self._receive.check_recipient(recipient.address)
            except MailError as error:
                said[recipient.position] = _said(error)
        good = [r for r in claim.recipients if r.position not in said]
        if good:
            done = await self._store(claim, good)
            said.update({r.position: done for r in good})
        return tuple(said[r.position] for r in claim.recipients)

    async def _store(self, claim: Claim, recipients: list[QueuedRecipient]) -> Said:
        queued, kernel = claim.message, self._receive.kernel
        to = tuple(Recipient(r.address, r.notify, r.orcpt) for r in recipients)
        positions = ",".join(str(r.position) for r in recipients)
        incoming = await self._receive.open(
            Envelope(queued.reverse_path, to, queued.smtputf8, queued.body),
            LOCAL,
            trusted=True,
            key=f"queue:{claim.queue_id}:{positions}".encode(),
        )
        try:
            skip = trace.without_return_path(await read_header(queued.blob, kernel))
            async for chunk in kernel.blobs.stream(queued.blob, skip):
                await incoming.write(chunk)
            receipt = await incoming.finish()
        except MailError as error:
            return _said(error)
        finally:
            incoming.abort()
        return Said(250, "2.1.5", f"delivered as {receipt.message_id}")

    def _outcome(self, claim: Claim, recipient: QueuedRecipient, said: Said) -> Outcome:
        """Decide what becomes of a recipient after an attempt."""
        now = self._clock.now()
        state, due = State.QUEUED, 0
        status = said.status or f"{said.code // 100}.0.0"
        if said.delivered:
            state = State.DELIVERED
        elif said.permanent:
            state = State.FAILED
        elif now >= claim.message.expires:
            state, status = State.FAILED, EXPIRED
        else:
            pause = self.settings.pause(recipient.attempts + 1, self._clock.random())
            due = int(min(now + pause, max(claim.message.expires, now + 1)))
        return Outcome(
            position=recipient.position,
            state=state,
            reply=said.line,
            status=status,
            mta=said.mta,
            due=due,
            notice=self._wanted(claim, recipient, state, said),
        )

    def _wanted(
        self, claim: Claim, recipient: QueuedRecipient, state: State, said: Said
    ) -> Notice:
        """Return what the sender is to be told (RFC 3461 section 4.1)."""
        if not claim.message.reverse_path:
            return Notice.NONE
        wishes = recipient.notify or ("FAILURE", "DELAY")
        if state is State.FAILED and "FAILURE" in wishes:
            return Notice.FAILED
        if state is State.DELIVERED and "SUCCESS" in wishes and said.mta:
            return Notice.NONE if said.dsn else Notice.RELAYED
        waited = self._clock.now() - claim.message.created
        late = 0 < self.settings.delay_notice <= waited
        if state is State.QUEUED and late and not recipient.delay_sent:
            return Notice.DELAYED if "DELAY" in wishes else Notice.NONE
        return Notice.NONE

    # --- notices --------------------------------------------------------------

    async def _notice_loop(self) -> None:
        while True:
            self._notice.clear()
            try:
                if not await self.send_notices():
                    await self._notice.wait()
                    continue
            except MailError as error:
                log.warning("notices-deferred", error=str(error))
            await asyncio.sleep(PAUSE)

    async def send_notices(self) -> int:
        """Tell senders what they are to be told; returns how many could not be."""
        while entries := await self._queue.notices():
            left = 0
            for entry in entries:
                left += not await self._tell(entry)
            if left:
                return left
        return 0

    async def _tell(self, entry: Entry) -> bool:
        queue_id = entry.message.queue_id
        try:
            await self._receive.notices.report(entry, await self._reported(entry))
        except MailError as error:
            log.warning("notice-deferred", queue=queue_id, error=str(error))
            return False
        told = [(r.position, r.notice) for r in entry.recipients]
        await self._queue.noticed(queue_id, told)
        return True

    async def _reported(self, entry: Entry) -> bytes:
        """Return the message, or nothing of it: a damaged one is reported, too."""
        try:
            return await read_reported(entry, self._receive.kernel)
        except MailError as error:
            log.warning("report-without-message", error=str(error))
            return b""


def _said(error: MailError) -> Said:
    """Say in a reply's terms why something of our own failed."""
    if error.temporary:
        return Said(451, "4.3.0", error.text)
    return Said(550, STATUS.get(error.kind, "5.0.0"), error.text)
