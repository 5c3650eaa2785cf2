"""PREVIEW (RFC 8970): the first words of a message, made at arrival."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from protocols.imap.extension import Attribute, Extension
from protocols.imap.wire import encode
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocols.imap.extension import Page
    from protocols.imap.wire.cursor import Cursor

LONGEST = 200  # characters (section 3.1)


def _preview(page: Page) -> tuple[bytes, Sequence[object]]:
    return b"PREVIEW %b", [_value(each) for each in page.values["list_json"]]


def _value(summary: bytes) -> bytes:
    text = orjson.loads(summary)["preview"] or ""
    return encode.string(text[:LONGEST].encode("utf-8", "replace"))


def _modifier(args: Cursor) -> None:
    """``(LAZY)``: it costs nothing more, so it is always there."""
    if args.take(b" (") and (args.word() != "LAZY" or not args.take(b")")):
        raise WireError("unknown PREVIEW modifier")


EXTENSION = Extension(
    capabilities=("PREVIEW",),
    attributes=(Attribute("PREVIEW", _preview, ("list_json",), _modifier),),
)
