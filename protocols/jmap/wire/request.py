"""The Request object (RFC 8620 section 3.3) and its WebSocket relatives (RFC 8887)."""

from __future__ import annotations

import dataclasses
from typing import Any

from protocols.jmap.wire.errors import limit, not_request
from protocols.jmap.wire.ids import is_id


@dataclasses.dataclass(frozen=True, slots=True)
class Invocation:
    """One call or response: name, arguments, and the client's id for the call."""

    name: str
    arguments: dict[str, Any]
    call_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What to do, in order.  ``created_ids`` is None unless the client gave it."""

    using: frozenset[str]
    calls: tuple[Invocation, ...]
    created_ids: dict[str, str] | None = None


def parse(value: Any, max_calls: int) -> Request:
    """Check a Request object; raises RequestError ``notRequest`` or ``limit``.

    Unknown properties are ignored (RFC 8620 section 3.3).
    """
    if not isinstance(value, dict):
        raise not_request("a Request is an object")
    using = value.get("using")
    if not isinstance(using, list) or not all(isinstance(u, str) for u in using):
        raise not_request("using must be an array of Strings")
    calls = value.get("methodCalls")
    if not isinstance(calls, list):
        raise not_request("methodCalls must be an array of Invocations")
    if len(calls) > max_calls:
        raise limit("maxCallsInRequest", f"more than {max_calls} method calls")
    return Request(
        frozenset(using),
        tuple(_invocation(call) for call in calls),
        _created_ids(value.get("createdIds")),
    )


def _invocation(value: Any) -> Invocation:
    match value:
        case [str(name), dict(arguments), str(call_id)]:
            return Invocation(name, arguments, call_id)
        case _:
            raise not_request("an Invocation is [String, Object, String]")


def _created_ids(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(
        is_id(key) and is_id(real) for key, real in value.items()
    ):
        raise not_request("createdIds must map Ids to Ids")
    return dict(value)


@dataclasses.dataclass(frozen=True, slots=True)
class SocketRequest:
    """A Request in a WebSocket message (RFC 8887 section 4.3.2)."""

    body: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class PushEnable:
    """Send StateChange for these types (None: all), from ``push_state`` on."""

    types: tuple[str, ...] | None
    push_state: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class PushDisable:
    """Send no more StateChange."""


SocketMessage = SocketRequest | PushEnable | PushDisable


def parse_socket_message(value: Any) -> SocketMessage:
    """Tell the client's messages apart (RFC 8887 section 4.3); ``notRequest`` else."""
    if not isinstance(value, dict):
        raise not_request("a message is an object")
    match value.get("@type"):
        case "Request":
            return SocketRequest(value)
        case "WebSocketPushEnable":
            return _push_enable(value)
        case "WebSocketPushDisable":
            return PushDisable()
        case _:
            raise not_request("@type names no message that a client may send")


def request_id(value: Any) -> str | None:
    """Return the ``id`` of a WebSocket request, as far as there is one."""
    found = value.get("id") if isinstance(value, dict) else None
    if found is not None and not isinstance(found, str):
        raise not_request("id must be a String")
    return found


def _push_enable(value: dict[str, Any]) -> PushEnable:
    types, state = value.get("dataTypes"), value.get("pushState")
    if types is not None and (
        not isinstance(types, list) or not all(isinstance(t, str) for t in types)
    ):
        raise not_request("dataTypes must be an array of Strings or null")
    if state is not None and not isinstance(state, str):
        raise not_request("pushState must be a String")
    return PushEnable(None if types is None else tuple(types), state)
