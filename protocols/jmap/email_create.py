"""Email/set create (RFC 8621 section 4.6): from JSON to the octets of a message."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from mailserverd.mail.build import EmailSpec, Header, build_email, render_header
from mailserverd.mail.encode import ComposeError
from protocols.jmap import content, email_parts, email_values
from protocols.jmap.wire import headers as names
from protocols.jmap.wire.arguments import (
    Bad,
    id_set,
    keyword_set,
    list_of,
    mapping,
    utc_date,
)
from protocols.jmap.wire.errors import SetError, invalid_properties

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailserverd.core.types import Access
    from protocols.jmap.email_parts import Node
    from protocols.jmap.method import Context
    from protocols.jmap.services import Services
    from protocols.jmap.wire.ids import Blob
    from storage.model import BlobRef

    Located = tuple[BlobRef, Blob]
    from protocols.jmap.wire.headers import HeaderProperty

BODIES = frozenset({"bodyStructure", "textBody", "htmlBody", "attachments"})
LARGE = 1024 * 1024  # octets of attachments: such messages are built one by one


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """A checked Email to create; mailboxes are still ids as the client gave them."""

    mailbox_ids: tuple[str, ...]
    keywords: tuple[str, ...]
    received_at: int | None
    headers: tuple[Header, ...]
    body: Node


class _Reader:
    """Collects what is given and every property that is wrong."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        self.wrong: list[str] = []
        self.reasons: list[str] = []

    def bad(self, name: str, reason: str) -> None:
        """Note a wrong property."""
        self.wrong.append(name)
        self.reasons.append(f"{name} must be {reason}")

    def take(self, name: str, check: Callable[[Any], Any], default: Any = None) -> Any:
        """Return a checked property; a wrong one is noted."""
        if self._given.get(name) is None:
            return default
        try:
            return check(self._given[name])
        except Bad as bad:
            self.bad(name, str(bad))
            return default

    def header_properties(self) -> dict[str, HeaderProperty]:
        """Return the properties that are header fields; note unknown properties."""
        found: dict[str, HeaderProperty] = {}
        seen: set[str] = set()
        for name in self._given:
            wanted = names.CONVENIENCE.get(name) or names.parse(name)
            if wanted is None:
                if name not in _OTHER and self._given[name] is not None:
                    self.bad(name, "left out: it is not the client's to set")
            elif not wanted.allowed or wanted.key.startswith("content-"):
                self.bad(name, "given in another form, or on a body part")
            elif wanted.key in seen:
                self.bad(name, "given once")
            else:
                seen.add(wanted.key)
                found[name] = wanted
        return found


_OTHER = BODIES | {"mailboxIds", "keywords", "receivedAt", "bodyValues"}


def read(given: dict[str, Any]) -> Draft:
    """Check an Email to create; ``invalidProperties`` lists all that is wrong."""
    reader = _Reader(given)
    properties = reader.header_properties()
    fields: list[Header] = []
    for name, wanted in properties.items():
        fields += reader.take(name, _fields_of(wanted), [])
    mailboxes = reader.take("mailboxIds", id_set, ())
    if not mailboxes:
        reader.bad("mailboxIds", "at least one Mailbox")
    keywords = reader.take("keywords", keyword_set, ())
    received_at = reader.take("receivedAt", utc_date)
    body = _body(reader, given, {one.key for one in properties.values()})
    if reader.wrong or body is None:
        raise invalid_properties(reader.wrong, "; ".join(reader.reasons))
    return Draft(mailboxes, keywords, received_at, tuple(fields), body)


def _fields_of(wanted: HeaderProperty) -> Callable[[Any], list[Header]]:
    return lambda value: email_values.headers(wanted, value)


