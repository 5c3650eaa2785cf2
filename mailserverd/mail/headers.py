"""Header blocks: fields with offsets, and the parsed forms of RFC 8621 section 4.1.2.

All functions take raw octets, as received, and never raise on their content.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, NamedTuple

from mailserverd.mail.addrlist import Address, parse_addresses
from mailserverd.mail.charsets import guess
from mailserverd.mail.dates import parse_date
from mailserverd.mail.words import decode_words, unfold

if TYPE_CHECKING:
    from collections.abc import Iterator

# A field with its folded lines, or a line that is none (empty name).
FIELD = re.compile(
    rb"([^\s:]++)[ \t]*+:([^\n]*(?:\n[ \t][^\n]*)*)\n?|[^\n]*+\n|[^\n]++"
)
BLANK = re.compile(rb"\n\r?\n")
_DOT_ATOM = re.compile(r"[^\s\"(),:;<>@\[\]\\]+")
_ID = re.compile(rb"<([^<>]*)>")
_URL = re.compile(rb"<([^<>]*)>")
_COMMENT = re.compile(rb"\([^()]*\)")
_MAX_IDS = 2000
EmailAddress = dict[str, str | None]


class Field(NamedTuple):
    """One header field: raw[start:end] is the whole of it, line end included.

    ``value`` is everything after the colon, up to but excluding the final line
    end, still folded (the Raw form of RFC 8621 section 4.1.2.1).
    """

    name: bytes
    value: bytes
    start: int
    end: int


def iter_fields(block: bytes) -> Iterator[Field]:
    """Yield the fields of a header block, in order; lines that are none are skipped.

    Stops at the first empty line.  Line ends may be CRLF or LF.
    """
    for match in FIELD.finditer(block):
        name, value = match.groups()
        if name is not None:
            yield Field(name, value.removesuffix(b"\r"), *match.span())
        elif match[0] in {b"\r\n", b"\n"}:
            return


def header_end(raw: bytes) -> int:
    """Return where the body of a message starts (after the blank line)."""
    if raw.startswith((b"\r\n", b"\n")):
        return raw.index(b"\n") + 1
    match = BLANK.search(raw)
    return match.end() if match else len(raw)


def get_all(block: bytes, name: str) -> list[bytes]:
    """Return the raw values of all fields of that name (case ignored), in order."""
    wanted = name.lower().encode()
    return [field.value for field in iter_fields(block) if field.name.lower() == wanted]


def get(block: bytes, name: str) -> bytes | None:
    """Return the raw value of the last field of that name, None when there is none.

    The last, as RFC 8621 section 4.1.3 asks.
    """
    values = get_all(block, name)
    return values[-1] if values else None


def as_raw(value: bytes) -> str:
    """Return the Raw form: U+FFFD for what is not UTF-8, NUL dropped."""
    return value.replace(b"\x00", b"").decode("utf-8", "replace")


def as_text(value: bytes) -> str:
    """Return the Text form: unfolded, encoded words decoded, NFC.

    Raw 8-bit text that is not UTF-8 is read as windows-1252, which is what
    its senders meant.
    """
    return decode_words(unfold(value).strip(b" \t"))


def _name(raw: bytes) -> str | None:
    return decode_words(raw).strip() or None if raw else None


def email_of(address: Address) -> str:
    """Return the addr-spec of a parsed address, quoted again where needed."""
    local = guess(address.mailbox or b"")
    if not address.host:
        return local
    if not _DOT_ATOM.fullmatch(local):
        local = '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{local}@{guess(address.host)}"


def _jmap(address: Address) -> EmailAddress:
    return {"name": _name(address.name), "email": email_of(address)}


def as_addresses(value: bytes) -> list[EmailAddress]:
    """Return the Addresses form: ``[{"name": str | None, "email": str}]``."""
    return jmap_addresses(parse_addresses(value))


def jmap_addresses(addresses: list[Address]) -> list[EmailAddress]:
    """Return parsed addresses in the Addresses form; group markers are left out."""
    return [_jmap(address) for address in addresses if address.host is not None]


def as_grouped_addresses(value: bytes) -> list[dict[str, object]]:
    """Return the GroupedAddresses form: ``[{"name": ..., "addresses": [...]}]``."""
    groups: list[dict[str, object]] = []
    members: list[EmailAddress] | None = None
    for address in parse_addresses(value):
        if address.host is not None:
            if members is None:
                members = []
                groups.append({"name": None, "addresses": members})
            members.append(_jmap(address))
        elif address.mailbox is None:
            members = None
        else:
            members = []
            groups.append({"name": _name(address.mailbox), "addresses": members})
    return groups


def message_ids(value: bytes) -> list[bytes]:
    """Return the ids of a Message-ID, In-Reply-To or References field.

    Without brackets and white space.  Ids without brackets are taken when
    nothing else is in the field.
    """
    value = unfold(value)
    if b"<" in value:
        found = itertools.islice(_ID.finditer(value), _MAX_IDS)
        return [i for i in (b"".join(match[1].split()) for match in found) if i]
    bare = value.translate(None, b">").split(None, _MAX_IDS)[:_MAX_IDS]
    return bare if bare and all(b"@" in word for word in bare) else []


def as_message_ids(value: bytes) -> list[str] | None:
    """Return the MessageIds form; None when no id can be read."""
    return [guess(found) for found in message_ids(value)] or None


def as_date(value: bytes) -> str | None:
    """Return the Date form, e.g. ``2014-10-30T14:12:00+08:00``; None if unreadable."""
    date = parse_date(value)
    return date.jmap() if date else None


def as_urls(value: bytes) -> list[str] | None:
    """Return the URLs form (RFC 2369); None when no URL can be read."""
    value = unfold(value)
    return [guess(b"".join(m[1].split())) for m in _URL.finditer(value)] or None
