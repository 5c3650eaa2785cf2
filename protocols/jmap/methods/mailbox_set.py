"""Mailbox/set (RFC 8621 section 2.5)."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from protocols.jmap import mailbox, setting
from protocols.jmap.method import Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import ids, patch
from protocols.jmap.wire.arguments import Argument, boolean
from protocols.jmap.wire.errors import SetError, invalid_properties, set_error
from storage.model import Mailbox, MailboxPatch, NewMailbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocols.jmap.method import Arguments, Context
    from protocols.jmap.setting import SetRun

TAKES = {**setting.TAKES, "onDestroyRemoveEmails": Argument(boolean, False)}
DEFAULTS = {"parentId": None, "role": None, "sortOrder": 0, "isSubscribed": True}
MAX_ORDER = 1 << 31
TOP = -1


async def run(context: Context, args: Arguments) -> Arguments:
    """Create, change and destroy mailboxes, parents before children."""
    call = await setting.start(context, args, "Mailbox")
    for creation_id in _by_parents(call.create):
        await setting.attempt(call.not_created, creation_id, _create(call, creation_id))
    for text, given in setting.resolve_update(call).items():
        await setting.attempt(call.not_updated, text, _update(call, text, given))
    for text in await _children_first(call):
        await setting.attempt(call.not_destroyed, text, _destroy(call, text))
    return await call.response()


def _by_parents(create: dict[str, Any]) -> list[str]:
    """Return creation ids so that what is referred to comes first."""
    order: dict[str, None] = {}
    for start in create:
        chain: list[str] = []
        here: str | None = start
        while here is not None and here not in order and here not in chain:
            chain.append(here)
            parent = create[here].get("parentId")
            named = isinstance(parent, str) and parent[:1] == "#"
            here = parent[1:] if named and parent[1:] in create else None
        order.update(dict.fromkeys(reversed(chain)))
    return list(order)


# --- create ---------------------------------------------------------------------


async def _create(call: SetRun, creation_id: str) -> None:
    given = call.create[creation_id]
    bad = [name for name in given if name not in mailbox.PROPERTIES]
    bad += [name for name in given if name in mailbox.SERVER_SET]
    values, wrong = _checked(call, {**DEFAULTS, **given})
    if "name" not in given:
        wrong.append("name")
    if bad or wrong:
        raise invalid_properties(bad + wrong)
    new = NewMailbox(
        values["name"],
        values["parentId"],
        values["role"] or "",
        values["isSubscribed"],
        values["sortOrder"],
    )
    try:
        made = await call.context.services.mailboxes.create(call.access, new)
    except MailError as error:
        raise _refused(error) from error
    call.writes.wrote(made.created_modseq)
    shown = mailbox.show(made)
    told = {k: v for k, v in shown.items() if k not in given or given[k] != v}
    call.did_create(creation_id, shown["id"], told)


def _checked(call: SetRun, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return values fit for storage, and the names of those that are not."""
    checks: dict[str, Callable[[Any], Any]] = {
        "name": _name,
        "role": _role,
        "sortOrder": _order,
        "isSubscribed": _subscribed,
        "parentId": lambda value: _parent(call, value),
    }
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for name, check in checks.items():
        if name in given:
            try:
                values[name] = check(given[name])
            except ValueError:
                wrong.append(name)
    return values, wrong


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return unicodedata.normalize("NFC", value)


def _role(value: Any) -> str:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(value)
    return value or ""


def _order(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MAX_ORDER:
        raise ValueError(value)
    return value


def _subscribed(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)  # noqa: TRY004 - one kind of refusal
    return value


def _parent(call: SetRun, value: Any) -> int | None:
    if value is None:
        return None
    number = None
    if isinstance(value, str):
        number = ids.parse_mailbox(call.context.real(value))
    if number is None:
        raise ValueError(value)
    return number


def _refused(error: MailError) -> SetError:
    """Name the property that a service's refusal is about."""
    if error.kind in {Kind.ALREADY_EXISTS, Kind.INVALID}:
        named = error.details.get("properties") or ["name"]
        return invalid_properties(list(named), error.text)  # type: ignore[call-overload]
    if error.kind is Kind.NOT_FOUND and "parent" in error.text:
        return invalid_properties(["parentId"], error.text)
    return set_error(error)


# --- update ---------------------------------------------------------------------


async def _find(call: SetRun, text: str) -> Mailbox:
    number = ids.parse_mailbox(call.context.real(text))
    listed = await call.context.services.mailboxes.list(call.access)
    for box in listed.mailboxes:
        if box.mailbox_id == number:
            return box
    raise SetError("notFound")


async def _update(call: SetRun, text: str, given: dict[str, Any]) -> None:
    box = await _find(call, text)
    current = mailbox.show(box)
    touched = patch.apply(current, given)
    bad = [name for name in touched if name not in mailbox.PROPERTIES]
    bad += [
        name
        for name, value in touched.items()
        if name in mailbox.SERVER_SET and value != current[name]
    ]
    changed = {
        name: DEFAULTS.get(name) if value is None else value
        for name, value in touched.items()
        if name not in mailbox.SERVER_SET
    }
    values, wrong = _checked(call, changed)
    if bad or wrong:
        raise invalid_properties(bad + wrong)
    if "parentId" in values and values["parentId"] is None:
        values["parentId"] = TOP
    wanted = MailboxPatch(
        box.mailbox_id,
        values.get("name"),
        values.get("parentId"),
        values.get("role"),
        values.get("isSubscribed"),
        values.get("sortOrder"),
    )
    try:
        after = await call.context.services.mailboxes.update(call.access, wanted)
    except MailError as error:
        raise _refused(error) from error
    call.writes.wrote(after.properties_modseq)
    call.updated[text] = _unasked(mailbox.show(after), touched)


def _unasked(after: dict[str, Any], touched: dict[str, Any]) -> dict[str, Any] | None:
    """Return what is not as the client asked for (a name made NFC, a default)."""
    told = {
        name: after[name] for name, value in touched.items() if after[name] != value
    }
    return told or None


# --- destroy --------------------------------------------------------------------


async def _children_first(call: SetRun) -> list[str]:
    """Return what to destroy, the deepest first, so that trees go in one call."""
    listed = await call.context.services.mailboxes.list(call.access)
    depth = {box.mailbox_id: box.path.count("/") for box in listed.mailboxes}

    def key(text: str) -> int:
        return -depth.get(ids.parse_mailbox(call.context.real(text)) or 0, 0)

    return sorted(call.destroy, key=key)


async def _destroy(call: SetRun, text: str) -> None:
    box = await _find(call, text)
    remove = call.args["onDestroyRemoveEmails"]
    await call.context.services.mailboxes.destroy(
        call.access, box.mailbox_id, remove_emails=remove
    )
    call.writes.unnamed += 2 if remove and box.messages else 1
    call.destroyed.append(text)


METHOD = Method("Mailbox/set", MAIL, run, TAKES)
