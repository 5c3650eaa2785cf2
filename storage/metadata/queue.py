"""The mail queue: outbound messages, leases, acceptances, as one async object."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from storage.metadata import acceptances, queue_admin, queue_units
from storage.queue import ClaimLimits, Page, Pending, Selection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.api import Database
    from storage.model import BlobRef
    from storage.queue import (
        Acceptance,
        Claim,
        Entry,
        Finished,
        NewQueued,
        Notice,
        Outcome,
        PendingPart,
        Stats,
    )

ANY_CLAIM, EVERYTHING, FIRST_PAGE = ClaimLimits(), Selection(), Page()


class MailQueue:
    """Methods over the queue database; durable when they return (``Database.write``).

    ``changed`` is set whenever something may have become due (enqueued, released,
    retried): the relay clears it, claims, and waits for it or ``next_due``.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.changed = asyncio.Event()

    async def start(self) -> int:
        """End the leases that a crash left; returns how many."""
        return await self.database.write(queue_units.release_all, 0, None)

    async def close(self) -> None:
        """Close the database."""
        await self.database.close()

    # --- outbound -------------------------------------------------------------

    async def enqueue(self, new: NewQueued) -> str:
        """Queue a message; returns its queue id (the first one's for a used key)."""
        queued = await self.database.write(queue_units.enqueue, 0, new)
        self.changed.set()
        return queued

    async def claim(self, limits: ClaimLimits = ANY_CLAIM) -> tuple[Claim, ...]:
        """Lease what is due: one claim per message and domain, the longest due first.

        Each must end in ``finish`` before its lease lapses, or be kept by ``extend``.
        """
        if not await self.database.read(queue_units.any_due, 0, limits.busy):
            return ()
        return await self.database.write(queue_units.claim, 0, limits)

    async def extend(self, claim: Claim, seconds: int) -> bool:
        """Heartbeat: keep a lease for ``seconds`` from now; False: it is lost."""
        args = (claim.queue_id, claim.token, seconds)
        return await self.database.write(queue_units.extend, 0, args)

    async def finish(self, claim: Claim, outcomes: Sequence[Outcome]) -> Finished:
        """Record how the attempt ended, for each recipient of the claim.

        What was asked of a recipient meanwhile (hold, cancel) takes effect now.
        """
        args = (claim.queue_id, claim.token, tuple(outcomes))
        done = await self.database.write(queue_units.finish, 0, args)
        if any(outcome.due for outcome in outcomes):
            self.changed.set()
        return done

    async def next_due(self, busy: Sequence[str] = ()) -> int:
        """Return when the next attempt is due or a lease lapses; 0: never.

        Name the domains that a claim would leave out, or this time may be past.
        """
        return await self.database.read(queue_admin.next_due, 0, tuple(busy))

    async def notices(self, limit: int = 50) -> tuple[Entry, ...]:
        """Return messages whose sender is to be told (DSN), with those recipients.

        Each stays listed until ``noticed``: enqueue the report with a key made of
        the queue id and positions, then call it.
        """
        return await self.database.read(queue_units.notices, 0, limit)

    async def noticed(self, queue_id: str, told: Sequence[tuple[int, Notice]]) -> None:
        """Note of which recipients (by position) the sender was told what.

        One that failed while its delay was reported stays listed for the failure.
        """
        args = (queue_id, tuple(told))
        await self.database.write(queue_units.noticed, 0, args)

    # --- acceptances ----------------------------------------------------------

    async def accept(self, new: Acceptance) -> str:
        """Commit an acceptance (after this, 250 is true); idempotent by its id.

        Returns the queue id of its ``queued`` part, "" without one.
        """
        if new.queued is not None and not new.queued.key:
            queued = dataclasses.replace(new.queued, key=new.acceptance_id)
            new = dataclasses.replace(new, queued=queued)
        queued_id = await self.database.write(acceptances.accept, 0, new)
        if queued_id:
            self.changed.set()
        return queued_id

    async def applied(self, acceptance_id: bytes, targets: Sequence[str]) -> int:
        """Note that targets have their part; returns how many are left."""
        args = (acceptance_id, tuple(targets))
        return await self.database.write(acceptances.applied, 0, args)

    async def pending(
        self,
        before: int,
        limit: int = 100,
        *,
        target: str = "",
        after: tuple[int, bytes] = (0, b""),
    ) -> tuple[PendingPart, ...]:
        """Return parts accepted up to ``before`` and not applied, oldest first.

        Only those of one target when it is named; ``after`` (created, acceptance id)
        is where the page before ended.
        """
        which = Pending(before, limit, target, after)
        return await self.database.read(acceptances.pending, 0, which)

    async def waiting_targets(self) -> tuple[str, ...]:
        """Return the targets whose parts are not applied."""
        return await self.database.read(acceptances.waiting_targets, 0, None)

    # --- commands -------------------------------------------------------------

    async def show(self, queue_id: str) -> Entry:
        """Return a message with its recipients, also a finished one; NOT_FOUND."""
        return await self.database.read(queue_admin.show, 0, queue_id)

    async def list(self, page: Page = FIRST_PAGE) -> tuple[Entry, ...]:
        """Return a page of messages in order of arrival."""
        return await self.database.read(queue_admin.list_page, 0, page)

    async def hold(self, selection: Selection = EVERYTHING) -> int:
        """Stop attempts until released; returns the number of recipients."""
        return await self.database.write(queue_admin.hold, 0, selection)

    async def release(self, selection: Selection = EVERYTHING) -> int:
        """Let what is held be tried at once; returns the number of recipients."""
        done = await self.database.write(queue_admin.release, 0, selection)
        self.changed.set()
        return done

    async def retry(self, selection: Selection = EVERYTHING) -> int:
        """Make the next attempt due now; returns the number of recipients."""
        done = await self.database.write(queue_admin.retry, 0, selection)
        self.changed.set()
        return done

    async def cancel(self, selection: Selection) -> tuple[int, int]:
        """Drop recipients silently: (cancelled, in flight and then cancelled)."""
        return await self.database.write(queue_admin.cancel, 0, selection)

    async def stats(self) -> Stats:
        """Return depth by state, ages and times."""
        return await self.database.read(queue_admin.stats, 0, None)

    # --- keeping house --------------------------------------------------------

    async def purge(self, before: int, limit: int = 500) -> int:
        """Forget what ended before a time; returns how many messages and acceptances
        went (call again until none do)."""
        return await self.database.write(queue_admin.purge, 0, (before, limit))

    async def live_blobs(self, hashes: Sequence[bytes]) -> dict[bytes, BlobRef]:
        """Return where those blobs lie that a queued message or an acceptance
        needs, by hash."""
        return await self.database.read(queue_admin.live_blobs, 0, tuple(hashes))

    async def list_blobs(self, after: bytes, limit: int = 500) -> tuple[BlobRef, ...]:
        """Return a page of the needed blobs in order of hash."""
        return await self.database.read(queue_admin.list_blobs, 0, (after, limit))

    async def move_blobs(self, moves: Sequence[tuple[BlobRef, BlobRef]]) -> None:
        """Note where compaction put blobs, as (from, to)."""
        await self.database.write(queue_admin.move_blobs, 0, tuple(moves))
