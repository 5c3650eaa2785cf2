"""THE way out: whose message it is, what it lacks, our signature, then the queue.

SMTP submission, EmailSubmission/set and ``/v1`` all end here.  RFC 6409.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.names import a_labels
from mailserverd.core.types import Peer
from mailserverd.mail.addresses import AddressError, parse
from mailserverd.mail.build import crlf
from mailserverd.mail.compose import from_addresses
from mailserverd.services import access as access_check
from mailserverd.services import trace
from mailserverd.services.deliver import Order
from mailserverd.services.facts import read_facts
from mailserverd.services.outgoing import Job, finished, is_clean, pieces
from mailserverd.services.receive import Receipt, acceptance_of, name_of, unmap
from mailserverd.services.spool import Spool, drop_pages
from storage.queue import Selection, State

if TYPE_CHECKING:
    import mmap

    from auth.mail.canonical import Joined
    from auth.people.directory import DkimKey
    from mailserverd.core.types import Access, Envelope
    from mailserverd.services.receive import Receive
    from storage.model import NewEmail

API = Peer(protocol="JMAP")  # of messages that did not come by SMTP
STATES = {
    State.QUEUED: "queued",
    State.LEASED: "queued",
    State.HELD: "held",
    State.DELIVERED: "delivered",
    State.FAILED: "failed",
    State.CANCELLED: "canceled",
}
log = get_logger("submission")


@dataclasses.dataclass(frozen=True, slots=True)
class SubmissionLimits:
    """Bounds of one submitted message, in octets and recipients."""

    max_size: int = 50 * 1024 * 1024
    max_recipients: int = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Submitted:
    """What left: ``queue_id`` is "" when every recipient was local.

    ``delivered`` are the envelope recipients whose mailboxes hold it already.
    """

    queue_id: str
    message: bytes  # as sent; of one that was spooled the header
    size: int = 0  # of all of it
    delivered: tuple[str, ...] = ()
    name: str = ""  # in Received and the logs


@dataclasses.dataclass(frozen=True, slots=True)
class _How:
    """How a message is submitted; see ``Submission.submit``."""

    key: bytes
    peer: Peer
    send_at: float


class Submission:
    """Takes messages of people who logged in."""

    def __init__(
        self, receive: Receive, limits: SubmissionLimits = SubmissionLimits()
    ) -> None:
        self._receive = receive
        self._kernel = receive.kernel
        self._deliver = receive.deliver
        self.limits = limits

    # --- for sessions ---------------------------------------------------------

    async def check_sender(self, access: Access, address: str) -> None:
        """Raise SENDER_REFUSED unless the account may send as this address.

        The null sender is allowed: notifications of mail clients use it, and the
        header still names who sends.
        """
        access_check.check(access)
        directory = self._kernel.directory
        if address and not await directory.may_send_as(access.account, address):
            raise MailError(Kind.SENDER_REFUSED, f"not an address of yours: {address}")

    async def check_recipient(self, address: str, *, size: int = 0) -> None:
        """Raise what ``Receive.check_recipient`` does, for local addresses."""
        domain = address.rpartition("@")[2]
        if "@" not in address or await self._kernel.directory.is_local(domain):
            await self._receive.check_recipient(address, size=size)

    async def open(self, access: Access, envelope: Envelope, peer: Peer) -> Outgoing:
        """Begin a message that a client sends in chunks."""
        access_check.check(access)
        return Outgoing(self, access, envelope, peer)

    def spool(self) -> Spool:
        """Return an empty spool."""
        return Spool(self._kernel.offload, self._kernel.spool)

    # --- submitting -----------------------------------------------------------

    async def submit(
        self,
        access: Access,
        envelope: Envelope,
        message: bytes | Spool,
        *,
        key: bytes = b"",
        peer: Peer | None = None,
        send_at: float | None = None,
    ) -> Submitted:
        """Send a message for good; SENDER_REFUSED, INVALID, TOO_LARGE, LIMIT.

        NO_SUCH_USER, OVER_QUOTA name in ``details["recipients"]`` who it is.

        With a ``key`` it is sent once, however often it is submitted.  Before
        ``send_at`` (seconds since the epoch) nothing leaves, and it can be cancelled.
        """
        if isinstance(message, bytes):
            spool = self.spool()
            await spool.write(message)
        else:
            spool = message
        try:
            raw = await self._content(spool)
            how = _How(key, peer or API, send_at or 0)
            try:
                return await self._submit(access, _canonical(envelope), raw, how)
            finally:
                unmap(raw)
        finally:
            spool.close()

    async def _content(self, spool: Spool) -> bytes | mmap.mmap:
        """Return what is to be sent; in a file its line ends are CRLF."""
        raw = await spool.content()
        if isinstance(raw, bytes) or await self._kernel.offload(is_clean, raw):
            return raw
        fresh = self.spool()
        try:
            for piece in pieces(raw):
                await fresh.write(crlf(piece))
            return await fresh.content()
        finally:
            fresh.close()
            unmap(raw)

    async def _submit(
        self, access: Access, envelope: Envelope, raw: bytes | mmap.mmap, how: _How
    ) -> Submitted:
        await self._check(access, envelope, raw)
        clock = self._kernel.clock
        acceptance = acceptance_of(how.key)
        name = name_of(acceptance)
        leaving = await self._finished(raw, how.peer, name)
        drop_pages(raw)  # a copy with our header follows
        head = trace.return_path(envelope.reverse_path) + leaving.header
        plan = await self._deliver.plan(envelope.recipients, relay=True)
        email, sent = await self._keep(leaving, head)
        later = int(how.send_at) if how.send_at > clock.now() else 0
        placed = await self._deliver.place(
            Order(
                acceptance=acceptance,
                email=email,
                envelope=envelope,
                plan=plan,
                received_at=int(clock.now()),
                account=access.account,
                send_at=later,
                origin="submission",
            )
        )
        log.info(
            "message-submitted",
            message=name,
            account=access.account,
            sender=envelope.reverse_path,
            recipients=len(envelope.recipients),
            size=len(leaving),
            message_id=email.message_id,
            queue=placed.queue_id,
        )
        delivered = tuple(r for a, r in plan.local if a in placed.added)
        self._receive.notices.delivered(envelope, delivered, name, sent)
        return Submitted(placed.queue_id, sent, len(leaving), delivered, name)

    async def _keep(self, leaving: Joined, head: bytes) -> tuple[NewEmail, bytes]:
        """Store the message; returns its facts, and as much as is kept in memory."""
        kernel, source = self._kernel, leaving.source
        if isinstance(source, bytes):
            body = source[leaving.start :]
            facts = await read_facts(head + body, kernel.offload)
            blob = await kernel.blobs.put((head, body))
            return facts.email(blob), leaving.header + body
        spool = self.spool()
        file, view = await spool.joined(head, source, leaving.start)
        try:
            facts = await read_facts(view, kernel.offload)
            blob = await kernel.blobs.put_file(file, len(view))
            return facts.email(blob), leaving.header
        finally:
            file.close()
            unmap(view)

    async def _check(
        self, access: Access, envelope: Envelope, message: bytes | mmap.mmap
    ) -> None:
        await self.check_sender(access, envelope.reverse_path)
        if len(message) > self.limits.max_size:
            raise MailError(Kind.TOO_LARGE, "message is too large")
        if not envelope.recipients:
            raise MailError(Kind.INVALID, "a message needs a recipient")
        if len(envelope.recipients) > self.limits.max_recipients:
            raise MailError(Kind.LIMIT, "too many recipients")
        await self._check_recipients(envelope, len(message))
        for address in from_addresses(message):
            if not await self._kernel.directory.may_send_as(access.account, address):
                raise MailError(
                    Kind.SENDER_REFUSED,
                    f"not an address of yours, in From or Sender: {address}",
                )

    async def _check_recipients(self, envelope: Envelope, size: int) -> None:
        """Name the first recipient that cannot be: other servers will name theirs."""
        for recipient in envelope.recipients:
            try:
                await self.check_recipient(recipient.address, size=size)
            except MailError as error:
                text = f"<{recipient.address}>: {error.text}"
                raise MailError(
                    error.kind, text, recipients=(recipient.address,)
                ) from error

    async def _finished(
        self, message: bytes | mmap.mmap, peer: Peer, name: str
    ) -> Joined:
        """Return the message as it leaves: completed, traced and signed."""
        kernel = self._kernel
        now = kernel.clock.now()
        keys, domain = await self._keys(message)
        received = trace.received(
            peer, hostname=kernel.hostname, message_id=name, now=now, authenticated=True
        )
        job = Job(message, now, kernel.hostname, domain, keys, received)
        return await kernel.offload(finished, job)

    async def _keys(
        self, message: bytes | mmap.mmap
    ) -> tuple[tuple[DkimKey, ...], str]:
        """Return the keys of the author's domain: what DMARC will look at."""
        authors = from_addresses(message)
        domain = a_labels(authors[0].rpartition("@")[2]) if authors else None
        if domain is None:
            return (), ""
        return await self._kernel.directory.dkim_keys(domain), domain

    # --- afterwards -----------------------------------------------------------

    async def status(self, queue_id: str) -> dict[str, tuple[str, str, int]]:
        """Return (state, last reply, time) by recipient; NOT_FOUND.

        States: queued held delivered failed canceled.
        """
        entry = await self._deliver.queue.show(queue_id)
        return {
            one.address: (STATES[one.state], one.reply, one.updated)
            for one in entry.recipients
        }

    async def cancel(self, queue_id: str) -> bool:
        """Stop what has not left; True when nothing of the message has or will."""
        entry = await self._deliver.queue.show(queue_id)
        cancelled, in_flight = await self._deliver.queue.cancel(Selection(queue_id))
        return not in_flight and cancelled == len(entry.recipients)


