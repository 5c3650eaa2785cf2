"""Header fields in the forms of RFC 8621 section 4.1.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mailserverd.mail import headers as fields
from protocols.jmap.wire.headers import Form, HeaderProperty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_FORMS: dict[Form, Callable[[bytes], Any]] = {
    Form.RAW: fields.as_raw,
    Form.TEXT: fields.as_text,
    Form.ADDRESSES: fields.as_addresses,
    Form.GROUPED: fields.as_grouped_addresses,
    Form.MESSAGE_IDS: fields.as_message_ids,
    Form.DATE: fields.as_date,
    Form.URLS: fields.as_urls,
}


def show(block: bytes, wanted: Iterable[tuple[str, HeaderProperty]]) -> dict[str, Any]:
    """Return property -> value for the header properties asked for."""
    values: dict[str, list[bytes]] = {}
    for field in fields.iter_fields(block):
        name = field.name.decode("latin-1").lower()
        values.setdefault(name, []).append(field.value)
    return {text: _value(values.get(one.key, []), one) for text, one in wanted}


def _value(found: list[bytes], wanted: HeaderProperty) -> Any:
    form = _FORMS[wanted.form]
    if wanted.all:
        return [form(value) for value in found]
    return form(found[-1]) if found else None


def show_all(block: bytes) -> list[dict[str, str]]:
    """Return all header fields, in order, values in Raw form."""
    return [
        {"name": fields.as_raw(field.name), "value": fields.as_raw(field.value)}
        for field in fields.iter_fields(block)
    ]
