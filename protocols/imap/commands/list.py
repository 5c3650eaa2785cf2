r"""LIST (RFC 9051 section 6.3.9): patterns, selection and return options.

With LIST-EXTENDED (RFC 5258), LIST-STATUS (RFC 5819), SPECIAL-USE (RFC 6154).  Every
parent exists here, so only a subscription may name what does not.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from protocols.imap import listing
from protocols.imap.conn import AUTHENTICATED
from protocols.imap.extension import Command, Context
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from protocols.imap.wire.cursor import Cursor
    from storage.model import Mailbox

SELECTION = frozenset({"SUBSCRIBED", "REMOTE", "RECURSIVEMATCH", "SPECIAL-USE"})
MAX_PATTERNS = 20
_FAIR = 50  # responses between two looks at other connections
_CHILD_INFO = b' ("CHILDINFO" ("SUBSCRIBED"))'


@dataclasses.dataclass(frozen=True, slots=True)
class _Request:
    reference: str
    patterns: list[str]
    selection: frozenset[str]
    subscribed: bool  # RETURN (SUBSCRIBED), or selected by it
    status: list[str]
    extended: bool


async def _run(context: Context, args: Cursor) -> None:
    request = _parse(context, args)
    if not request.extended and request.patterns == [""]:
        # RFC 9051 section 6.3.9: the hierarchy delimiter and the root of the name
        context.send(b'* LIST (\\Noselect) "/" ""\r\n')
        return
    listing.note_status(context, request.status)
    listed = await context.mailboxes()
    names: tuple[str, ...] = ()
    if "SUBSCRIBED" in request.selection:
        names = await context.services.mailboxes.subscriptions(context.access)
    answers = _answers(context, request, listed.mailboxes, names)
    for number, (mailbox, answer) in enumerate(answers):
        context.send(answer)
        if not number % _FAIR:
            await asyncio.sleep(0)
        if request.status and mailbox is not None:
            context.send(await listing.status_line(context, mailbox, request.status))
        await context.channel.drain()


def _parse(context: Context, args: Cursor) -> _Request:
    utf8 = context.modes.utf8
    args.space()
    extended = args.next_is(b"(")
    selection: list[str] = []
    if extended:
        selection = args.group(args.word, empty=True)
        args.space()
    reference = args.mailbox(utf8=utf8)
    args.space()
    if args.next_is(b"("):
        extended = True
        patterns = args.group(lambda: args.list_mailbox(utf8=utf8))
    else:
        patterns = [args.list_mailbox(utf8=utf8)]
    returned: list[str] = []
    status: list[str] = []
    if args.take(b" "):
        extended = True
        returned = _returned(args, status)
    args.end()
    _check(selection, patterns)
    subscribed = "SUBSCRIBED" in returned or "SUBSCRIBED" in selection
    return _Request(
        reference, patterns, frozenset(selection), subscribed, status, extended
    )


def _returned(args: Cursor, status: list[str]) -> list[str]:
    if args.word() != "RETURN":
        raise WireError("expected RETURN")
    args.space()

    def option() -> str:
        name = args.word()
        if name == "STATUS":
            args.space()
            status.extend(args.group(lambda: listing.status_item(args)))
        elif name not in {"SUBSCRIBED", "CHILDREN", "SPECIAL-USE"}:
            raise WireError("unknown return option")
        return name

    return args.group(option, empty=True)


def _check(selection: list[str], patterns: list[str]) -> None:
    if not SELECTION.issuperset(selection):
        raise WireError("unknown selection option")
    if "RECURSIVEMATCH" in selection and "SUBSCRIBED" not in selection:
        raise WireError("RECURSIVEMATCH needs another selection option")
    if len(patterns) > MAX_PATTERNS:
        raise WireError("too many patterns")


def _answers(
    context: Context,
    request: _Request,
    mailboxes: tuple[Mailbox, ...],
    names: tuple[str, ...],
) -> Iterable[tuple[Mailbox | None, bytes]]:
    """Yield the responses, in the order of names."""
    tests = [listing.matcher(request.reference + p) for p in request.patterns]
    have_children = listing.parents(mailboxes)
    inner = _with_subscribed_below(request, names)
    for mailbox in mailboxes:
        path = mailbox.path
        selected = _selected(request, mailbox)
        below = path in inner
        if not (selected or below) or not _matches(tests, path):
            continue
        found = listing.attributes(
            mailbox, have_children, subscribed=request.subscribed
        )
        extended = _CHILD_INFO if below else b""
        yield mailbox, listing.line(context, path, found, extended=extended)
    if "SPECIAL-USE" in request.selection:
        return
    known = {mailbox.path for mailbox in mailboxes}
    for path in names:
        if path not in known and _matches(tests, path):
            found = ["\\NonExistent", "\\Subscribed"]
            yield None, listing.line(context, path, found)


def _matches(tests: list[Callable[[str], bool]], path: str) -> bool:
    return any(test(path) for test in tests)


def _selected(request: _Request, mailbox: Mailbox) -> bool:
    """Say whether a mailbox meets every selection option."""
    if "SUBSCRIBED" in request.selection and not mailbox.subscribed:
        return False
    special = "SPECIAL-USE" in request.selection
    return not special or mailbox.role in listing.USES


def _with_subscribed_below(request: _Request, names: tuple[str, ...]) -> set[str]:
    """Return names with a subscribed descendant, for RECURSIVEMATCH (RFC 5258)."""
    if "RECURSIVEMATCH" not in request.selection:
        return set()
    above: set[str] = set()
    for name in names:
        parts = name.split(listing.SEPARATOR)
        above.update(listing.SEPARATOR.join(parts[:i]) for i in range(1, len(parts)))
    return above


COMMAND = Command("LIST", AUTHENTICATED, _run)
