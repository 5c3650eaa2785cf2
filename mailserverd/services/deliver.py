"""Delivery: who gets a message, and how all of them get it or none.

One target (a shard, or the queue) is one transaction there.  Several are first
committed as an acceptance in the queue database, which is what 250 stands for, and
then applied to each, idempotently; a target that is down gets its part later.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import orjson

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.types import Envelope, Recipient, system
from storage.metadata.deliver import add_email
from storage.metadata.deliver_many import add_emails
from storage.model import Added, AddEmail, NewEmail
from storage.queue import Acceptance, NewQueued, TargetPart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from auth.people.directory import Directory
    from mailserverd.services.acceptances import Acceptances
    from mailserverd.services.changes import Changes
    from storage.api import MetadataStore
    from storage.queue import PendingPart

MAX_TARGETS = 5000  # accounts and forwards that the recipients may expand to
NOWHERE = -1  # the position of a shard that is not configured
log = get_logger("deliver")


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Where a message goes: (account, envelope recipient), and to other servers."""

    local: tuple[tuple[int, str], ...]
    remote: tuple[Recipient, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """A message ready to be placed: its bytes are durable, its facts are known."""

    acceptance: bytes  # 16 octets that name this delivery for ever
    email: NewEmail
    envelope: Envelope
    plan: Plan
    received_at: int
    role: str = "inbox"
    account: int = 0  # who submitted it
    send_at: int = 0
    origin: str = ""  # submission dsn forward: why a part is queued


@dataclasses.dataclass(frozen=True, slots=True)
class Placed:
    """What became of an order."""

    added: dict[int, Added]
    queue_id: str = ""


class Deliver:
    """Expands recipients and places messages.

    ``give_up``: seconds after which the queue may stop trying.
    """

    def __init__(
        self,
        store: MetadataStore,
        acceptances: Acceptances,
        directory: Directory,
        changes: Changes,
        *,
        give_up: float = 5 * 86400,
    ) -> None:
        self._store = store
        self._acceptances = acceptances
        self.queue = acceptances.queue
        self.give_up = give_up
        self._directory = directory
        self._changes = changes

    async def plan(self, recipients: Sequence[Recipient], *, relay: bool) -> Plan:
        """Expand aliases; every account and every forward once.

        With ``relay``, addresses that are not ours go to the queue.  UNAVAILABLE when
        a recipient vanished since RCPT: asked again, the sender learns which.
        """
        local: dict[int, str] = {}
        remote: dict[str, Recipient] = {}
        for recipient in recipients:
            found = await self._directory.resolve(recipient.address)
            if found is None:
                await self._add_remote(recipient, remote, relay=relay)
                continue
            for target in found.targets:
                local.setdefault(target.account, recipient.address)
            for address in found.forwards:
                remote.setdefault(address, _forwarded(recipient, address))
        if len(local) + len(remote) > MAX_TARGETS:
            raise MailError(Kind.LIMIT, "too many recipients")
        return Plan(tuple(local.items()), tuple(remote.values()))

    async def _add_remote(
        self, recipient: Recipient, remote: dict[str, Recipient], *, relay: bool
    ) -> None:
        domain = recipient.address.rpartition("@")[2]
        if not relay or await self._directory.is_local(domain):
            log.warning("recipient-vanished", recipient=recipient.address)
            raise MailError(Kind.UNAVAILABLE, "a recipient is not available now")
        remote.setdefault(recipient.address, recipient)

    async def place(self, order: Order) -> Placed:
        """Deliver; durable for every target when it returns.  MailError otherwise."""
        if order.send_at:
            return Placed({}, await self.queue.enqueue(self._queued(order)))
        groups = self._by_shard(order.plan.local)
        if len(groups) + bool(order.plan.remote) > 1:
            return await self._place_several(order, groups)
        if groups:
            return Placed(dict(await self._apply(order, order.plan.local)))
        return Placed({}, await self.queue.enqueue(self._queued(order)))

    def _by_shard(
        self, local: Sequence[tuple[int, str]]
    ) -> dict[int, list[tuple[int, str]]]:
        groups: dict[int, list[tuple[int, str]]] = {}
        for account, recipient in local:
            groups.setdefault(self._position(account), []).append((account, recipient))
        return groups

    def _position(self, account: int) -> int:
        """Return the account's shard; that is down when it is not configured."""
        try:
            return self._store.shard_of(account)
        except MailError as error:
            if error.kind is not Kind.UNAVAILABLE:
                raise
            return NOWHERE

    def _queued(self, order: Order) -> NewQueued:
        envelope, plan = order.envelope, order.plan
        recipients = plan.remote
        if order.send_at:  # everyone waits for that moment
            recipients = envelope.recipients
        return NewQueued(
            reverse_path=envelope.reverse_path,
            recipients=recipients,
            blob=order.email.blob,
            expires=int(max(order.received_at, order.send_at) + self.give_up),
            key=order.acceptance,
            account=order.account,
            send_at=order.send_at,
            smtputf8=envelope.smtputf8,
            body=envelope.body,
            ret=envelope.ret,
            envid=envelope.envid,
            message_id=order.email.message_id,
            origin=order.origin or "forward",
        )

    async def _place_several(
        self, order: Order, groups: dict[int, list[tuple[int, str]]]
    ) -> Placed:
        parts = {
            f"shard:{shard}": tuple(accounts) for shard, accounts in groups.items()
        }
        acceptance = Acceptance(
            acceptance_id=order.acceptance,
            blob=order.email.blob,
            payload=orjson.dumps(
                {"role": order.role, "received_at": order.received_at}
            ),
            parts=tuple(
                TargetPart(target, orjson.dumps(accounts))
                for target, accounts in parts.items()
            ),
            queued=self._queued(order) if order.plan.remote else None,
        )
        queue_id, done = await self._acceptances.accept(
            acceptance,
            lambda target: self._apply(order, parts[target], check_quota=False),
        )
        return Placed({a: added for one in done for a, added in one}, queue_id)

    async def _apply(
        self,
        order: Order,
        accounts: Sequence[tuple[int, str]],
        *,
        check_quota: bool = True,
    ) -> Sequence[tuple[int, Added]]:
        """Run the unit for accounts of one shard, then announce.

        Accounts that were removed meanwhile are left out.  UNAVAILABLE when the shard
        lacks what the directory says is there: that is no reason for a bounce.
        """
        adds = [
            (
                account,
                AddEmail(
                    email=order.email,
                    received_at=order.received_at,
                    roles=(order.role,),
                    acceptance=order.acceptance,
                    recipient=recipient,
                    check_quota=check_quota and len(accounts) == 1,
                ),
            )
            for account, recipient in accounts
        ]
        try:
            done = await self._add(adds)
        except MailError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            here = [one for one in accounts if self._exists(one[0])]
            if not here or len(here) == len(accounts):
                raise _missing([account for account, _ in accounts]) from error
            return await self._apply(order, here, check_quota=check_quota)
        for account, added in done:
            self._changes.announce(account, added.modseq)
        return done

    async def _add(
        self, adds: Sequence[tuple[int, AddEmail]]
    ) -> Sequence[tuple[int, Added]]:
        """Run the unit; NOT_FOUND, and nothing done, when one is not there."""
        account, add = adds[0]
        if len(adds) == 1:
            return [(account, await self._store.write(system(account), add_email, add))]
        return await self._store.write(system(account), add_emails, tuple(adds))

    async def apply_pending(self, pending: PendingPart, email: NewEmail) -> None:
        """Apply a part that a crash or a failure left behind."""
        facts: dict[str, Any] = orjson.loads(pending.payload)
        accounts: list[tuple[int, str]] = orjson.loads(pending.part.payload)
        order = Order(
            acceptance=pending.acceptance_id,
            email=email,
            envelope=Envelope("", ()),
            plan=Plan((), ()),
            received_at=facts["received_at"],
            role=facts["role"],
        )
        existing = [one for one in accounts if self._exists(one[0])]
        for group in self._by_shard(existing).values():
            await self._apply(order, group, check_quota=False)

    def _exists(self, account: int) -> bool:
        try:
            self._store.shard_of(account)
        except MailError as error:
            return error.kind is not Kind.NOT_FOUND
        return True


def _missing(accounts: list[int]) -> MailError:
    """Return what a sender is told when a shard and the directory do not agree."""
    log.error("accounts-not-on-their-shard", accounts=accounts)
    return MailError(Kind.UNAVAILABLE, "a recipient is not available now")


def _forwarded(recipient: Recipient, address: str) -> Recipient:
    """An alias's outside address, for which the sender's DSN wishes hold."""
    return Recipient(address, recipient.notify, recipient.orcpt)
