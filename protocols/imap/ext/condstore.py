"""CONDSTORE and QRESYNC (RFC 7162): the item and the key MODSEQ.

The rest lies where it must: ``modes``, ``view``, and the commands whose parameters and
modifiers RFC 7162 adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap import columns
from protocols.imap.extension import Extension, SearchKey

if TYPE_CHECKING:
    from protocols.imap.extension import Finder, Positions
    from protocols.imap.wire.cursor import Cursor


def _parse(args: Cursor, _: str) -> int:
    """``[entry-name SP entry-type-req SP] mod-sequence-valzer`` (section 3.1.5).

    The entry names one flag; modseqs are kept per message, so it says nothing.
    """
    if args.next_is(b'"'):
        args.string()
        args.space()
        args.word()
        args.space()
    return args.number()


async def _match(part: Finder, positions: Positions, least: int) -> Positions:
    modseqs = part.batch.modseqs
    return [i for i in positions if modseqs[i] >= least]


EXTENSION = Extension(
    capabilities=("CONDSTORE", "QRESYNC"),
    attributes=(columns.MODSEQ,),
    search_keys=(SearchKey("MODSEQ", _match, _parse, uses_modseq=True),),
    enables=("CONDSTORE", "QRESYNC"),
)
