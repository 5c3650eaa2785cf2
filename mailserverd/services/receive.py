"""THE way in: open -> write chunks -> finish.

SMTP, LMTP, bounces, IMAP APPEND, Email/import and drafts all end here.  ``finish``
returns when the message is durable for everybody who gets it, and raises MailError
when nobody does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import secrets
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.types import system
from mailserverd.services import access as access_check
from mailserverd.services import trace
from mailserverd.services.deliver import Order, Placed
from mailserverd.services.facts import Facts, read_facts
from mailserverd.services.notices import Notices
from mailserverd.services.policy import Action, Arrival, Verdict, evaluate
from mailserverd.services.spool import Spool, drop_pages
from storage.metadata.deliver import add_email, quota
from storage.model import AddEmail

if TYPE_CHECKING:
    import mmap

    from auth.people.directory import Directory
    from mailserverd.core.ports import Clock, Offload
    from mailserverd.core.types import Access, Envelope, Peer
    from mailserverd.services.changes import Changes
    from mailserverd.services.deliver import Deliver
    from mailserverd.services.policy import Context
    from storage.api import BlobStore, MetadataStore
    from storage.model import Added, Flags, NewEmail

ACCEPTED = Verdict(Action.ACCEPT, None, "", (), b"")  # of what is not judged

log = get_logger("receive")
QUOTA_LIMIT = 2.0  # seconds that a shard has to say how full a mailbox is
MAX_LOGGED = 20  # recipients on one log line


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a message; ``added`` is set when one account alone got it."""

    message_id: str  # ours, as in Received: its name in logs and in ``trace``
    size: int
    added: Added | None = None
    queue_ids: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """What messages are stored with."""

    store: MetadataStore
    blobs: BlobStore
    directory: Directory
    changes: Changes
    clock: Clock
    offload: Offload
    hostname: str
    spool: str = ""  # directory of large messages while they arrive; "" the system's


@dataclasses.dataclass(frozen=True, slots=True)
class Trust:
    """What an arriving message may do; see ``Receive.open``."""

    trusted: bool
    relay: bool
    key: bytes


class Receive:
    """Opens arriving messages; answers who may receive."""

    def __init__(self, kernel: Kernel, deliver: Deliver, policy: Context) -> None:
        self.kernel = kernel
        self.deliver = deliver
        self.policy = policy
        self.notices = Notices(self)

    async def open(
        self,
        envelope: Envelope,
        peer: Peer,
        *,
        trusted: bool = False,
        relay: bool = False,
        key: bytes = b"",
    ) -> Incoming:
        """Begin a message that came with an envelope.

        Policy is asked unless the peer is ``trusted``; only with ``relay`` (our own
        notifications) may it leave for other servers.  A message with a ``key`` is
        delivered once, however often it comes.
        """
        trust = Trust(trusted=trusted, relay=relay, key=key)
        return Incoming(self, envelope, peer, trust)

    async def open_append(
        self,
        access: Access,
        mailbox_ids: tuple[int, ...],
        flags: Flags,
        received_at: int,
        size: int,
    ) -> Appended:
        """Begin a message that an owner puts into mailboxes; OVER_QUOTA, FORBIDDEN.

        Its octets are stored as they are.
        """
        access_check.check(access)
        await self._check_quota(access.account, size)
        return Appended(self, access, mailbox_ids, flags, received_at)

    async def store_message(
        self,
        access: Access,
        raw: bytes,
        mailbox_ids: tuple[int, ...],
        flags: Flags,
        received_at: int,
    ) -> Added:
        """Put a whole message into mailboxes (Email/set create)."""
        incoming = await self.open_append(
            access, mailbox_ids, flags, received_at, len(raw)
        )
        await incoming.write(raw)
        receipt = await incoming.finish()
        assert receipt.added is not None
        return receipt.added

    async def check_recipient(self, address: str, *, size: int = 0) -> None:
        """Raise NO_SUCH_USER, RELAY_DENIED, OVER_QUOTA or a temporary kind.

        A mailbox is full when ``size`` more octets do not fit.  One whose shard does
        not say so is no reason to refuse: a message that others get, too, is kept
        for it; one that it alone gets is deferred when it has come.
        """
        found = await self.kernel.directory.resolve(address)
        if found is None:
            domain = address.rpartition("@")[2]
            if await self.kernel.directory.is_local(domain):
                raise MailError(Kind.NO_SUCH_USER, "no such user here")
            raise MailError(Kind.RELAY_DENIED, "relaying denied")
        if len(found.targets) == 1 and not found.forwards:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUOTA_LIMIT):
                    await self._check_known_quota(found.targets[0].account, size)

    async def _check_known_quota(self, account: int, size: int) -> None:
        try:
            await self._check_quota(account, size)
        except MailError as error:
            if error.kind not in {Kind.UNAVAILABLE, Kind.NOT_FOUND}:
                raise
            log.warning("quota-unknown", account=account, error=str(error))

    async def _check_quota(self, account: int, size: int) -> None:
        limit, used = await self.kernel.store.read(system(account), quota, None)
        if limit and used + max(size, 1) > limit:
            raise MailError(Kind.OVER_QUOTA, "mailbox is full")


