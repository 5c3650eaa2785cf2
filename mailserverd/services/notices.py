"""Telling a sender what became of a message: reports (RFC 3464) by the same door.

A report has the null sender, so nothing that happens to it is ever reported.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mailserverd.core.errors import MailError
from mailserverd.core.log import get_logger
from mailserverd.core.types import Envelope, Peer, Recipient
from mailserverd.mail.dsn import DsnRecipient, DsnReport, build_report
from mailserverd.services import trace
from mailserverd.services.signing import host_keys, signatures
from storage.queue import Notice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.services.receive import Receive
    from storage.queue import Entry, QueuedRecipient

LOCAL = Peer(helo="localhost", protocol="LMTP")
ACTIONS = {
    Notice.FAILED: "failed",
    Notice.DELAYED: "delayed",
    Notice.DELIVERED: "delivered",
    Notice.RELAYED: "relayed",
}
log = get_logger("notices")


class Notices:
    """Builds reports and lets them arrive."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kernel = receive.kernel
        self._tasks: set[asyncio.Task[None]] = set()

    def delivered(
        self, envelope: Envelope, local: Sequence[str], name: str, message: bytes
    ) -> None:
        """Report delivery to those recipients in ``local`` for whom it was asked.

        It is sent in the background: the message itself is safe.
        """
        wanted = [
            DsnRecipient(
                r.address, "delivered", "2.1.5", r.orcpt, "delivered to the mailbox"
            )
            for r in envelope.recipients
            if "SUCCESS" in r.notify and r.address in local
        ]
        if not wanted or not envelope.reverse_path:
            return
        report = DsnReport(
            hostname=self._kernel.hostname,
            to=envelope.reverse_path,
            recipients=tuple(wanted),
            original=_original(message),
            ret="HDRS",
            envid=envelope.envid,
            arrived=self._kernel.clock.now(),
            smtputf8=envelope.smtputf8,
        )
        task = asyncio.get_running_loop().create_task(
            self._send_once(report, f"delivered:{name}".encode())
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_once(self, report: DsnReport, key: bytes) -> None:
        try:
            await self._send(report, key)
        except MailError as error:
            log.warning("report-lost", to=report.to, error=str(error))

    async def close(self) -> None:
        """Wait for reports on their way."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def report(self, entry: Entry, message: bytes) -> None:
        """Tell the sender of a queued message of what its recipients list.

        ``message`` is the message, or at least its header.  UNAVAILABLE and the like
        when the report could not be stored now.
        """
        queued = entry.message
        for notice, action in ACTIONS.items():
            told = [r for r in entry.recipients if r.notice is notice]
            if not told or not queued.reverse_path:
                continue
            report = DsnReport(
                hostname=self._kernel.hostname,
                to=queued.reverse_path,
                recipients=tuple(_row(r, action, queued.expires) for r in told),
                original=_original(message),
                ret=queued.ret,
                envid=queued.envid,
                arrived=float(queued.created),
                smtputf8=queued.smtputf8,
            )
            positions = ",".join(str(r.position) for r in told)
            await self._send(report, f"{action}:{queued.queue_id}:{positions}".encode())

    async def _send(self, report: DsnReport, key: bytes) -> None:
        message = await self._signed(report)
        envelope = Envelope("", (Recipient(report.to),), smtputf8=report.smtputf8)
        try:
            if await self._kernel.directory.is_local(report.to.rpartition("@")[2]):
                await self._receive.check_recipient(report.to)
            incoming = await self._receive.open(
                envelope, LOCAL, trusted=True, relay=True, key=key
            )
            try:
                await incoming.write(message)
                receipt = await incoming.finish()
            finally:
                incoming.abort()
        except MailError as error:
            if error.temporary:
                raise
            # The sender does not exist, or is full: there is nobody to tell.
            log.warning("report-undeliverable", to=report.to, error=str(error))
            return
        log.info("report-sent", to=report.to, message=receipt.message_id)

    async def _signed(self, report: DsnReport) -> bytes:
        kernel = self._kernel
        now = kernel.clock.now()
        domain, keys = await host_keys(kernel.directory, kernel.hostname)
        message = build_report(report, now=now)
        if not keys:
            return message
        fields = await kernel.offload(signatures, message, domain, keys, now)
        return fields + message


def _row(recipient: QueuedRecipient, action: str, expires: int) -> DsnRecipient:
    return DsnRecipient(
        final_recipient=recipient.address,
        action=action,
        status=recipient.status,
        original_recipient=recipient.orcpt,
        diagnostic=recipient.reply,
        remote_mta=recipient.mta,
        last_attempt=float(recipient.updated) if recipient.updated else None,
        retry_until=float(expires) if action == "delayed" else None,
    )


def _original(message: bytes) -> bytes:
    """The message as the sender knows it, without our Return-Path."""
    return message[trace.without_return_path(message) :]
