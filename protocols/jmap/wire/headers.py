"""Header properties: ``header:Name[:asForm][:all]`` (RFC 8621 section 4.1.3)."""

from __future__ import annotations

import dataclasses
import enum


class Form(enum.Enum):
    """How the value of a header field is given (RFC 8621 section 4.1.2)."""

    RAW = "Raw"
    TEXT = "Text"
    ADDRESSES = "Addresses"
    GROUPED = "GroupedAddresses"
    MESSAGE_IDS = "MessageIds"
    DATE = "Date"
    URLS = "URLs"


_ADDRESS_FIELDS = frozenset(
    {"from", "sender", "reply-to", "to", "cc", "bcc"}
    | {"resent-from", "resent-sender", "resent-reply-to", "resent-to"}
    | {"resent-cc", "resent-bcc"}
)
_ID_FIELDS = frozenset({"message-id", "in-reply-to", "references", "resent-message-id"})
_DATE_FIELDS = frozenset({"date", "resent-date"})
_URL_FIELDS = frozenset(
    {"list-help", "list-unsubscribe", "list-subscribe", "list-post"}
    | {"list-owner", "list-archive"}
)
_TEXT_FIELDS = frozenset({"subject", "comments", "keywords"})
_KNOWN = (
    _ADDRESS_FIELDS
    | _ID_FIELDS
    | _DATE_FIELDS
    | _URL_FIELDS
    | _TEXT_FIELDS
    | {"return-path", "received"}
)
_ALLOWED = {
    Form.TEXT: _TEXT_FIELDS,
    Form.ADDRESSES: _ADDRESS_FIELDS,
    Form.GROUPED: _ADDRESS_FIELDS,
    Form.MESSAGE_IDS: _ID_FIELDS,
    Form.DATE: _DATE_FIELDS,
    Form.URLS: _URL_FIELDS,
}
_FORMS = {form.value: form for form in Form}


@dataclasses.dataclass(frozen=True, slots=True)
class HeaderProperty:
    """Which header field, in which form, the last instance or all of them.

    ``name`` is as the client wrote it; ``key`` is it in lower case.
    """

    name: str
    form: Form = Form.RAW
    all: bool = False

    @property
    def key(self) -> str:
        """The field name in lower case."""
        return self.name.lower()

    @property
    def allowed(self) -> bool:
        """Whether the field may be had in this form (RFC 8621 section 4.1.2)."""
        if self.form is Form.RAW or self.key not in _KNOWN:
            return True
        return self.key in _ALLOWED[self.form]


def parse(text: str) -> HeaderProperty | None:
    """Parse a property name; None when it is no header property at all."""
    pieces = text.split(":")
    if pieces[0] != "header" or len(pieces) not in (2, 3, 4) or not _name(pieces[1]):
        return None
    form, rest = Form.RAW, pieces[2:]
    if rest and rest[0].startswith("as"):
        named = _FORMS.get(rest[0][2:])
        if named is None:
            return None
        form, rest = named, rest[1:]
    if rest not in ([], ["all"]):
        return None
    return HeaderProperty(pieces[1], form, bool(rest))


def _name(text: str) -> bool:
    return bool(text) and all("!" <= char <= "~" for char in text)


CONVENIENCE = {
    "messageId": HeaderProperty("Message-ID", Form.MESSAGE_IDS),
    "inReplyTo": HeaderProperty("In-Reply-To", Form.MESSAGE_IDS),
    "references": HeaderProperty("References", Form.MESSAGE_IDS),
    "sender": HeaderProperty("Sender", Form.ADDRESSES),
    "from": HeaderProperty("From", Form.ADDRESSES),
    "to": HeaderProperty("To", Form.ADDRESSES),
    "cc": HeaderProperty("Cc", Form.ADDRESSES),
    "bcc": HeaderProperty("Bcc", Form.ADDRESSES),
    "replyTo": HeaderProperty("Reply-To", Form.ADDRESSES),
    "subject": HeaderProperty("Subject", Form.TEXT),
    "sentAt": HeaderProperty("Date", Form.DATE),
}
