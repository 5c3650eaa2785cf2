"""EmailSubmission/set (RFC 8621 section 7.5): sending, and calling back."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import orjson

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from protocols.jmap import setting, submission
from protocols.jmap.method import Method
from protocols.jmap.services import SUBMISSION
from protocols.jmap.wire import ids, patch
from protocols.jmap.wire.arguments import (
    Argument,
    identifier,
    list_of,
    map_of,
    mapping,
    nullable,
)
from protocols.jmap.wire.errors import SetError, invalid_properties, set_error
from storage.model import Column, SubmissionRow

if TYPE_CHECKING:
    from mailserverd.services.spool import Spool
    from protocols.jmap.method import Arguments, Context
    from protocols.jmap.setting import SetRun
    from protocols.jmap.submission import Wanted
    from storage.model import EmailRow, Identity

log = get_logger("jmap")
TAKES = {
    **setting.TAKES,
    "onSuccessUpdateEmail": Argument(nullable(map_of(mapping)), None),
    "onSuccessDestroyEmail": Argument(nullable(list_of(identifier)), None),
}
GIVEN = frozenset({"identityId", "emailId", "envelope", "undoStatus"})


async def run(context: Context, args: Arguments) -> Arguments:
    """Send, cancel, forget; then change the Emails of what succeeded."""
    call = await setting.start(context, args, "EmailSubmission")
    emails: dict[str, int] = {}  # of what succeeded, by id and by "#creation id"
    for creation_id, given in call.create.items():
        done, row = await setting.attempt(
            call.not_created, creation_id, _create(call, given)
        )
        if done and row is not None:
            await _created(call, creation_id, row, given)
            emails[f"#{creation_id}"] = row.email_id
            emails[ids.submission(row.submission_id)] = row.email_id
    for text, given in setting.resolve_update(call).items():
        done, row = await setting.attempt(
            call.not_updated, text, _update(call, text, given)
        )
        if done and row is not None:
            emails[text] = row.email_id
    for text in call.destroy:
        done, row = await setting.attempt(
            call.not_destroyed, text, _destroy(call, text)
        )
        if done and row is not None:
            emails[text] = row.email_id
    _follow(call, emails)
    return await call.response()


def _follow(call: SetRun, emails: dict[str, int]) -> None:
    """Call Email/set for the Emails of what succeeded, if anything is asked for."""
    update = {
        ids.email(emails[text]): given
        for text, given in (call.args["onSuccessUpdateEmail"] or {}).items()
        if text in emails
    }
    destroy = [
        ids.email(emails[text])
        for text in call.args["onSuccessDestroyEmail"] or ()
        if text in emails
    ]
    if update or destroy:
        args: dict[str, Any] = {"accountId": call.args["accountId"]}
        args |= {"update": update} if update else {}
        args |= {"destroy": destroy} if destroy else {}
        call.context.follow("Email/set", args)


# --- create ---------------------------------------------------------------------


async def _create(call: SetRun, given: dict[str, Any]) -> SubmissionRow:
    """Record the submission, send it under the record's number, record its fate.

    The record comes first so that a repetition of what was sent has a name.
    """
    wrong = [name for name in given if name not in GIVEN]
    if given.get("undoStatus", submission.PENDING) != submission.PENDING:
        wrong.append("undoStatus")
    identity = await _identity(call, given.get("identityId"))
    email = await _email(call, given.get("emailId"))
    wrong += [] if identity else ["identityId"]
    wrong += [] if email else ["emailId"]
    if wrong or identity is None or email is None:
        raise invalid_properties(wrong)
    wanted = await _envelope(call, given.get("envelope"), identity, email)
    await _check_addresses(call, wanted, email.size)
    raw = await _message(call, email)
    try:
        row = await call.context.services.submissions.create(
            call.access,
            SubmissionRow(
                submission_id=0,
                identity_id=identity.identity_id,
                email_id=email.email_id,
                thread_id=email.thread_id,
                envelope=wanted.shown,
                send_at=_send_at(call, wanted),
                undo_status=submission.PENDING,
                queue_id="",
                delivery_status=b"null",
            ),
        )
        call.writes.wrote(row.modseq)
        return await _send(call, row, wanted, raw)
    finally:
        raw.close()


def _send_at(call: SetRun, wanted: Wanted) -> int:
    now = int(call.context.services.clock.now())
    later = now + (wanted.hold or 0) if wanted.until is None else wanted.until
    if later > now + submission.MAX_DELAY:
        raise invalid_properties(["envelope"], "held back for too long")
    return max(now, later)


async def _identity(call: SetRun, text: Any) -> Identity | None:
    if not isinstance(text, str):
        return None
    number = ids.parse_identity(call.context.real(text))
    _, listed = await call.context.services.identities.list(call.access)
    return next((one for one in listed if one.identity_id == number), None)


async def _email(call: SetRun, text: Any) -> EmailRow | None:
    if not isinstance(text, str):
        return None
    number = ids.parse_email(call.context.real(text))
    if number is None:
        return None
    columns = Column.BASIC | Column.LIST | Column.MAILBOXES
    messages = call.context.services.messages
    row = (await messages.rows(call.access, [number], columns)).get(number)
    return row if row is not None and row.mailboxes else None


async def _envelope(
    call: SetRun, given: Any, identity: Identity, email: EmailRow
) -> Wanted:
    if given is None:
        listed = orjson.loads(email.list_json)
        sender = submission.sender_of(listed)
        allowed = bool(sender) and await call.context.services.directory.may_send_as(
            call.access.account, sender
        )
        given = submission.made_envelope(listed, identity.email, allowed)
    return submission.read_envelope(given, call.context.limits.max_recipients)


async def _check_addresses(call: SetRun, wanted: Wanted, size: int) -> None:
    """``forbiddenMailFrom``, ``invalidRecipients`` (local users that do not exist)."""
    service = call.context.services.submission
    try:
        await service.check_sender(call.access, wanted.envelope.reverse_path)
    except MailError as error:
        if error.kind is not Kind.SENDER_REFUSED:
            raise
        raise SetError("forbiddenMailFrom", error.text) from error
    unknown: list[str] = []
    for recipient in wanted.envelope.recipients:
        try:
            await service.check_recipient(recipient.address, size=size)
        except MailError as error:
            if error.kind is Kind.NO_SUCH_USER:
                unknown.append(recipient.address)
            elif error.kind is not Kind.OVER_QUOTA:  # that will be a bounce
                raise
    if unknown:
        raise SetError("invalidRecipients", invalidRecipients=unknown)


async def _message(call: SetRun, email: EmailRow) -> Spool:
    limit = call.context.limits.max_size_submission
    if email.size > limit:
        raise SetError("tooLarge", maxSize=limit)
    assert email.blob is not None
    services = call.context.services
    spool = services.submission.spool()
    try:
        async for chunk in services.messages.stream_blob(email.blob):
            await spool.write(chunk)
    except BaseException:
        spool.close()
        raise
    return spool


async def _send(
    call: SetRun, row: SubmissionRow, wanted: Wanted, raw: Spool
) -> SubmissionRow:
    services = call.context.services
    # numbers are given anew after a restore, which raises the epoch
    epoch = call.writes.before.epoch
    key = f"jmap {call.access.account} {epoch} {row.submission_id}".encode()
    try:
        sent = await services.submission.submit(
            call.access, wanted.envelope, raw, key=key, send_at=row.send_at
        )
    except MailError as error:
        await services.submissions.destroy(call.access, row.submission_id)
        call.writes.unnamed += 1
        raise _refused(error, call.context.limits.max_size_submission) from error
    pending = bool(sent.queue_id) and not sent.delivered
    done = dataclasses.replace(
        row,
        queue_id=sent.queue_id,
        undo_status=submission.PENDING if pending else submission.FINAL,
        delivery_status=submission.delivered_here(sent.delivered),
    )
    try:
        done = await services.submissions.update(call.access, done)
        call.writes.wrote(done.modseq)
    except MailError as error:
        # it is sent: nothing but the record of its fate is lost
        log.warning("submission-record-failed", error=str(error), queue=sent.queue_id)
    return done


def _refused(error: MailError, limit: int) -> SetError:
    if error.kind is Kind.TOO_LARGE:
        return SetError("tooLarge", error.text, maxSize=limit)
    if error.kind is Kind.INVALID:
        return SetError("invalidEmail", error.text, properties=[])
    return set_error(error)


async def _created(
    call: SetRun, creation_id: str, row: SubmissionRow, given: dict[str, Any]
) -> None:
    shown = await submission.show(call.context, row)
    told = {name: value for name, value in shown.items() if given.get(name) != value}
    call.did_create(creation_id, shown["id"], told)


# --- update and destroy -----------------------------------------------------------


async def _find(call: SetRun, text: str) -> SubmissionRow:
    number = ids.parse_submission(call.context.real(text))
    if number is not None:
        service = call.context.services.submissions
        _, rows = await service.get(call.access, [number])
        if rows:
            return rows[0]
    raise SetError("notFound")


async def _update(call: SetRun, text: str, given: dict[str, Any]) -> SubmissionRow:
    """Nothing but ``undoStatus`` from pending to canceled can change."""
    row = await _find(call, text)
    current = await submission.show(call.context, row)
    touched = patch.apply(current, given)
    wanted = touched.pop("undoStatus", current["undoStatus"])
    wrong = [name for name, value in touched.items() if current.get(name, 0) != value]
    if wanted not in {current["undoStatus"], submission.CANCELED}:
        wrong.append("undoStatus")
    if wrong:
        raise invalid_properties(wrong)
    if wanted != current["undoStatus"]:
        row = await _cancel(call, row, current["undoStatus"])
    call.updated[text] = None
    return row


async def _cancel(call: SetRun, row: SubmissionRow, status: str) -> SubmissionRow:
    services = call.context.services
    if status != submission.PENDING or not row.queue_id:
        raise SetError("cannotUnsend")
    if not await services.submission.cancel(row.queue_id):
        raise SetError("cannotUnsend")
    changed = dataclasses.replace(row, undo_status=submission.CANCELED)
    done = await services.submissions.update(call.access, changed)
    call.writes.wrote(done.modseq)
    return done


async def _destroy(call: SetRun, text: str) -> SubmissionRow:
    row = await _find(call, text)
    await call.context.services.submissions.destroy(call.access, row.submission_id)
    call.writes.unnamed += 1
    call.destroyed.append(text)
    return row


METHOD = Method("EmailSubmission/set", SUBMISSION, run, TAKES)
