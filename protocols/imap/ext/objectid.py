"""OBJECTID (RFC 8474): the ids that JMAP uses, too; a copy keeps its EMAILID."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from protocols.imap.extension import Attribute, Extension, SearchKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocols.imap.extension import Finder, Page, Positions
    from protocols.imap.wire.cursor import Cursor

_ID = re.compile(r"[et]([1-9][0-9]{0,17})")


def _email_id(page: Page) -> tuple[bytes, Sequence[object]]:
    return b"EMAILID (e%d)", page.batch.email_ids


def _thread_id(page: Page) -> tuple[bytes, Sequence[object]]:
    return b"THREADID (t%d)", page.values["thread_id"]


def _parse(args: Cursor, _: str) -> str:
    return args.atom().decode("ascii")


def _number(text: str, kind: str) -> int:
    """Return the number of an id, -1 for what is none of ours."""
    match = _ID.fullmatch(text)
    return int(match[1]) if match and text[0] == kind else -1


async def _by_email(part: Finder, positions: Positions, wanted: str) -> Positions:
    number = _number(wanted, "e")
    return [i for i in positions if part.batch.email_ids[i] == number]


async def _by_thread(part: Finder, positions: Positions, wanted: str) -> Positions:
    number = _number(wanted, "t")
    pairs = await part.values(positions, "thread_id")
    return [i for i, thread_id in pairs if thread_id == number]


EXTENSION = Extension(
    capabilities=("OBJECTID",),
    attributes=(
        Attribute("EMAILID", _email_id),
        Attribute("THREADID", _thread_id, ("thread_id",)),
    ),
    search_keys=(
        SearchKey("EMAILID", _by_email, _parse),
        SearchKey("THREADID", _by_thread, _parse, cost=1),
    ),
)
