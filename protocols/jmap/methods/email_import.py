"""Email/import (RFC 8621 section 4.8)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from mailserverd.mail.dates import parse_date
from mailserverd.mail.headers import header_end, iter_fields
from protocols.jmap import content, email_store, setting, states
from protocols.jmap.method import ACCOUNT, Method
from protocols.jmap.services import MAIL
from protocols.jmap.states import Writes
from protocols.jmap.wire.arguments import (
    Argument,
    Bad,
    id_set,
    keyword_set,
    map_of,
    mapping,
    nullable,
    string,
    utc_date,
)
from protocols.jmap.wire.errors import MethodError, SetError, invalid_properties

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mailserverd.core.types import Access
    from mailserverd.services.receive import Appended, Receipt
    from protocols.jmap.method import Arguments, Context

TAKES = {
    "accountId": ACCOUNT,
    "ifInState": Argument(nullable(string), None),
    "emails": Argument(map_of(mapping)),
}
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "blobId": string,
    "mailboxIds": id_set,
    "keywords": keyword_set,
    "receivedAt": utc_date,
}
HEADER = 64 * 1024  # octets in which Received is looked for


async def run(context: Context, args: Arguments) -> Arguments:
    """Add uploaded messages to mailboxes, each alone."""
    access = context.access(args["accountId"])
    if len(args["emails"]) > context.limits.max_objects_in_set:
        raise MethodError("requestTooLarge", "more emails than maxObjectsInSet")
    before = await states.current(context, access)
    states.check(before, "Email", args["ifInState"])
    writes = Writes("Email", before)
    created: dict[str, Any] = {}
    refused: dict[str, Any] = {}
    for creation_id, given in args["emails"].items():
        done, shown = await setting.attempt(
            refused, creation_id, _import(context, access, writes, given)
        )
        if done and shown is not None:
            context.created_ids[creation_id] = shown["id"]
            created[creation_id] = shown
    old, new = writes.states(await states.current(context, access))
    return {
        "accountId": args["accountId"],
        "oldState": old,
        "newState": new,
        "created": created or None,
        "notCreated": refused or None,
    }


async def _import(
    context: Context, access: Access, writes: Writes, given: dict[str, Any]
) -> dict[str, Any]:
    values = _checked(given)
    mailboxes = await email_store.targets(context, access, values["mailboxIds"])
    flags = email_store.flags(context, values.get("keywords", ()))
    services = context.services
    try:
        ref, blob = await content.find(services, access, values["blobId"])
    except MailError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        raise invalid_properties(["blobId"], error.text) from error
    source = content.stream(services, ref, blob)
    start = await anext(source, b"")
    if not _is_message(start[:HEADER]):
        raise SetError("invalidEmail", "this is not a message")
    received_at = values.get("receivedAt", _received(start[:HEADER]))
    if received_at is None:
        received_at = int(services.clock.now())
    incoming = await services.receive.open_append(
        access, mailboxes, flags, received_at, ref.size
    )
    receipt, digest = await _copy(incoming, start, source)
    assert receipt.added is not None
    writes.wrote(receipt.added.modseq)
    return email_store.created(receipt.added, digest, receipt.size)


async def _copy(
    incoming: Appended, start: bytes, source: AsyncIterator[bytes]
) -> tuple[Receipt, bytes]:
    """Write all chunks and finish; returns the SHA-256 of them too."""
    digest = hashlib.sha256(start)
    try:
        await incoming.write(start)
        async for chunk in source:
            digest.update(chunk)
            await incoming.write(chunk)
    except BaseException:
        incoming.abort()
        raise
    try:
        receipt = await incoming.finish()
    except MailError as error:
        if error.kind is not Kind.INVALID:
            raise
        raise SetError("invalidEmail", error.text) from error
    return receipt, digest.digest()


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """Check an EmailImport; ``invalidProperties`` lists all that is wrong."""
    values: dict[str, Any] = {}
    wrong = [name for name in given if name not in _CHECKS]
    wrong += [name for name in ("blobId", "mailboxIds") if name not in given]
    for name, check in _CHECKS.items():
        if given.get(name) is None:
            wrong += [name] if name in given and name != "receivedAt" else []
            continue
        try:
            values[name] = check(given[name])
        except Bad:
            wrong.append(name)
    if wrong:
        raise invalid_properties(wrong)
    return values


def _received(block: bytes) -> int | None:
    """Return when the most recent Received field says the message came."""
    for field in iter_fields(block[: header_end(block)]):
        if field.name.lower() == b"received":
            found = parse_date(field.value.rpartition(b";")[2])
            return found.epoch if found else None
    return None


def _is_message(block: bytes) -> bool:
    return next(iter_fields(block), None) is not None


METHOD = Method("Email/import", MAIL, run, TAKES)
