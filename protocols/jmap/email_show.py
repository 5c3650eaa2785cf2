"""The Email object from stored rows: the list properties without parsing a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from mailserverd.mail.parts import load_parts
from protocols.jmap import header_forms
from protocols.jmap.email_body import BodyView, Raw
from protocols.jmap.wire import dates, ids
from protocols.jmap.wire.references import weight
from storage.model import SYSTEM_KEYWORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.mail.model import Part
    from protocols.jmap.email_body import Extent
    from protocols.jmap.email_properties import BodyPlan, Plan
    from protocols.jmap.header_forms import Spend
    from protocols.jmap.method import Context
    from protocols.jmap.wire.ids import Blob
    from storage.model import BlobRef, EmailRow, Flags

SYSTEM = [
    {name: True for name, bit in SYSTEM_KEYWORDS.items() if bits & bit}
    for bits in range(16)
]
WHOLE = 256 * 1024  # octets of a message that is read in one piece
BUSY = 128 * 1024  # octets of bodies that are decoded off the loop
HEADER = 1 << 20  # octets of a header block that are shown


def keywords(flags: Flags) -> dict[str, bool]:
    """Return the keywords of an email, as JMAP shows them."""
    shown = SYSTEM[flags.system & 15]
    return {**shown, **dict.fromkeys(flags.keywords, True)} if flags.keywords else shown


def metadata(row: EmailRow, plan: Plan) -> dict[str, Any]:
    """Return id and those metadata properties that were asked for."""
    wanted = plan.metadata
    found: dict[str, Any] = {"id": f"e{row.email_id}"}
    if "blobId" in wanted and row.blob is not None:
        found["blobId"] = ids.blob(row.blob.hash)
    if "threadId" in wanted:
        found["threadId"] = f"t{row.thread_id}"
    if "mailboxIds" in wanted:
        found["mailboxIds"] = {f"m{number}": True for number in row.mailboxes}
    if "keywords" in wanted:
        found["keywords"] = keywords(row.flags)
    if "size" in wanted:
        found["size"] = row.size
    if "receivedAt" in wanted:
        found["receivedAt"] = dates.utc(row.received_at)
    return found


def listed(row: EmailRow, plan: Plan) -> dict[str, Any]:
    """Return the list properties that were asked for, as stored at arrival."""
    stored: dict[str, Any] = orjson.loads(row.list_json)
    return {name: stored[name] for name in plan.listed}


def shows_without_octets(plan: Plan) -> bool:
    """Return whether an email whose octets cannot be read can be shown in part: its
    bodies are then truncated to nothing.  A header field would seem not to be there."""
    body = plan.body
    if plan.header_block or body is None:
        return False
    return not body.headers and "headers" not in body.properties


async def show(
    context: Context, row: EmailRow, plan: Plan, *, unreadable: bool = False
) -> dict[str, Any]:
    """Return an email with all properties asked for; UNAVAILABLE when its octets
    cannot be read, unless it is known to be ``unreadable``."""
    found = metadata(row, plan)
    if plan.listed:
        context.spend(len(row.list_json))
        found.update(listed(row, plan))
    if row.blob is not None and (plan.body is not None or plan.header_block):
        blob = ids.Blob(row.blob.hash)
        parts = load_parts(row.part_table) if plan.body is not None else ()
        message = Message(parts, blob, row.header_size, context.spend)
        if unreadable:
            return {**found, **message.show(plan, Raw({}, b"", unreadable=True))}
        needs = message.needs(plan)
        context.spend(sum(end - start for start, end in needs))
        raw = await _read(context, row.blob, needs)
        if sum(end - start for start, end in needs) > BUSY:
            found.update(await context.services.offload(message.show, plan, raw))
        else:
            found.update(message.show(plan, raw))
    return found


async def _read(context: Context, ref: BlobRef, needs: set[Extent]) -> Raw:
    messages = context.services.messages
    if ref.size <= WHOLE and needs:
        return Raw({}, await messages.read_blob(ref, 0, ref.size))
    return Raw({need: await messages.read_blob(ref, *need) for need in sorted(needs)})


class Message:
    """What of a message is not in its row's list properties: headers and bodies."""

    def __init__(
        self, parts: Sequence[Part], blob: Blob, header_size: int, spend: Spend
    ) -> None:
        self._parts = parts
        self._blob = blob
        self._header = (0, min(header_size, HEADER))
        self._spend = spend

    def needs(self, plan: Plan) -> set[Extent]:
        """Return the ranges of octets that ``show`` will read."""
        found: set[Extent] = {self._header} if plan.header_block else set()
        if plan.body is not None:
            found |= self._body(plan.body).needs()
        return found

    def show(self, plan: Plan, raw: Raw) -> dict[str, Any]:
        """Return header and body properties."""
        found: dict[str, Any] = {}
        if plan.header_block:
            block = raw.get(*self._header)
            found.update(header_forms.show(block, plan.headers, self._spend))
            if plan.all_headers:
                found["headers"] = header_forms.show_all(block, self._spend)
        if plan.body is not None:
            body = self._body(plan.body).show(raw)
            self._spend(weight(body))
            found.update(body)
        return found

    def _body(self, plan: BodyPlan) -> BodyView:
        return BodyView(plan, self._parts, self._blob, self._spend)
