"""Searching texts: index hits, plus a look at what the index does not have yet.

What was stored before the query is found by it (DESIGN invariant 9): an index says
how far it has come, and emails made later are matched from their stored text.  When
the index fails, everything is matched that way: slower, never partial.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter
from mailserverd.mail.headers import get_all
from mailserverd.mail.words import decode_words, unfold
from mailserverd.services.access import check
from storage.metadata import accounts, indexed, texts
from storage.model import Column, Condition, EmailQuery, Filter, Operator
from storage.text import FIELDS, And, Not, Or, Query, fold, parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mailserverd.core.ports import Offload
    from mailserverd.core.types import Access
    from mailserverd.services.messages import Messages
    from storage.api import MetadataStore, SearchIndex
    from storage.model import BlobRef

log = get_logger("search")
SCANS = counter("search_full_scans", "Searches answered without an index")

WORD_OPS = frozenset({"text", *FIELDS})
TEXT_OPS = WORD_OPS | {"header"}
ROWS = 200  # texts looked at by one hop off the loop
BLOCKS = 32  # header blocks read at a time
REMEMBERED = 10_000  # accounts whose empty index was told of once
MAX_HEADER_SCAN = 200_000  # messages; more is refused, never cut short
MAX_HEADER = 1 << 20  # octets of a header block that are looked at
BUSY = 128 << 10  # octets of header blocks that are looked at off the loop


class Search:
    """Resolves text conditions to email ids, and finds substrings."""

    def __init__(
        self,
        store: MetadataStore,
        index: SearchIndex,
        messages: Messages,
        offload: Offload,
    ) -> None:
        self._store = store
        self._index = index
        self._messages = messages
        self._offload = offload
        self._missed: set[int] = set()  # accounts whose index was found empty

    # --- JMAP: words (RFC 8621 section 4.4.1) ---------------------------------------

    async def resolve(self, access: Access, tree: Filter) -> Filter:
        """Replace text conditions by ``ids``.

        Conditions: text from to cc bcc subject body (value: str), and header
        (name, or name and value).  INVALID for a query that is too complex,
        UNSUPPORTED for a header search over too many messages.
        """
        check(access)
        query = as_query(tree)
        if query is not None:
            return await self._ids(access, query)
        if isinstance(tree, Condition):
            if tree.op == "header":
                return await self._header(access, tree, None)
            return tree
        return await self._branch(access, tree)

    async def _branch(self, access: Access, tree: Operator) -> Filter:
        """Resolve an operator; what its words say together is one question."""
        joined: list[Query] = []
        parts: list[Filter] = []
        headers: list[Condition] = []
        for part in tree.conditions:
            query = as_query(part)
            if query is not None and tree.op == "NOT":
                parts.append(await self._ids(access, query))
            elif query is not None:
                joined.append(query)
            elif isinstance(part, Condition) and part.op == "header":
                headers.append(part)
            else:
                parts.append(await self.resolve(access, part))
        if joined:
            whole = And(tuple(joined)) if tree.op == "AND" else Or(tuple(joined))
            parts.append(await self._ids(access, whole))
        narrow = Operator("AND", tuple(parts)) if tree.op == "AND" and parts else None
        parts += [await self._header(access, leaf, narrow) for leaf in headers]
        return Operator(tree.op, tuple(parts))

    async def _ids(self, access: Access, query: Query) -> Condition:
        found, watermark = await self._hits(access, query)
        low = 0
        while True:
            args = (watermark, low, ROWS, query)
            more, low = await self._store.read(access, texts.matching, args)
            found.update(more)
            if not low:
                return Condition("ids", frozenset(found))

    async def _hits(self, access: Access, query: Query) -> tuple[set[int], int]:
        """Ask the index; what it cannot answer starts from nothing at modseq 0."""
        try:
            hits = await self._index.search(access.account, query)
        except MailError as error:
            if error.kind is Kind.INVALID:
                raise
            log.warning("index-failed", account=access.account, error=str(error))
        else:
            state = await self._store.read(access, accounts.state, None)
            if hits.watermark <= state.modseq:
                await self._missing(access, hits.watermark)
                return set(hits.ids), hits.watermark
            log.warning("index-is-ahead", account=access.account)
        SCANS.inc()
        return set(), 0

    async def _missing(self, access: Access, watermark: int) -> None:
        """Let an account be indexed again whose index holds nothing."""
        if watermark or access.account in self._missed:
            return
        if len(self._missed) >= REMEMBERED:
            self._missed.clear()
        self._missed.add(access.account)
        with contextlib.suppress(MailError):  # the answer does not depend on it
            await self._store.write(access, indexed.forget, None)

    async def _header(
        self, access: Access, leaf: Condition, narrow: Filter | None
    ) -> Condition:
        """Look for a header field in the messages that ``narrow`` leaves."""
        value = leaf.value
        name, *rest = value if isinstance(value, tuple) else (str(value),)
        result = await self._messages.query(access, EmailQuery(narrow))
        needle = rest[0] if rest else ""
        field = f"header:{name}"
        found = await self.imap_substring(access, result.ids, field, needle)
        return Condition("ids", frozenset(found))

    # --- IMAP: substrings (RFC 9051 section 6.4.4) ----------------------------------

    async def imap_substring(
        self, access: Access, email_ids: Sequence[int], field: str, needle: str
    ) -> set[int]:
        """Return those emails of which a field contains a text, in any case.

        Field: text (whole header and body), body, subject, from, to, cc, bcc, or
        header:NAME, which an empty needle asks to exist.  UNSUPPORTED for a header
        search over too many messages.
        """
        check(access)
        folded = fold(needle)
        if field.startswith("header:"):
            name = field.partition(":")[2]
            return await self._in_headers(access, email_ids, name, folded)
        if not folded:
            return set(email_ids)
        found: set[int] = set()
        for start in range(0, len(email_ids), ROWS):
            some = email_ids[start : start + ROWS]
            args = (some, field, folded)
            found.update(await self._store.read(access, texts.containing, args))
        if field == "text":
            rest = [key for key in email_ids if key not in found]
            found |= await self._in_headers(access, rest, "", folded)
        return found

    async def _in_headers(
        self, access: Access, email_ids: Sequence[int], name: str, folded: str
    ) -> set[int]:
        """Look into header blocks; ``name`` "" is the whole block."""
        if len(email_ids) > MAX_HEADER_SCAN:
            raise MailError(
                Kind.UNSUPPORTED, "too many messages to look through their headers"
            )
        found: set[int] = set()
        for start in range(0, len(email_ids), BLOCKS):
            some = email_ids[start : start + BLOCKS]
            rows = await self._messages.rows(access, some, Column.BASIC)
            blocks = await asyncio.gather(
                *(self._block(row.blob, row.header_size) for row in rows.values())
            )
            args = (dict(zip(rows, blocks, strict=True)), name, folded)
            if sum(map(len, blocks)) > BUSY:
                found.update(await self._offload(having_text, *args))
            else:
                found.update(having_text(*args))
        return found

    async def _block(self, blob: BlobRef | None, size: int) -> bytes:
        if blob is None:
            return b""
        return await self._messages.read_blob(blob, 0, min(size, MAX_HEADER))


def having_text(blocks: Mapping[int, bytes], name: str, folded: str) -> list[int]:
    """Return the keys of those header blocks that contain a folded text."""
    return [key for key, block in blocks.items() if has_text(block, name, folded)]


def has_text(block: bytes, name: str, folded: str) -> bool:
    """Say whether a header block, or its fields of one name, contain a folded text."""
    if not name:
        return folded in fold(decode_words(unfold(block)))
    return any(folded in fold(decode_words(unfold(v))) for v in get_all(block, name))


def as_query(tree: Filter) -> Query | None:
    """Return the query for a filter that asks for words alone, else None."""
    if isinstance(tree, Condition):
        if tree.op in WORD_OPS:
            return parse(tree.op, str(tree.value))
        return None
    parts = [as_query(part) for part in tree.conditions]
    known = tuple(part for part in parts if part is not None)
    if not known or len(known) != len(parts):
        return None
    match tree.op:
        case "AND":
            return And(known)
        case "OR":
            return Or(known)
    return Not(Or(known))
