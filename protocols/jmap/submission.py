"""The EmailSubmission object (RFC 8621 section 7) and its envelope."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import orjson

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Envelope, Recipient
from mailserverd.mail.addresses import AddressError
from mailserverd.mail.addresses import parse as parse_address
from mailserverd.mail.dsn import encode_orcpt, encode_xtext
from protocols.jmap.wire import dates, ids
from protocols.jmap.wire.errors import SetError, invalid_properties

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocols.jmap.method import Context
    from storage.model import SubmissionRow

PROPERTIES = (
    "id",
    "identityId",
    "emailId",
    "threadId",
    "envelope",
    "sendAt",
    "undoStatus",
    "deliveryStatus",
    "dsnBlobIds",
    "mdnBlobIds",
)
MAX_DELAY = 30 * 86_400  # seconds that a submission may be held back (RFC 4865)
EXTENSIONS: dict[str, list[str]] = {"DSN": [], "FUTURERELEASE": [str(MAX_DELAY)]}
NOTIFY = frozenset({"NEVER", "SUCCESS", "FAILURE", "DELAY"})
PENDING, FINAL, CANCELED = "pending", "final", "canceled"
LIVE = frozenset({"queued", "held"})
DELIVERED = {"queued": "queued", "held": "queued", "delivered": "unknown"}
_ENVID = re.compile(r"[ -~]{1,100}")
_ORCPT = re.compile(r"([A-Za-z0-9-]{1,32});([ -~]{1,500})")
Statuses = dict[str, tuple[str, str, int]]


# --- showing -------------------------------------------------------------------


async def show(context: Context, row: SubmissionRow) -> dict[str, Any]:
    """Return all properties; what became of it is asked of the queue."""
    statuses = await _statuses(context, row)
    stored: dict[str, Any] = orjson.loads(row.delivery_status) or {}
    delivery = {**stored, **{to: _delivery(*found) for to, found in statuses.items()}}
    return {
        "id": ids.submission(row.submission_id),
        "identityId": ids.identity(row.identity_id),
        "emailId": ids.email(row.email_id),
        "threadId": ids.thread(row.thread_id),
        "envelope": orjson.loads(row.envelope),
        "sendAt": dates.utc(row.send_at),
        "undoStatus": undo_status(row, statuses),
        "deliveryStatus": delivery or None,
        "dsnBlobIds": [],
        "mdnBlobIds": [],
    }


async def _statuses(context: Context, row: SubmissionRow) -> Statuses:
    """Return what the queue knows; nothing of what it has forgotten."""
    if not row.queue_id:
        return {}
    try:
        return await context.services.submission.status(row.queue_id)
    except MailError as error:
        if error.kind is Kind.NOT_FOUND:
            return {}
        raise


def undo_status(row: SubmissionRow, statuses: Statuses) -> str:
    """Return whether it can still be stopped."""
    if row.undo_status != PENDING:
        return row.undo_status
    states = {state for state, _, _ in statuses.values()}
    if states == {"canceled"}:
        return CANCELED
    return PENDING if states and states <= LIVE else FINAL


def _delivery(state: str, reply: str, _time: int) -> dict[str, str]:
    return {
        "smtpReply": " ".join(reply.split()) or "250 2.0.0 queued",
        "delivered": DELIVERED.get(state, "no"),
        "displayed": "unknown",
    }


def delivered_here(recipients: tuple[str, ...]) -> bytes:
    """Return the delivery status of recipients whose mailboxes have it already."""
    known = {"smtpReply": "250 2.1.5 delivered", "delivered": "yes"}
    return orjson.dumps(
        {to: {**known, "displayed": "unknown"} for to in recipients} or None
    )


# --- envelopes -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """An envelope as the client gave it, or as made from the Email."""

    envelope: Envelope
    shown: bytes  # JSON {mailFrom, rcptTo}
    hold: int | None = None  # seconds (HOLDFOR)
    until: int | None = None  # seconds since the epoch (HOLDUNTIL)


def read_envelope(given: Any, limit: int) -> Wanted:
    """Check an Envelope object; SetError for whatever is wrong with it."""
    match given:
        case {"mailFrom": dict(sender), "rcptTo": list(to)} if len(given) == 2:
            pass
        case _:
            raise _bad("an Envelope is mailFrom and rcptTo")
    email, params = _address(sender)
    senders = _Parameters(params, _MAIL)
    recipients = [_address(one) for one in to]
    if not recipients:
        raise SetError("noRecipients")
    if len(recipients) > limit:
        raise SetError("tooManyRecipients", maxRecipients=limit)
    parsed: dict[str, Recipient] = {}
    invalid: list[str] = []
    for address, given_params in recipients:
        try:
            canonical = parse_address(address, smtputf8=True)
        except AddressError:
            invalid.append(address)
            continue
        options = _Parameters(given_params, _RCPT)
        parsed[canonical] = Recipient(canonical, options.notify, options.orcpt)
    if invalid:
        raise SetError("invalidRecipients", invalidRecipients=invalid)
    return Wanted(
        Envelope(
            _reverse_path(email),
            tuple(parsed.values()),
            smtputf8=not all(a.isascii() for a in (email, *parsed)),
            ret=senders.ret,
            envid=senders.envid,
        ),
        orjson.dumps({"mailFrom": sender, "rcptTo": to}),
        senders.hold,
        senders.until,
    )


def _bad(reason: str) -> SetError:
    return invalid_properties(["envelope"], reason)


def _address(given: Any) -> tuple[str, dict[str, str | None]]:
    match given:
        case {"email": str(email)} if set(given) <= {"email", "parameters"}:
            params = given.get("parameters") or {}
            if isinstance(params, dict) and all(
                value is None or isinstance(value, str) for value in params.values()
            ):
                return email, params
    raise _bad("an Address is an email and parameters")


def _reverse_path(email: str) -> str:
    if not email:
        return ""
    try:
        return parse_address(email, smtputf8=True)
    except AddressError as error:
        raise SetError("forbiddenMailFrom", str(error)) from error


class _Parameters:
    """Parameters of MAIL and RCPT (RFC 3461, RFC 4865); unknown ones are refused."""

    def __init__(
        self,
        given: dict[str, str | None],
        known: dict[str, Callable[[_Parameters, str], None]],
    ) -> None:
        self.ret = self.envid = self.orcpt = ""
        self.notify: tuple[str, ...] = ()
        self.hold: int | None = None
        self.until: int | None = None
        for name, value in given.items():
            take = known.get(name.upper())
            if take is None:
                raise _bad(f"the parameter {name} is not supported")
            try:
                take(self, value or "")
            except ValueError as error:
                raise _bad(f"{name} has a wrong value") from error

    def take_ret(self, value: str) -> None:
        """RET=FULL or HDRS."""
        if value.upper() not in {"FULL", "HDRS"}:
            raise ValueError(value)
        self.ret = value.upper()

    def take_envid(self, value: str) -> None:
        """ENVID: given decoded, kept as it goes over the wire."""
        if not _ENVID.fullmatch(value):
            raise ValueError(value)
        self.envid = encode_xtext(value)

    def take_notify(self, value: str) -> None:
        """NOTIFY: NEVER, or of SUCCESS, FAILURE, DELAY."""
        words = tuple(dict.fromkeys(value.upper().split(",")))
        if not set(words) <= NOTIFY or ("NEVER" in words and len(words) > 1):
            raise ValueError(value)
        self.notify = words

    def take_orcpt(self, value: str) -> None:
        """ORCPT: address type and address, the address given decoded."""
        match = _ORCPT.fullmatch(value)
        if match is None:
            raise ValueError(value)
        self.orcpt = f"{match[1]};{encode_orcpt(match[1], match[2])}"

    def take_holdfor(self, value: str) -> None:
        """HOLDFOR: seconds (RFC 4865)."""
        if not value.isascii() or not value.isdecimal() or int(value) > MAX_DELAY:
            raise ValueError(value)
        self.hold = int(value)

    def take_holduntil(self, value: str) -> None:
        """HOLDUNTIL: a date-time (RFC 4865)."""
        moment = dates.parse(value)
        if moment is None:
            raise ValueError(value)
        self.until = int(moment.timestamp())

    def ignore(self, _value: str) -> None:
        """BODY, SIZE and SMTPUTF8 follow from the message."""


_MAIL: dict[str, Callable[[_Parameters, str], None]] = {
    "RET": _Parameters.take_ret,
    "ENVID": _Parameters.take_envid,
    "HOLDFOR": _Parameters.take_holdfor,
    "HOLDUNTIL": _Parameters.take_holduntil,
    "BODY": _Parameters.ignore,
    "SIZE": _Parameters.ignore,
    "SMTPUTF8": _Parameters.ignore,
}
_RCPT: dict[str, Callable[[_Parameters, str], None]] = {
    "NOTIFY": _Parameters.take_notify,
    "ORCPT": _Parameters.take_orcpt,
}


def made_envelope(listed: dict[str, Any], fallback: str, allowed: bool) -> Any:
    """Return the Envelope for an Email without one (RFC 8621 section 7).

    ``fallback`` is the identity's address, used where the Email's own is not
    ``allowed``.  ``invalidEmail`` for several senders.
    """
    senders = listed["sender"] or listed["from"] or []
    if len(senders) > 1:
        name = "sender" if listed["sender"] else "from"
        raise SetError("invalidEmail", "several senders", properties=[name])
    sender = senders[0]["email"] if senders and allowed else fallback
    fields = (listed["to"], listed["cc"], listed["bcc"])
    to = dict.fromkeys(one["email"] for field in fields for one in field or ())
    return {
        "mailFrom": {"email": sender, "parameters": None},
        "rcptTo": [{"email": email, "parameters": None} for email in to],
    }


def sender_of(listed: dict[str, Any]) -> str:
    """Return the address that a made envelope would name, "" without one."""
    senders = listed["sender"] or listed["from"] or []
    return senders[0]["email"] if senders else ""
