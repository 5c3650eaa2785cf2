"""Which properties of emails a client asked for, and what it takes to read them.

RFC 8621 sections 4.1 and 4.2.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from protocols.jmap.wire import headers
from protocols.jmap.wire.arguments import (
    Argument,
    Schema,
    boolean,
    list_of,
    nullable,
    string,
    unsigned,
)
from protocols.jmap.wire.errors import invalid_arguments
from storage.model import Column

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments
    from protocols.jmap.wire.headers import HeaderProperty

METADATA = frozenset(
    {"id", "blobId", "threadId", "mailboxIds", "keywords", "size", "receivedAt"}
)
LISTED = frozenset({*headers.CONVENIENCE, "hasAttachment", "preview"})
BODY_LISTS = frozenset({"bodyStructure", "textBody", "htmlBody", "attachments"})
BODY = BODY_LISTS | {"bodyValues"}
KNOWN = METADATA | LISTED | BODY | {"headers"}
PARSE_DEFAULT = (
    "messageId",
    "inReplyTo",
    "references",
    "sender",
    "from",
    "to",
    "cc",
    "bcc",
    "replyTo",
    "subject",
    "sentAt",
    "hasAttachment",
    "preview",
    "bodyValues",
    "textBody",
    "htmlBody",
    "attachments",
)
GET_DEFAULT = (
    "id",
    "blobId",
    "threadId",
    "mailboxIds",
    "keywords",
    "size",
    "receivedAt",
    *PARSE_DEFAULT,
)
PART_DEFAULT = (
    "partId",
    "blobId",
    "size",
    "name",
    "type",
    "charset",
    "disposition",
    "cid",
    "language",
    "location",
)
PART_KNOWN = frozenset({*PART_DEFAULT, "headers", "subParts"})
TAKES: Schema = {
    "properties": Argument(nullable(list_of(string)), None),
    "bodyProperties": Argument(nullable(list_of(string)), None),
    "fetchTextBodyValues": Argument(boolean, False),
    "fetchHTMLBodyValues": Argument(boolean, False),
    "fetchAllBodyValues": Argument(boolean, False),
    "maxBodyValueBytes": Argument(unsigned, 0),
}


@dataclasses.dataclass(frozen=True, slots=True)
class BodyPlan:
    """What to show of body parts."""

    lists: frozenset[str]  # of BODY_LISTS
    properties: tuple[str, ...]
    headers: tuple[tuple[str, HeaderProperty], ...]
    values: bool  # whether bodyValues was asked for
    values_of: frozenset[str]  # of text html all
    max_bytes: int  # 0: no limit


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to show of emails.  ``header_block`` says that the octets are needed."""

    metadata: frozenset[str]
    listed: tuple[str, ...]
    headers: tuple[tuple[str, HeaderProperty], ...]
    all_headers: bool
    body: BodyPlan | None

    @property
    def shape(self) -> str:
        """A name for what is shown of the rows alone."""
        return ",".join((*sorted(self.metadata), "", *self.listed))

    @property
    def columns(self) -> Column:
        """What to read of each row; always whether JMAP shows the email at all."""
        columns = Column.MAILBOXES
        if self.listed:
            columns |= Column.LIST
        if self.body is not None:
            columns |= Column.PARTS
        if self.body is not None or self.header_block or "blobId" in self.metadata:
            columns |= Column.BASIC
        return columns

    @property
    def header_block(self) -> bool:
        """Whether the message's own header block has to be read."""
        return bool(self.headers) or self.all_headers


def plan(args: Arguments, default: tuple[str, ...]) -> Plan:
    """Sort the properties asked for; ``invalidArguments`` names all wrong ones."""
    asked = args["properties"]
    names = list(dict.fromkeys(default if asked is None else asked))
    fields = _header_properties(names, KNOWN)
    given = frozenset(names)
    return Plan(
        metadata=given & METADATA,
        listed=tuple(name for name in names if name in LISTED),
        headers=fields,
        all_headers="headers" in given,
        body=_body_plan(args, given & BODY),
    )


def _body_plan(args: Arguments, wanted: frozenset[str]) -> BodyPlan | None:
    given = args["bodyProperties"]
    names = list(dict.fromkeys(PART_DEFAULT if given is None else given))
    fields = _header_properties(names, PART_KNOWN)
    if not wanted:
        return None
    arguments = (
        ("fetchTextBodyValues", "text"),
        ("fetchHTMLBodyValues", "html"),
        ("fetchAllBodyValues", "all"),
    )
    return BodyPlan(
        lists=wanted & BODY_LISTS,
        properties=tuple(name for name in names if name in PART_KNOWN),
        headers=fields,
        values="bodyValues" in wanted,
        values_of=frozenset(name for argument, name in arguments if args[argument]),
        max_bytes=args["maxBodyValueBytes"],
    )


def _header_properties(
    names: list[str], known: frozenset[str]
) -> tuple[tuple[str, HeaderProperty], ...]:
    fields: list[tuple[str, HeaderProperty]] = []
    wrong: list[Any] = []
    for name in names:
        if name in known:
            continue
        field = headers.parse(name)
        if field is None or not field.allowed:
            wrong.append(name)
        else:
            fields.append((name, field))
    if wrong:
        raise invalid_arguments(f"not properties: {', '.join(wrong)}")
    return tuple(fields)
