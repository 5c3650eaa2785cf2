"""Header values that clients give (RFC 8621 section 4.6), made ready for writing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mailserverd.mail.build import (
    Addresses,
    Header,
    MessageIds,
    Raw,
    Text,
    Urls,
    When,
)
from protocols.jmap.wire import dates
from protocols.jmap.wire.arguments import (
    Bad,
    anything,
    list_of,
    mapping,
    nullable,
    string,
)
from protocols.jmap.wire.headers import Form, HeaderProperty

if TYPE_CHECKING:
    from collections.abc import Callable

Value = Raw | Text | Addresses | MessageIds | Urls | When
MAX_ADDRESSES = 10_000
_ADDRESS_MEMBERS = frozenset({"name", "email"})
_GROUP_MEMBERS = frozenset({"name", "addresses"})


def headers(wanted: HeaderProperty, value: Any) -> list[Header]:
    """Return the fields for one property; Bad when the value is of another type.

    Null and empty lists yield no field.
    """
    if value is None:
        return []
    values = list_of(anything)(value) if wanted.all else [value]
    build = _FORMS[wanted.form]
    found = [build(item) for item in values]
    return [Header(wanted.name, one) for one in found if one is not None]


def email_address(value: Any) -> tuple[str | None, str]:
    """EmailAddress: (name or None, email)."""
    given = mapping(value)
    if set(given) - _ADDRESS_MEMBERS or "email" not in given:
        raise Bad("an EmailAddress")
    return nullable(string)(given.get("name")) or None, string(given["email"])


def _addresses(value: Any) -> Addresses | None:
    found = tuple(email_address(item) for item in list_of(anything)(value))
    if len(found) > MAX_ADDRESSES:
        raise Bad("shorter")
    return Addresses(((None, found),)) if found else None


def _grouped(value: Any) -> Addresses | None:
    groups: list[tuple[str | None, tuple[tuple[str | None, str], ...]]] = []
    for item in list_of(mapping)(value):
        if set(item) - _GROUP_MEMBERS or "addresses" not in item:
            raise Bad("EmailAddressGroups")
        members = list_of(anything)(item["addresses"])
        label = nullable(string)(item.get("name"))
        groups.append((label, tuple(email_address(one) for one in members)))
    if sum(len(members) for _, members in groups) > MAX_ADDRESSES:
        raise Bad("shorter")
    return Addresses(tuple(groups)) if groups else None


def _date(value: Any) -> When:
    moment = dates.parse(string(value))
    if moment is None:
        raise Bad("a Date")
    offset = moment.utcoffset()
    minutes = 0 if offset is None else int(offset.total_seconds() // 60)
    return When(int(moment.timestamp()), minutes)


def _strings(value: Any) -> tuple[str, ...]:
    return tuple(list_of(string)(value))


def _message_ids(value: Any) -> MessageIds | None:
    return MessageIds(found) if (found := _strings(value)) else None


def _urls(value: Any) -> Urls | None:
    return Urls(found) if (found := _strings(value)) else None


_FORMS: dict[Form, Callable[[Any], Value | None]] = {
    Form.RAW: lambda value: Raw(string(value)),
    Form.TEXT: lambda value: Text(string(value)),
    Form.ADDRESSES: _addresses,
    Form.GROUPED: _grouped,
    Form.MESSAGE_IDS: _message_ids,
    Form.DATE: _date,
    Form.URLS: _urls,
}
