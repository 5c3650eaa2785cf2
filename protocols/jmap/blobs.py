"""Upload and download of binary data (RFC 8620 section 6)."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Access
from protocols.jmap import content, replies
from protocols.jmap.wire import ids
from protocols.web import Response

if TYPE_CHECKING:
    from auth.people.authenticate import Principal
    from protocols.jmap.services import Services
    from protocols.web import Body, Head, Headers
    from storage.model import BlobRef

ANY_TYPE = "application/octet-stream"
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]{1,100}"
_TYPE = re.compile(
    rf"{_TOKEN}/{_TOKEN}(\s*;\s*{_TOKEN}=({_TOKEN}|\"[ !#-\[\]-~]{{0,200}}\"))*"
)
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})|bytes=-(\d{1,15})")
_UNSAFE = re.compile(r'[^ !#-\[\]-~]|[\\/"]')
MAX_NAME = 200  # characters of a file name


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What a download URL names."""

    account: str
    blob: str
    name: str
    type: str


def access_to(who: Principal, account: str) -> Access:
    """Return the access to an account named in a URL; NOT_FOUND otherwise."""
    if ids.parse_account(account) != who.account:
        raise MailError(Kind.NOT_FOUND, "no such account")
    return Access(who.account, who.account)


async def upload(
    services: Services, who: Principal, account: str, request: tuple[Head, Body]
) -> Response:
    """Keep what was sent for a day, or for as long as a message refers to it."""
    head, body = request
    access = access_to(who, account)
    given = head.header("content-type")
    media_type = given if _TYPE.fullmatch(given) else ANY_TYPE
    data = body.data if body.file is None else (body.file, body.size)
    ref = await services.messages.upload(access, data, media_type)
    return replies.json(
        {
            "accountId": account,
            "blobId": ids.blob(ref.hash),
            "type": media_type,
            "size": ref.size,
        },
        201,
    )


async def download(
    services: Services, who: Principal, wanted: Wanted, head: Head
) -> Response:
    """Stream a blob, or a decoded part of one, as an attachment.

    NOT_FOUND unless something of the account refers to it.
    """
    access = access_to(who, wanted.account)
    ref, blob = await content.find(services, access, wanted.blob)
    headers = _headers(wanted)
    if head.header("if-none-match") == f'"{wanted.blob}"':
        return Response(304, headers)
    if ref.size:
        await services.messages.read_blob(ref, 0, 1)  # 503 now, or a cut answer later
    plain = content.extent(ref, blob)
    if plain is None:
        return Response(200, headers, stream=content.stream(services, ref, blob))
    return _identity(services, ref, plain, headers, head)


def _identity(
    services: Services,
    ref: BlobRef,
    extent: tuple[int, int],
    headers: Headers,
    head: Head,
) -> Response:
    """Serve octets as they lie, a single range of them if asked for (RFC 9110 14)."""
    start, end = extent
    size = end - start
    headers = (*headers, ("Accept-Ranges", "bytes"))
    ranged = _range(head.header("range"), size)
    if ranged is None:
        stream = services.messages.stream_blob(ref, start, end)
        return Response(200, headers, stream=stream, length=size)
    first, last = ranged
    if first >= size:
        return Response(416, (*headers, ("Content-Range", f"bytes */{size}")))
    headers = (*headers, ("Content-Range", f"bytes {first}-{last - 1}/{size}"))
    stream = services.messages.stream_blob(ref, start + first, start + last)
    return Response(206, headers, stream=stream, length=last - first)


def _range(text: str, size: int) -> tuple[int, int] | None:
    """Return a single range, half-open; None to ignore the field."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    if match[3] is not None:
        return max(0, size - int(match[3])), size
    first = int(match[1])
    if not match[2]:
        return first, size
    last = int(match[2]) + 1
    return (first, min(last, size)) if last > first else None


def _headers(wanted: Wanted) -> Headers:
    """Make sure that no browser shows or runs what strangers sent."""
    media_type = wanted.type if _TYPE.fullmatch(wanted.type) else ANY_TYPE
    name = wanted.name[:MAX_NAME] or "download"
    plain = _UNSAFE.sub("_", name)
    extended = quote(_UNSAFE_PATH.sub("_", name), safe="")
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{extended}"
    return (
        ("Content-Type", media_type),
        ("Content-Disposition", disposition),
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Security-Policy", "sandbox; default-src 'none'"),
        ("Cache-Control", "private, immutable, max-age=31536000"),
        ("ETag", f'"{wanted.blob}"'),
        *replies.CORS,
    )


_UNSAFE_PATH = re.compile(r"[\x00-\x1f\x7f\\/]")