def _body(reader: _Reader, given: dict[str, Any], top: set[str]) -> Node | None:
    values = reader.take("bodyValues", email_parts.body_values, {})
    parts = email_parts.PartReader(values)
    if given.get("bodyStructure") is not None:
        others = BODIES & {name for name in given if given[name] is not None}
        for name in sorted(others - {"bodyStructure"}):
            reader.bad(name, "left out where bodyStructure is given")
        return _structure(reader, parts, top)
    text = reader.take("textBody", _single(parts, "text/plain"))
    html = reader.take("htmlBody", _single(parts, "text/html"))
    attachments = reader.take("attachments", _attachments(parts), [])
    return None if reader.wrong else email_parts.arrange(text, html, attachments)


def _structure(
    reader: _Reader, parts: email_parts.PartReader, top: set[str]
) -> Node | None:
    def check(value: Any) -> Node:
        given = mapping(value)
        for name in given:
            wanted = names.parse(name)
            if wanted is not None and wanted.key in top:
                raise Bad(f"without {name}, which the Email has already")
        return parts.node(given, "text/plain")

    node: Node | None = reader.take("bodyStructure", check)
    return node


def _single(parts: email_parts.PartReader, media_type: str) -> Callable[[Any], Node]:
    def check(value: Any) -> Node:
        given = list_of(mapping)(value)
        if len(given) != 1:
            raise Bad("exactly one body part")
        node = parts.node(given[0], media_type)
        if node.shape.type != media_type:
            raise Bad(f"of type {media_type}")
        return node

    return check


def _attachments(parts: email_parts.PartReader) -> Callable[[Any], list[Node]]:
    def check(value: Any) -> list[Node]:
        found = [
            parts.node(given, "application/octet-stream")
            for given in list_of(mapping)(value)
        ]
        if any(isinstance(node, email_parts.Branch) for node in found):
            raise Bad("no multipart")
        return found

    return check


async def build(context: Context, access: Access, draft: Draft) -> bytes:
    """Return the message; ``blobNotFound``, ``tooLarge``, ``invalidProperties``."""
    wanted = {leaf.blob_id for leaf in email_parts.leaves(draft.body) if leaf.blob_id}
    found: dict[str, Located] = {}
    missing: list[str] = []
    for blob_id in sorted(wanted):
        try:
            found[blob_id] = await content.find(context.services, access, blob_id)
        except MailError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            missing.append(blob_id)
    if missing:
        raise SetError("blobNotFound", notFound=missing)
    size = sum(ref.size for ref, _ in found.values())
    limit = context.limits.max_size_attachments
    if size > limit:
        raise SetError("tooLarge", f"attachments of more than {limit} octets")
    if size <= LARGE:
        return await _build(context.services, draft, found)
    async with context.heavy:
        return await _build(context.services, draft, found)


async def _build(services: Services, draft: Draft, found: dict[str, Located]) -> bytes:
    blobs = {
        blob_id: await content.read(services, ref, blob)
        for blob_id, (ref, blob) in found.items()
    }
    spec = EmailSpec(draft.headers, email_parts.fill(draft.body, blobs))
    arguments = (spec, services.clock.now(), services.settings.hostname)
    try:
        if sum(map(len, blobs.values())) > LARGE:
            raw = await services.offload(_compose, *arguments)
        else:
            raw = _compose(*arguments)
    except ComposeError as error:
        raise invalid_properties(_blamed(draft), str(error)) from error
    if len(raw) > services.settings.limits.max_size_message:
        raise SetError("tooLarge", "the message is too large")
    return raw


def _compose(spec: EmailSpec, now: float, hostname: str) -> bytes:
    return build_email(spec, now=now, hostname=hostname)


def _blamed(draft: Draft) -> list[str]:
    """Return the header properties that cannot be written, or the body."""
    bad: list[str] = []
    for header in draft.headers:
        try:
            render_header(header)
        except ComposeError:
            bad.append(_property_of(header.name))
    return bad or ["bodyStructure"]


def _property_of(field: str) -> str:
    for name, wanted in names.CONVENIENCE.items():
        if wanted.key == field.lower():
            return name
    return f"header:{field}"
