"""The Identity object (RFC 8621 section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from protocols.jmap.email_values import email_address
from protocols.jmap.wire import ids
from protocols.jmap.wire.arguments import Bad, anything, list_of, nullable, string

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.model import Identity

PROPERTIES = (
    "id",
    "name",
    "email",
    "replyTo",
    "bcc",
    "textSignature",
    "htmlSignature",
    "mayDelete",
)
SERVER_SET = frozenset({"id", "mayDelete"})
DEFAULTS: dict[str, Any] = {
    "name": "",
    "replyTo": None,
    "bcc": None,
    "textSignature": "",
    "htmlSignature": "",
}
MAX_NAME = 500  # characters
MAX_SIGNATURE = 64 * 1024
MAX_ADDRESSES = 100


def show(identity: Identity) -> dict[str, Any]:
    """Return all properties of an identity."""
    return {
        "id": ids.identity(identity.identity_id),
        "name": identity.name,
        "email": identity.email,
        "replyTo": orjson.loads(identity.reply_to),
        "bcc": orjson.loads(identity.bcc),
        "textSignature": identity.text_signature,
        "htmlSignature": identity.html_signature,
        "mayDelete": identity.may_delete,
    }


def _short(limit: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if len(string(value)) > limit:
            raise Bad("shorter")
        return str(value)

    return check


def _addresses(value: Any) -> list[dict[str, str | None]]:
    found = [email_address(item) for item in list_of(anything)(value)]
    if len(found) > MAX_ADDRESSES:
        raise Bad("shorter")
    return [{"name": name, "email": email} for name, email in found]


CHECKS: dict[str, Callable[[Any], Any]] = {
    "name": _short(MAX_NAME),
    "email": string,
    "replyTo": nullable(_addresses),
    "bcc": nullable(_addresses),
    "textSignature": _short(MAX_SIGNATURE),
    "htmlSignature": _short(MAX_SIGNATURE),
}


def checked(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return checked values, and the names of the properties that are wrong."""
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in given.items():
        if isinstance(value, str) and "\0" in value:  # no database holds it as text
            wrong.append(name)
            continue
        try:
            values[name] = CHECKS[name](value)
        except (Bad, KeyError):
            wrong.append(name)
    return values, wrong
