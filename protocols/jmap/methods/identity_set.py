"""Identity/set (RFC 8621 section 6.3)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import orjson

from protocols.jmap import identity, setting
from protocols.jmap.method import Method
from protocols.jmap.services import SUBMISSION
from protocols.jmap.wire import ids, patch
from protocols.jmap.wire.errors import SetError, invalid_properties
from storage.model import Identity

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context
    from protocols.jmap.setting import SetRun

_FIELDS = {
    "name": "name",
    "replyTo": "reply_to",
    "bcc": "bcc",
    "textSignature": "text_signature",
    "htmlSignature": "html_signature",
}


async def run(context: Context, args: Arguments) -> Arguments:
    """Create, change and destroy identities."""
    call = await setting.start(context, args, "Identity")
    for creation_id, given in call.create.items():
        await setting.attempt(
            call.not_created, creation_id, _create(call, creation_id, given)
        )
    for text, given in setting.resolve_update(call).items():
        await setting.attempt(call.not_updated, text, _update(call, text, given))
    for text in call.destroy:
        await setting.attempt(call.not_destroyed, text, _destroy(call, text))
    return await call.response()


def _stored(values: dict[str, Any]) -> dict[str, Any]:
    """Return the checked values under the names that they are stored by."""
    found = {_FIELDS[name]: value for name, value in values.items() if name in _FIELDS}
    for name in ("reply_to", "bcc"):
        if name in found:
            found[name] = orjson.dumps(found[name])
    return found


async def _create(call: SetRun, creation_id: str, given: dict[str, Any]) -> None:
    values, wrong = identity.checked({**identity.DEFAULTS, **given})
    if "email" not in given:
        wrong.append("email")
    if wrong:
        raise invalid_properties(wrong)
    services, account = call.context.services, call.access.account
    if not await services.directory.may_send_as(account, values["email"]):
        raise SetError("forbiddenFrom", "this is not an address of the account")
    new = Identity(0, email=values["email"], **_stored(values))
    made = await services.identities.create(call.access, new)
    call.writes.wrote(made.modseq)
    shown = identity.show(made)
    told = {name: value for name, value in shown.items() if name not in given}
    call.did_create(creation_id, shown["id"], told)


async def _find(call: SetRun, text: str) -> Identity:
    number = ids.parse_identity(call.context.real(text))
    _, listed = await call.context.services.identities.list(call.access)
    for one in listed:
        if one.identity_id == number:
            return one
    raise SetError("notFound")


async def _update(call: SetRun, text: str, given: dict[str, Any]) -> None:
    before = await _find(call, text)
    current = identity.show(before)
    touched = patch.apply(current, given)
    fixed = identity.SERVER_SET | {"email"}
    wrong = [
        name for name in touched if name in fixed and touched[name] != current[name]
    ]
    changed = {
        name: identity.DEFAULTS.get(name) if value is None else value
        for name, value in touched.items()
        if name not in fixed
    }
    values, bad = identity.checked(changed)
    if wrong or bad:
        raise invalid_properties(wrong + bad)
    new = dataclasses.replace(before, **_stored(values))
    made = await call.context.services.identities.update(call.access, new)
    call.writes.wrote(made.modseq)
    call.updated[text] = None


async def _destroy(call: SetRun, text: str) -> None:
    found = await _find(call, text)
    await call.context.services.identities.destroy(call.access, found.identity_id)
    call.writes.unnamed += 1
    call.destroyed.append(text)


METHOD = Method("Identity/set", SUBMISSION, run, setting.TAKES)