def _canonical(envelope: Envelope) -> Envelope:
    """Return the envelope with canonical addresses; INVALID.

    SMTPUTF8 is noted where an address needs it, whoever forgot to say so.
    """
    try:
        sender = envelope.reverse_path and parse(envelope.reverse_path, smtputf8=True)
        recipients = tuple(
            dataclasses.replace(r, address=_recipient(r.address))
            for r in envelope.recipients
        )
    except AddressError as error:
        raise MailError(Kind.INVALID, str(error)) from None
    plain = sender.isascii() and all(r.address.isascii() for r in recipients)
    return dataclasses.replace(
        envelope,
        reverse_path=sender,
        recipients=recipients,
        smtputf8=envelope.smtputf8 or not plain,
    )


def _recipient(address: str) -> str:
    if address.lower() == "postmaster":  # RFC 5321 section 4.5.1
        return address
    return parse(address, smtputf8=True)


class Outgoing:
    """A submitted message on its way in."""

    def __init__(
        self, submission: Submission, access: Access, envelope: Envelope, peer: Peer
    ) -> None:
        self._submission = submission
        self._access = access
        self._envelope = envelope
        self._peer = peer
        self._spool = submission.spool()

    async def write(self, chunk: bytes) -> None:
        """Take octets."""
        await self._spool.write(chunk)

    async def finish(self) -> Receipt:
        """Submit; MailError as ``Submission.submit``."""
        submitted = await self._submission.submit(
            self._access, self._envelope, self._spool, peer=self._peer
        )
        queued = (submitted.queue_id,) if submitted.queue_id else ()
        return Receipt(submitted.name, submitted.size, None, queued)

    def abort(self) -> None:
        """Forget what was written."""
        self._spool.close()
