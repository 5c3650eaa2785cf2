"""Email/parse (RFC 8621 section 4.9): blobs as Emails, without importing them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from mailserverd.core.errors import Kind, MailError
from mailserverd.mail import mime
from mailserverd.mail.headers import iter_fields
from protocols.jmap import content, email_properties
from protocols.jmap.email_body import Raw
from protocols.jmap.email_show import Message
from protocols.jmap.method import ACCOUNT, Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire.arguments import Argument, identifier, list_of
from protocols.jmap.wire.errors import MethodError

if TYPE_CHECKING:
    from mailserverd.mail.model import ParsedMessage
    from protocols.jmap.email_properties import Plan
    from protocols.jmap.header_forms import Spend
    from protocols.jmap.method import Arguments, Context
    from protocols.jmap.wire.ids import Blob

TAKES = {
    "accountId": ACCOUNT,
    "blobIds": Argument(list_of(identifier)),
    **email_properties.TAKES,
}
BUSY = 64 * 1024  # octets of a message that is parsed off the loop
UNKNOWN = ("id", "threadId", "mailboxIds", "keywords", "receivedAt")


class _NoMessage(Exception):
    """A blob that cannot be parsed as a message."""


async def run(context: Context, args: Arguments) -> Arguments:
    """Parse blobs; what the mail store alone knows of an Email is null."""
    access = context.access(args["accountId"])
    plan = email_properties.plan(args, email_properties.PARSE_DEFAULT)
    wanted = list(dict.fromkeys(args["blobIds"]))
    if len(wanted) > context.limits.max_objects_in_get:
        raise MethodError("requestTooLarge", "more blobs than maxObjectsInGet")
    parsed: dict[str, Any] = {}
    not_parsable: list[str] = []
    not_found: list[str] = []
    for blob_id in wanted:
        try:
            ref, blob = await content.find(context.services, access, blob_id)
            context.spend(ref.size)
            raw = await content.read(context.services, ref, blob)
            parsed[blob_id] = await _parse(context, plan, raw, blob)
            await asyncio.sleep(0)  # let others have their turn
        except _NoMessage:
            not_parsable.append(blob_id)
        except MailError as error:
            if error.kind is Kind.TOO_LARGE:
                not_parsable.append(blob_id)
            elif error.kind is Kind.NOT_FOUND:
                not_found.append(blob_id)
            else:
                raise
    return {
        "accountId": args["accountId"],
        "parsed": parsed or None,
        "notParsable": not_parsable or None,
        "notFound": not_found or None,
    }


async def _parse(
    context: Context, plan: Plan, raw: bytes, blob: Blob
) -> dict[str, Any]:
    if next(iter_fields(raw), None) is None:
        raise _NoMessage
    if len(raw) > BUSY:
        return await context.services.offload(_show, plan, raw, blob, context.spend)
    return _show(plan, raw, blob, context.spend)


def _show(plan: Plan, raw: bytes, blob: Blob, spend: Spend) -> dict[str, Any]:
    found: ParsedMessage = mime.parse(raw)
    shown: dict[str, Any] = {name: None for name in UNKNOWN if name in plan.metadata}
    if "blobId" in plan.metadata:
        shown["blobId"] = blob.render()
    if "size" in plan.metadata:
        shown["size"] = found.size
    if plan.listed:
        spend(len(found.list_json))
        stored = orjson.loads(found.list_json)
        shown.update({name: stored[name] for name in plan.listed})
    message = Message(found.parts, blob, found.header_size, spend)
    shown.update(message.show(plan, Raw({}, raw)))
    return shown


METHOD = Method("Email/parse", MAIL, run, TAKES)
