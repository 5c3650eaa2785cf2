"""Header fields in the forms of RFC 8621 section 4.1.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mailserverd.mail import headers as fields
from protocols.jmap.wire.headers import Form, HeaderProperty
from protocols.jmap.wire.references import VALUE, weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Spend = Callable[[int], None]

_FORMS: dict[Form, Callable[[bytes], Any]] = {
    Form.RAW: fields.as_raw,
    Form.TEXT: fields.as_text,
    Form.ADDRESSES: fields.as_addresses,
    Form.GROUPED: fields.as_grouped_addresses,
    Form.MESSAGE_IDS: fields.as_message_ids,
    Form.DATE: fields.as_date,
    Form.URLS: fields.as_urls,
}


def show(
    block: bytes, wanted: Iterable[tuple[str, HeaderProperty]], spend: Spend
) -> dict[str, Any]:
    """Return property -> value for the header properties asked for.

    ``spend`` is told what each weighs: a field can be asked for in any number of
    spellings.
    """
    values: dict[str, list[bytes]] = {}
    for field in fields.iter_fields(block):
        name = field.name.decode("latin-1").lower()
        values.setdefault(name, []).append(field.value)
    found: dict[str, Any] = {}
    for text, one in wanted:
        found[text] = _value(values.get(one.key, []), one)
        spend(len(text) + weight(found[text]))
    return found


def _value(found: list[bytes], wanted: HeaderProperty) -> Any:
    form = _FORMS[wanted.form]
    if wanted.all:
        return [form(value) for value in found]
    return form(found[-1]) if found else None


def show_all(block: bytes, spend: Spend) -> list[dict[str, str]]:
    """Return all header fields, in order, values in Raw form; see ``show``."""
    found: list[dict[str, str]] = []
    for field in fields.iter_fields(block):
        spend(field.end - field.start + 4 * VALUE)
        name, value = fields.as_raw(field.name), fields.as_raw(field.value)
        found.append({"name": name, "value": value})
    return found
