"""Email/set (RFC 8621 section 4.6)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind
from protocols.jmap import (
    email_create,
    email_properties,
    email_show,
    email_store,
    email_update,
    gets,
    setting,
)
from protocols.jmap.method import Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import arguments, ids
from protocols.jmap.wire.errors import (
    MethodError,
    SetError,
    invalid_properties,
    kind_error,
)

if TYPE_CHECKING:
    from protocols.jmap.email_update import Update
    from protocols.jmap.method import Arguments, Context
    from protocols.jmap.setting import SetRun
    from storage.model import EmailPatch

TAKES = setting.TAKES


async def run(context: Context, args: Arguments) -> Arguments:
    """Create drafts, change keywords and mailboxes, destroy."""
    call = await setting.start(context, args, "Email")
    for creation_id, given in call.create.items():
        await setting.attempt(
            call.not_created, creation_id, _create(call, creation_id, given)
        )
    await _update(call)
    await _destroy(call)
    return await call.response()


# --- create ---------------------------------------------------------------------


async def _create(call: SetRun, creation_id: str, given: dict[str, Any]) -> None:
    context = call.context
    draft = email_create.read(given)
    mailboxes = await email_store.targets(context, call.access, draft.mailbox_ids)
    flags = email_store.flags(context, draft.keywords)
    raw = await email_create.build(context, call.access, draft)
    received_at = draft.received_at
    if received_at is None:
        received_at = int(context.services.clock.now())
    added = await context.services.receive.store_message(
        call.access, raw, mailboxes, flags, received_at
    )
    call.writes.wrote(added.modseq)
    shown = email_store.created(added, hashlib.sha256(raw).digest(), len(raw))
    call.did_create(creation_id, shown["id"], shown)


# --- update ---------------------------------------------------------------------


async def _update(call: SetRun) -> None:
    """Apply all patches in one unit; each email's succeeds or fails as a whole."""
    updates: dict[int, tuple[str, Update]] = {}
    for text, given in setting.resolve_update(call).items():
        number = ids.parse_email(text)
        done, update = await setting.attempt(call.not_updated, text, _read(given))
        if done and update is not None:
            if number is None:
                call.not_updated[text] = SetError("notFound").object()
            else:
                updates[number] = (text, update)
    await _check_others(call, updates)
    patches = await _patches(call, updates)
    if not patches:
        return
    untouched = not call.created and call.args["ifInState"] is not None
    result = await call.context.services.messages.update(
        call.access,
        patches,
        if_modseq=call.writes.before.email if untouched else None,
    )
    call.writes.wrote(result.modseq)
    for number, (kind, reason) in result.errors:
        call.not_updated[updates[number][0]] = _refused(Kind[kind], reason)
    call.updated.update({updates[number][0]: None for number in result.updated})


async def _read(given: dict[str, Any]) -> Update:
    return email_update.read(given)


async def _patches(
    call: SetRun, updates: dict[int, tuple[str, Update]]
) -> list[EmailPatch]:
    """Return patches in storage's terms, of those whose mailboxes exist."""
    texts = {
        text
        for _, update in updates.values()
        for text in (*update.mailboxes, *update.remove_mailboxes)
    }
    numbers: dict[str, int] = {}
    if texts:
        numbers = await email_store.mailbox_numbers(call.context, call.access, texts)
    found: list[EmailPatch] = []
    for number, (text, update) in updates.items():
        missing = update.mailboxes - numbers.keys()
        if missing:
            names = [f"mailboxIds/{one}" for one in sorted(missing)]
            if update.set_mailboxes is not None:
                names = ["mailboxIds"]
            error = invalid_properties(names, "no such mailbox")
            call.not_updated[text] = error.object()
        else:
            found.append(update.resolve(number, numbers))
    return found


async def _check_others(call: SetRun, updates: dict[int, tuple[str, Update]]) -> None:
    """Accept what may not change only as it is (RFC 8620 section 5.3)."""
    for number, (text, update) in list(updates.items()):
        if not update.others:
            continue
        done, _ = await setting.attempt(
            call.not_updated, text, _same(call, number, update.others)
        )
        if not done:
            del updates[number]


async def _same(call: SetRun, number: int, others: dict[str, Any]) -> None:
    wrong = [name for name in others if name == "bodyValues"]
    asked = arguments.parse(
        {**gets.TAKES, **email_properties.TAKES},
        {
            "accountId": call.args["accountId"],
            "properties": [name for name in others if name not in wrong],
        },
    )
    try:
        plan = email_properties.plan(asked, ())
    except MethodError as error:
        raise invalid_properties(list(others), error.description) from error
    messages = call.context.services.messages
    rows = await messages.rows(call.access, [number], plan.columns)
    row = rows.get(number)
    if row is None or not row.mailboxes:
        raise SetError("notFound")
    shown = await email_show.show(call.context, row, plan)
    wrong += [name for name in others if shown.get(name) != others[name]]
    if wrong:
        raise invalid_properties(wrong, "these cannot be changed")


def _refused(kind: Kind, reason: str) -> dict[str, Any]:
    if kind is Kind.LIMIT:
        return SetError("tooManyKeywords", reason).object()
    if kind is Kind.INVALID or (kind is Kind.NOT_FOUND and "mailbox" in reason):
        return invalid_properties(["mailboxIds"], reason).object()
    return kind_error(kind, reason, {}).object()


# --- destroy --------------------------------------------------------------------


async def _destroy(call: SetRun) -> None:
    numbers: dict[int, str] = {}
    for text in call.destroy:
        number = ids.parse_email(call.context.real(text))
        if number is None:
            call.not_destroyed[text] = SetError("notFound").object()
        else:
            numbers[number] = text
    if not numbers:
        return
    untouched = not call.created and not call.updated
    result = await call.context.services.messages.destroy(
        call.access,
        list(numbers),
        if_modseq=call.writes.before.email
        if untouched and call.args["ifInState"] is not None
        else None,
    )
    call.writes.wrote(result.modseq)
    for number, (kind, reason) in result.errors:
        error = kind_error(Kind[kind], reason, {})
        call.not_destroyed[numbers[number]] = error.object()
    call.destroyed += [numbers[number] for number in result.destroyed]


METHOD = Method("Email/set", MAIL, run, TAKES)
