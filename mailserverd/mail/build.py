"""Build a message from decoded parts: what JMAP and ``/v1`` clients create.

RFC 5322 and MIME; the result is pure ASCII unless 8-bit content is asked for, an
address needs SMTPUTF8, or a raw field holds UTF-8.
"""

from __future__ import annotations

import binascii
import dataclasses
import random
import re
from typing import TYPE_CHECKING

from mailserverd.mail import encode
from mailserverd.mail.dates import format_date
from mailserverd.mail.encode import ComposeError

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST_LINE = 998  # octets, RFC 5322 section 2.1.1
_BASE64_LINE = 76
_MAX_DEPTH = 50
_NAME = re.compile(r"[!-9;-~]{1,900}")
_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+")
_WORD = re.compile(r"[A-Za-z0-9!#$&^_.+-]+")


@dataclasses.dataclass(frozen=True, slots=True)
class Raw:
    """A value as it shall stand (RFC 8621 section 4.1.2.1), folds included."""

    value: str


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """Decoded text; encoded words and folding are added."""

    value: str


@dataclasses.dataclass(frozen=True, slots=True)
class Addresses:
    """``(group name or None, ((display name or None, email), ...))`` in order."""

    groups: tuple[tuple[str | None, tuple[tuple[str | None, str], ...]], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class MessageIds:
    """Ids without angle brackets."""

    ids: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Urls:
    """URLs without angle brackets (RFC 2369)."""

    urls: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class When:
    """An instant in seconds since the epoch, shown minutes east of Greenwich."""

    epoch: int
    offset: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """One field in one of the decoded forms."""

    name: str
    value: Raw | Text | Addresses | MessageIds | Urls | When


@dataclasses.dataclass(frozen=True, slots=True)
class BodyPart:
    """A body part, or a multipart with its children.

    ``content`` holds decoded octets; text is in ``charset`` with any line ends.
    ``name`` is the file name, ``cid`` goes without brackets.  ``encoding`` "" lets
    the content decide; "7bit", "8bit", "quoted-printable" and "base64" insist, and
    "base64" keeps the octets as they are (a text attachment).
    """

    type: str
    content: bytes = b""
    children: tuple[BodyPart, ...] = ()
    charset: str | None = None
    disposition: str | None = None
    name: str | None = None
    cid: str | None = None
    language: tuple[str, ...] = ()
    location: str | None = None
    headers: tuple[Header, ...] = ()
    encoding: str = ""
    params: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class EmailSpec:
    """A message to build; Date, Message-ID and MIME-Version are added if missing."""

    headers: tuple[Header, ...]
    body: BodyPart
    eight_bit: bool = False  # text may stay 8bit


def build_email(
    spec: EmailSpec, *, now: float, hostname: str, rng: random.Random | None = None
) -> bytes:
    """Return the message with CRLF line ends; ComposeError when it cannot be built.

    ``now`` in seconds since the epoch; ``hostname`` ends a generated Message-ID.
    The same ``rng`` state gives the same octets.
    """
    builder = _Builder(rng or random.SystemRandom(), eight_bit=spec.eight_bit)
    names = {header.name.lower() for header in spec.headers}
    lines = [render_header(header) for header in spec.headers]
    if "date" not in names:
        lines.append(f"Date: {format_date(now)}\r\n")
    if "message-id" not in names:
        lines.append(f"Message-ID: <{new_message_id(now, hostname, rng)}>\r\n")
    if "mime-version" not in names:
        lines.append("MIME-Version: 1.0\r\n")
    return b"".join(["".join(lines).encode(), *builder.part(spec.body, 0)[1]])


def new_message_id(now: float, hostname: str, rng: random.Random | None = None) -> str:
    """Return a new Message-ID without brackets: ``18c2f0a1b2c.5f3a...@hostname``."""
    bits = (rng or random.SystemRandom()).getrandbits(80)
    return f"{int(now * 1000):x}.{bits:020x}@{hostname}"


def render_header(header: Header) -> str:
    """Return one field with its line end; ComposeError when it cannot be written."""
    name, value = header.name, header.value
    if not _NAME.fullmatch(name):
        raise ComposeError(f"{name!r} is no field name")
    if isinstance(value, Raw):
        return encode.raw_field(name, value.value)
    if isinstance(value, Text):
        return encode.text_field(name, value.value)
    if isinstance(value, Addresses):
        return encode.address_field(name, value.groups)
    if isinstance(value, MessageIds):
        return encode.bracket_field(name, value.ids, "")
    if isinstance(value, Urls):
        return encode.bracket_field(name, value.urls, ",")
    return f"{name}: {format_date(value.epoch, value.offset)}\r\n"


class _Builder:
    def __init__(self, rng: random.Random, *, eight_bit: bool) -> None:
        self._rng = rng
        self._eight_bit = eight_bit

    def part(self, part: BodyPart, depth: int) -> tuple[str, list[bytes]]:
        """Return the transfer encoding, and header block and body in pieces."""
        if not _TYPE.fullmatch(part.type) or depth > _MAX_DEPTH:
            raise ComposeError(f"{part.type!r} is no media type, or nested too deep")
        if part.type.lower().startswith("multipart/"):
            return self._multipart(part, depth)
        encoding, body = encode_body(part, eight_bit=self._eight_bit)
        return encoding, [_part_header(part, (), encoding), body]

    def _multipart(self, part: BodyPart, depth: int) -> tuple[str, list[bytes]]:
        """A multipart is 8bit when a part in it is (RFC 2045 section 6.4)."""
        if not part.children:
            raise ComposeError("a multipart needs parts")
        boundary = f"=_{self._rng.getrandbits(128):032x}"
        encoding, pieces = "", [b""]
        for child in part.children:
            inside, body = self.part(child, depth + 1)
            encoding = "8bit" if inside == "8bit" else encoding
            pieces += [f"--{boundary}\r\n".encode(), *body, b"\r\n"]
        pieces[0] = _part_header(part, (("boundary", boundary),), encoding)
        return encoding, [*pieces, f"--{boundary}--\r\n".encode()]


def _part_header(
    part: BodyPart, extra: Sequence[tuple[str, str]], encoding: str
) -> bytes:
    pairs = [*part.params, *extra]
    if part.charset:
        pairs.insert(0, ("charset", part.charset))
    if part.name and not part.disposition:
        pairs.append(("name", part.name))
    fields = [_with_params("Content-Type", part.type, pairs)]
    if encoding:
        fields.append(f"Content-Transfer-Encoding: {encoding}\r\n")
    if part.disposition:
        if not _WORD.fullmatch(part.disposition):
            raise ComposeError(f"{part.disposition!r} is no disposition")
        named = [("filename", part.name)] if part.name else []
        fields.append(_with_params("Content-Disposition", part.disposition, named))
    if part.cid:
        fields.append(encode.bracket_field("Content-ID", [part.cid], ""))
    if part.language:
        fields.append(encode.raw_field("Content-Language", ", ".join(part.language)))
    if part.location:
        fields.append(encode.raw_field("Content-Location", part.location))
    fields += [render_header(header) for header in part.headers]
    return "".join([*fields, "\r\n"]).encode()


def _with_params(name: str, value: str, pairs: Sequence[tuple[str, str]]) -> str:
    words = encode.params(pairs)
    return encode.fold(name, [f"{value};", *words] if words else [value])


def encode_body(part: BodyPart, *, eight_bit: bool = False) -> tuple[str, bytes]:
    """Return the transfer encoding and the encoded body of a leaf part.

    Messages are never encoded (RFC 2046 section 5.2.1); text is quoted-printable
    where it is mostly ASCII, everything else base64.
    """
    main = part.type.partition("/")[0].lower()
    data = part.content
    if main == "message":
        data = crlf(data)
        return ("7bit" if data.isascii() else "8bit"), data
    wide = main == "text" and (part.charset or "").lower().startswith(
        ("utf-16", "utf-32")
    )
    text = main == "text" and not wide
    if text and part.encoding != "base64":
        data = crlf(data)
    encoding = part.encoding or (_for_text(data, eight_bit) if text else "base64")
    if encoding in {"7bit", "8bit"} and not _fits(data, encoding):
        encoding = "base64" if not text else "quoted-printable"
    if encoding == "quoted-printable":
        return encoding, _quoted_printable(data, text=text)
    if encoding == "base64":
        return encoding, base64_lines(data)
    if encoding not in {"7bit", "8bit"}:
        raise ComposeError(f"cannot encode as {encoding!r}")
    return encoding, data


def crlf(data: bytes) -> bytes:
    """Return the octets with every bare CR or LF made CRLF."""
    ends = data.count(b"\r\n")
    if ends == data.count(b"\n") == data.count(b"\r"):
        return data
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return lines.replace(b"\n", b"\r\n")


def _for_text(data: bytes, eight_bit: bool) -> str:
    if _fits(data, "7bit"):
        return "7bit"
    if eight_bit and _fits(data, "8bit"):
        return "8bit"
    beyond = len(data.translate(None, bytes(range(128))))
    return "quoted-printable" if beyond * 6 <= len(data) else "base64"


def _fits(data: bytes, encoding: str) -> bool:
    if b"\x00" in data or (encoding == "7bit" and not data.isascii()):
        return False
    return all(len(line) <= _LONGEST_LINE for line in data.split(b"\r\n"))


def _quoted_printable(data: bytes, *, text: bool) -> bytes:
    if not text:
        encoded = binascii.b2a_qp(data, quotetabs=False, istext=False)
        return crlf(encoded)
    lines = data.replace(b"\r\n", b"\n")
    return binascii.b2a_qp(lines, istext=True).replace(b"\n", b"\r\n")


def base64_lines(data: bytes) -> bytes:
    """Return base64 in lines of 76 octets, without a final line end."""
    whole = binascii.b2a_base64(data, newline=False)
    places = range(0, len(whole), _BASE64_LINE)
    return b"\r\n".join([whole[start : start + _BASE64_LINE] for start in places])


def assemble(
    text: BodyPart | None, html: BodyPart | None, attachments: Sequence[BodyPart]
) -> BodyPart:
    """Arrange bodies and attachments as mail programs expect.

    Text and HTML become alternatives, parts with a Content-ID that are inline are
    related to the HTML, the rest is mixed in behind.  ComposeError without parts.
    """
    inline = [p for p in attachments if html and p.cid and p.disposition == "inline"]
    rest = [part for part in attachments if part not in inline]
    body = html
    if html and inline:
        body = BodyPart(
            "multipart/related",
            children=(html, *inline),
            params=(("type", "text/html"),),
        )
    if text and body:
        body = BodyPart("multipart/alternative", children=(text, body))
    body = body or text
    parts = (*([body] if body else ()), *rest)
    if not parts:
        raise ComposeError("a message needs a body or an attachment")
    return parts[0] if len(parts) == 1 else BodyPart("multipart/mixed", children=parts)