class _Spooling:
    """A message whose octets are being collected."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._spool = Spool(kernel.offload, kernel.spool)
        self._expected = True
        kernel.blobs.expect(1)

    async def write(self, chunk: bytes) -> None:
        """Take octets; STORAGE_FULL or UNAVAILABLE when they cannot be kept."""
        await self._spool.write(chunk)

    def abort(self) -> None:
        """Forget what was written; harmless after ``finish``."""
        self._spool.close()
        self._put_comes()

    def _put_comes(self) -> None:
        """The blob store need not wait for us any longer."""
        if self._expected:
            self._expected = False
            self._kernel.blobs.expect(-1)

    async def _keep(
        self, raw: bytes | mmap.mmap, head: bytes = b"", skip: int = 0
    ) -> NewEmail:
        """Store ``head`` and what follows octet ``skip`` as one blob."""
        kernel, spool = self._kernel, self._spool
        if isinstance(raw, bytes):
            data = head + raw[skip:] if head or skip else raw
            facts: Facts = await read_facts(data, kernel.offload)
            self._put_comes()
            return facts.email(await kernel.blobs.put(data))
        file, view = await spool.rewritten(head, skip)
        try:
            facts = await read_facts(view, kernel.offload)
            self._put_comes()
            return facts.email(await kernel.blobs.put_file(file, len(view)))
        finally:
            file.close()
            unmap(view)


class Incoming(_Spooling):
    """A message with an envelope, on its way in."""

    def __init__(
        self,
        receive: Receive,
        envelope: Envelope,
        peer: Peer,
        trust: Trust,
    ) -> None:
        super().__init__(receive.kernel)
        self._receive = receive
        self._envelope = envelope
        self._peer = peer
        self._trust = trust
        self._acceptance = acceptance_of(trust.key)

    async def finish(self) -> Receipt:
        """Judge, store and deliver; MailError says why it was refused."""
        try:
            raw = await self._spool.content()
            try:
                return await self._accept(raw)
            finally:
                unmap(raw)
        finally:
            self.abort()

    async def _accept(self, raw: bytes | mmap.mmap) -> Receipt:
        kernel, envelope = self._kernel, self._envelope
        message_id = name_of(self._acceptance)
        header = trace.inspect(raw, kernel.hostname)
        if header.received > trace.MAX_RECEIVED:
            raise MailError(Kind.MAIL_LOOP, "too many hops: mail loop")
        verdict = await self._judge(raw, header)
        drop_pages(raw)  # a copy with our header follows
        relay = self._trust.relay
        plan = await self._receive.deliver.plan(envelope.recipients, relay=relay)
        head = b"".join(
            (
                trace.return_path(envelope.reverse_path),
                verdict.header,
                trace.received(
                    self._peer,
                    hostname=kernel.hostname,
                    message_id=message_id,
                    now=kernel.clock.now(),
                ),
                header.kept or b"",
            )
        )
        skip = 0 if header.kept is None else header.end
        email = await self._keep(raw, head, skip)
        placed = await self._receive.deliver.place(
            Order(
                acceptance=self._acceptance,
                email=email,
                envelope=envelope,
                plan=plan,
                received_at=int(kernel.clock.now()),
                role="junk" if verdict.action is Action.JUNK else "inbox",
                origin="dsn" if relay else "forward",
            )
        )
        if any("SUCCESS" in r.notify for r in envelope.recipients):
            local = [r for account, r in plan.local if account in placed.added]
            known = head + raw[skip : header.end]
            self._receive.notices.delivered(envelope, local, message_id, known)
        log.info(
            "message-accepted",
            message=message_id,
            sender=envelope.reverse_path,
            recipients=[r.address for r in envelope.recipients[:MAX_LOGGED]],
            size=email.size,
            peer=self._peer.address,
            message_id=email.message_id,
            queue=placed.queue_id,
            verdict=verdict.reason,
        )
        return _receipt(message_id, email.size, placed)

    async def _judge(self, raw: bytes | mmap.mmap, header: trace.Header) -> Verdict:
        """Ask policy; MailError is its refusal."""
        if self._trust.trusted:
            return ACCEPTED
        kernel = self._kernel
        arrival = Arrival(
            peer=self._peer,
            envelope=self._envelope,
            message=raw if isinstance(raw, bytes) else memoryview(raw),
            from_addresses=header.authors,
            now=kernel.clock.now(),
            hostname=kernel.hostname,
            authserv_id=kernel.hostname,
        )
        verdict = await evaluate(arrival, self._receive.policy)
        if verdict.kind is not None:
            raise MailError(verdict.kind, verdict.reason)
        return verdict


class Appended(_Spooling):
    """A message that its owner puts into mailboxes."""

    def __init__(
        self,
        receive: Receive,
        access: Access,
        mailbox_ids: tuple[int, ...],
        flags: Flags,
        received_at: int,
    ) -> None:
        super().__init__(receive.kernel)
        self._access = access
        self._mailbox_ids = mailbox_ids
        self._flags = flags
        self._received_at = received_at

    async def finish(self) -> Receipt:
        """Store the message; NOT_FOUND (mailbox), OVER_QUOTA or a temporary kind."""
        try:
            raw = await self._spool.content()
            try:
                return await self._store(raw)
            finally:
                unmap(raw)
        finally:
            self.abort()

    async def _store(self, raw: bytes | mmap.mmap) -> Receipt:
        email = await self._keep(raw)
        add = AddEmail(
            email=email,
            received_at=self._received_at,
            mailboxes=self._mailbox_ids,
            flags=self._flags,
        )
        added = await self._kernel.store.write(self._access, add_email, add)
        self._kernel.changes.announce(self._access.account, added.modseq)
        name = f"{self._access.account}.{added.email_id}"
        log.info("message-stored", message=name, size=email.size)
        return Receipt(name, email.size, added)


def acceptance_of(key: bytes) -> bytes:
    """Return the name of a delivery for ever: random, or of its key."""
    if key:
        return hashlib.blake2b(key, digest_size=16).digest()
    return secrets.token_bytes(16)


def name_of(acceptance: bytes) -> str:
    """Return the name of a delivery, as Received and the logs show it."""
    return acceptance[:10].hex()


def _receipt(name: str, size: int, placed: Placed) -> Receipt:
    added = next(iter(placed.added.values())) if len(placed.added) == 1 else None
    return Receipt(name, size, added, (placed.queue_id,) if placed.queue_id else ())


def unmap(raw: bytes | mmap.mmap) -> None:
    """Unmap now what nobody looks at any longer; else the collector does."""
    if not isinstance(raw, bytes):
        with contextlib.suppress(BufferError):
            raw.close()
