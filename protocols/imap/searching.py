"""SEARCH: a tree of keys, evaluated over slices of the mailbox.

Keys that cost little narrow the candidates for those that cost more: arrays first,
stored values next, texts last.  A slice bounds both the memory of values and the time
between two looks at other connections.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from protocols.imap.values import CHUNK, load
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from protocols.imap.extension import Context, Positions, SearchKey
    from protocols.imap.view import Batch, MailboxView
    from protocols.imap.wire.cursor import Cursor
    from protocols.imap.wire.sequence import Range, SequenceSet

SLICE = 20_000
_MANY = 2000  # candidates of one key between two looks at other connections
MAX_DEPTH = 50
MAX_KEYS = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """One key with its arguments."""

    key: SearchKey
    argument: object

    @property
    def cost(self) -> int:
        """0 arrays, 1 stored values, 2 texts."""
        return self.key.cost


@dataclasses.dataclass(frozen=True, slots=True)
class All:
    """Every part matches; the cheapest is asked first."""

    parts: tuple[Node, ...]

    @property
    def cost(self) -> int:
        """That of the dearest part."""
        return max((part.cost for part in self.parts), default=0)


@dataclasses.dataclass(frozen=True, slots=True)
class Either:
    """OR."""

    first: Node
    second: Node

    @property
    def cost(self) -> int:
        """That of the dearer part."""
        return max(self.first.cost, self.second.cost)


@dataclasses.dataclass(frozen=True, slots=True)
class Not:
    """NOT."""

    part: Node

    @property
    def cost(self) -> int:
        """That of what is negated."""
        return self.part.cost


Node = Leaf | All | Either | Not


class Parser:
    """Reads ``search-key`` (RFC 9051 section 6.4.4)."""

    def __init__(
        self, known: Mapping[str, SearchKey], args: Cursor, charset: str
    ) -> None:
        self._known = known
        self._args = args
        self._charset = charset
        self._depth = 0
        self._count = 0
        self.uses_modseq = False

    def program(self) -> Node:
        """Read keys up to the end of the command: all of them must match."""
        node = self._keys()
        self._args.end()
        return node

    def _keys(self) -> Node:
        parts = [self._key()]
        while self._args.take(b" "):
            parts.append(self._key())
        return parts[0] if len(parts) == 1 else _all(parts)

    def _key(self) -> Node:
        self._depth += 1
        self._count += 1
        if self._depth > MAX_DEPTH or self._count > MAX_KEYS:
            raise WireError("search too complex")
        try:
            return self._one()
        finally:
            self._depth -= 1

    def _one(self) -> Node:
        args = self._args
        if args.next_is(b"("):
            args.enter()
            node = self._keys()
            args.leave()
            return node
        if args.is_sequence_set():
            return Leaf(self._known["sequence-set"], args.sequence_set())
        name = args.word()
        if name == "NOT":
            args.space()
            return Not(self._key())
        if name == "OR":
            args.space()
            first = self._key()
            args.space()
            return Either(first, self._key())
        return self._leaf(name)

    def _leaf(self, name: str) -> Node:
        key = self._known.get(name)
        if key is None or name == "sequence-set":
            raise WireError("unknown search key")
        argument = None
        if key.parse is not None:
            self._args.space()
            argument = key.parse(self._args, self._charset)
        self.uses_modseq = self.uses_modseq or key.uses_modseq
        return Leaf(key, argument)


def _all(parts: list[Node]) -> All:
    return All(tuple(sorted(parts, key=lambda part: part.cost)))


async def search(context: Context, node: Node) -> list[tuple[Batch, Positions]]:
    """Return the matching messages, slice by slice in mailbox order."""
    found = []
    count = context.mailbox.count
    now = int(context.services.clock.now())
    for low in range(1, count + 1, SLICE):
        batch = context.mailbox.batch(low, min(low + SLICE - 1, count))
        if not batch.uids:
            continue
        part = Slice(context, batch, now)
        positions = await _evaluate(node, part, range(len(batch.uids)))
        if positions:
            found.append((batch, positions))
        await asyncio.sleep(0)
    return found


async def _evaluate(node: Node, part: Slice, positions: Positions) -> Positions:
    if not positions:
        return positions
    if isinstance(node, Leaf):
        if len(positions) > _MANY:
            await asyncio.sleep(0)
        return await node.key.match(part, positions, node.argument)
    if isinstance(node, All):
        for each in node.parts:
            positions = await _evaluate(each, part, positions)
        return positions
    if isinstance(node, Not):
        hit = set(await _evaluate(node.part, part, positions))
        return [i for i in positions if i not in hit]
    hit = set(await _evaluate(node.first, part, positions))
    rest = [i for i in positions if i not in hit]
    hit.update(await _evaluate(node.second, part, rest))
    return [i for i in positions if i in hit]


class Slice:
    """A part of the mailbox while it is searched (``extension.Finder``)."""

    def __init__(self, context: Context, batch: Batch, now: int) -> None:
        self._context = context
        self._values: dict[str, dict[int, Any]] = {}
        self.batch = batch
        self.now = now

    @property
    def view(self) -> MailboxView:
        """What the flags of the batch mean."""
        return self._context.mailbox.view

    async def values(
        self, positions: Positions, field: str
    ) -> Sequence[tuple[int, Any]]:
        """Return (position, value) of a field, each read once."""
        known = self._values.setdefault(field, {})
        missing = [i for i in positions if i not in known]
        for start in range(0, len(missing), CHUNK):
            some = missing[start : start + CHUNK]
            places = {self.batch.uids[i]: i for i in some}
            batch, values = await load(self._context, self.batch.pick(some), (field,))
            for uid, value in zip(batch.uids, values[field], strict=True):
                known[places[uid]] = value
        return [(i, known[i]) for i in positions if i in known]

    async def contains(
        self, positions: Positions, field: str, needle: str
    ) -> Positions:
        """Return where a field contains a text, in any case of letters."""
        email_ids = self.batch.email_ids
        wanted = [email_ids[i] for i in positions]
        hit = await self._context.services.search.imap_substring(
            self._context.access, wanted, field, needle
        )
        return [i for i in positions if email_ids[i] in hit]

    def numbered(self, wanted: SequenceSet, *, uid: bool) -> Sequence[Range]:
        """Return the sequence numbers of a set; what does not exist is left out."""
        selected = self._context.mailbox
        if uid or wanted.saved:
            return selected.resolve(wanted, uid=uid)
        return selected.by_number(wanted)
