"""What all ``/set`` methods share (RFC 8620 section 5.3)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

from mailserverd.core.errors import MailError
from protocols.jmap import states
from protocols.jmap.method import ACCOUNT
from protocols.jmap.states import Writes
from protocols.jmap.wire.arguments import (
    Argument,
    Schema,
    identifier,
    list_of,
    map_of,
    mapping,
    nullable,
    string,
)
from protocols.jmap.wire.errors import MethodError, SetError, set_error

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from mailserverd.core.types import Access
    from protocols.jmap.method import Arguments, Context

T = TypeVar("T")
TAKES: Schema = {
    "accountId": ACCOUNT,
    "ifInState": Argument(nullable(string), None),
    "create": Argument(nullable(map_of(mapping)), None),
    "update": Argument(nullable(map_of(mapping)), None),
    "destroy": Argument(nullable(list_of(identifier)), None),
}


@dataclasses.dataclass(slots=True)
class SetRun:
    """One ``/set`` call under way: what was asked, what became of it."""

    context: Context
    access: Access
    args: Arguments
    writes: Writes
    create: dict[str, Any]
    update: dict[str, Any]
    destroy: list[str]
    created: dict[str, Any] = dataclasses.field(default_factory=dict)
    updated: dict[str, Any] = dataclasses.field(default_factory=dict)
    destroyed: list[str] = dataclasses.field(default_factory=list)
    not_created: dict[str, Any] = dataclasses.field(default_factory=dict)
    not_updated: dict[str, Any] = dataclasses.field(default_factory=dict)
    not_destroyed: dict[str, Any] = dataclasses.field(default_factory=dict)

    def did_create(self, creation_id: str, object_id: str, shown: Any) -> None:
        """Note a new object; later calls may refer to it by its creation id."""
        self.context.created_ids[creation_id] = object_id
        self.created[creation_id] = shown

    async def response(self) -> Arguments:
        """Return the arguments of the response: every list is always there.

        What a creation id named in ``destroy`` stands there by its own id.
        """
        after = await states.current(self.context, self.access)
        real = self.context.real
        old, new = self.writes.states(after)
        return {
            "accountId": self.args["accountId"],
            "oldState": old,
            "newState": new,
            "created": self.created or None,
            "updated": self.updated or None,
            "destroyed": [real(text) for text in self.destroyed] or None,
            "notCreated": self.not_created or None,
            "notUpdated": self.not_updated or None,
            "notDestroyed": {
                real(text): error for text, error in self.not_destroyed.items()
            }
            or None,
        }


async def start(context: Context, args: Arguments, type_name: str) -> SetRun:
    """Check account, size and state; ``requestTooLarge``, ``stateMismatch``."""
    access = context.access(args["accountId"])
    create, update = args["create"] or {}, args["update"] or {}
    destroy = list(dict.fromkeys(args["destroy"] or ()))
    if len(create) + len(update) + len(destroy) > context.limits.max_objects_in_set:
        raise MethodError("requestTooLarge", "more objects than maxObjectsInSet")
    before = await states.current(context, access)
    states.check(before, type_name, args["ifInState"])
    writes = Writes(type_name, before)
    return SetRun(context, access, args, writes, create, update, destroy)


def resolve_update(run: SetRun) -> dict[str, Any]:
    """Return patches by real id, without those of objects that will be destroyed.

    Call after the creates, so that creation ids are known.
    """
    doomed = {run.context.real(text) for text in run.destroy}
    found: dict[str, Any] = {}
    for text, patch in run.update.items():
        real = run.context.real(text)
        if real in doomed:
            run.not_updated[real] = SetError("willDestroy").object()
        elif real in found:
            run.not_updated[text] = SetError("invalidPatch", "updated twice").object()
        else:
            found[real] = patch
    return found


async def attempt(
    bucket: dict[str, Any], key: str, action: Awaitable[T]
) -> tuple[bool, T | None]:
    """Await one create, update or destroy; a refusal goes into ``bucket[key]``."""
    try:
        return True, await action
    except SetError as error:
        bucket[key] = error.object()
    except MailError as error:
        bucket[key] = set_error(error).object()
    return False, None
