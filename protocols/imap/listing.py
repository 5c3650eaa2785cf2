"""What LIST, LSUB, STATUS and SELECT say of a mailbox (RFC 9051 section 7.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.values import CHUNK
from protocols.imap.view import is_deleted
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from protocols.imap.extension import Context
    from protocols.imap.wire.cursor import Cursor
    from storage.model import Mailbox

ROLES = {
    "\\all": "all",
    "\\archive": "archive",
    "\\drafts": "drafts",
    "\\flagged": "flagged",
    "\\important": "important",
    "\\junk": "junk",
    "\\sent": "sent",
    "\\trash": "trash",
}
"""Special-use attributes (RFC 6154, RFC 8457) and the roles they stand for."""
USES = {role: f"\\{role.capitalize()}" for role in ROLES.values()}
SEPARATOR = "/"
MAX_PATTERN = 512


def parents(mailboxes: Iterable[Mailbox]) -> frozenset[int | None]:
    """Return the ids of mailboxes that have children."""
    return frozenset(mailbox.parent_id for mailbox in mailboxes)


def attributes(
    mailbox: Mailbox, have_children: frozenset[int | None], *, subscribed: bool = False
) -> list[str]:
    r"""Return the attributes of an existing mailbox; ``subscribed``: say if it is.

    Whether it has children is always told (RFC 3348).
    """
    found = [
        "\\HasChildren" if mailbox.mailbox_id in have_children else "\\HasNoChildren"
    ]
    if subscribed and mailbox.subscribed:
        found.append("\\Subscribed")
    if mailbox.role in USES:
        found.append(USES[mailbox.role])
    return found


def line(
    context: Context,
    path: str,
    found: Iterable[str],
    *,
    response: bytes = b"LIST",
    extended: bytes = b"",
) -> bytes:
    """Return one LIST (or LSUB) response."""
    return b'* %b (%b) "/" %b%b\r\n' % (
        response,
        " ".join(found).encode("ascii"),
        context.name(path),
        extended,
    )


def matcher(pattern: str) -> Callable[[str], bool]:
    """Return a test for names: ``*`` is anything, ``%`` anything without ``/``.

    INBOX matches in any case.  Time is bounded by name times pattern: no
    backtracking (RFC 9051 section 6.3.9).
    """
    if len(pattern) > MAX_PATTERN:
        raise WireError("mailbox pattern too long")
    head, slash, rest = pattern.partition(SEPARATOR)
    if head.upper() == "INBOX":
        pattern = f"INBOX{slash}{rest}"
    test = _plain_matcher(pattern)
    upper = _plain_matcher(pattern.upper())
    return lambda name: test(name) or (name == "INBOX" and upper(name))


def _plain_matcher(pattern: str) -> Callable[[str], bool]:
    prefix, last = pattern[:-1], pattern[-1:]
    if "*" not in prefix and "%" not in prefix:
        if last == "*":
            return lambda name: name.startswith(prefix)
        if last == "%":
            size = len(prefix)
            return lambda name: name.startswith(prefix) and "/" not in name[size:]
        return lambda name: name == pattern
    return lambda name: _match(pattern, name)


def _match(pattern: str, name: str) -> bool:
    """Walk the pattern with the set of places in the name it may have reached."""
    size = len(name)
    reached = {0}
    for char in pattern:
        if char == "*":
            reached = set(range(min(reached), size + 1))
        elif char == "%":
            reached = _until_separator(reached, name)
        else:
            reached = {i + 1 for i in reached if i < size and name[i] == char}
        if not reached:
            return False
    return size in reached


def _until_separator(reached: set[int], name: str) -> set[int]:
    found: set[int] = set()
    for start in sorted(reached):
        if start in found:
            continue
        end = name.find(SEPARATOR, start)
        found.update(range(start, (len(name) if end < 0 else end) + 1))
    return found


# --- STATUS -------------------------------------------------------------------

STATUS_ITEMS: dict[str, Callable[[Mailbox], int]] = {
    "MESSAGES": lambda m: m.messages,
    "RECENT": lambda _: 0,  # not kept: RFC 9051 did away with it
    "UIDNEXT": lambda m: m.uidnext,
    "UIDVALIDITY": lambda m: m.uidvalidity,
    "UNSEEN": lambda m: m.unseen,
    "DELETED": lambda m: m.deleted,
    "SIZE": lambda m: m.size,  # RFC 8438
    "HIGHESTMODSEQ": lambda m: m.highestmodseq,  # RFC 7162
}
_OTHER_ITEMS = frozenset({"MAILBOXID", "APPENDLIMIT", "DELETED-STORAGE"})


def status_item(args: Cursor) -> str:
    """Parse one STATUS item."""
    item = args.word()
    if item not in STATUS_ITEMS and item not in _OTHER_ITEMS:
        raise WireError("unknown STATUS item")
    return item


async def status_line(
    context: Context, mailbox: Mailbox, items: Iterable[str]
) -> bytes:
    """Return a STATUS response (RFC 9051 section 7.3.3)."""
    pairs = []
    for item in items:
        if item == "MAILBOXID":  # RFC 8474 section 4.3
            pairs.append(f"MAILBOXID (m{mailbox.mailbox_id})")
        elif item == "APPENDLIMIT":  # RFC 7889 section 4
            pairs.append(f"APPENDLIMIT {context.services.settings.max_message_size}")
        elif item == "DELETED-STORAGE":  # comes with QUOTA=RES-STORAGE (RFC 9208)
            pairs.append(f"{item} {await _deleted_storage(context, mailbox)}")
        else:
            pairs.append(f"{item} {STATUS_ITEMS[item](mailbox)}")
    values = " ".join(pairs).encode("ascii")
    return b"* STATUS %b (%b)\r\n" % (context.name(mailbox.path), values)


async def _deleted_storage(context: Context, mailbox: Mailbox) -> int:
    r"""Return the octets of what is ``\Deleted``; most often nothing is."""
    if not mailbox.deleted:
        return 0
    messages, access = context.services.messages, context.access
    view = await messages.view(access, mailbox.mailbox_id)
    marked = [
        uid for uid, bits in zip(view.uids, view.flags, strict=True) if is_deleted(bits)
    ]
    total = 0
    for start in range(0, len(marked), CHUNK):
        uids = marked[start : start + CHUNK]
        rows = await messages.columns(access, mailbox.mailbox_id, uids, ("size",))
        total += sum(size for _, size in rows)
    return total


def note_status(context: Context, items: Iterable[str]) -> None:
    """STATUS (HIGHESTMODSEQ) enables CONDSTORE (RFC 7162 section 3.1)."""
    if "HIGHESTMODSEQ" in items:
        context.enable_condstore()
