r"""What a command, a FETCH item, a SEARCH key and an extension are.

One file per command or extension declares values of these types; the registries in
``commands/__init__.py`` and ``ext/__init__.py`` are tuples of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mailserverd.core.types import Access
from protocols.imap.conn import Event, State, advance
from protocols.imap.modes import Modes
from protocols.imap.replies import Refused
from protocols.imap.wire import encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from auth.people.authenticate import Principal
    from protocols.imap.channel import Channel, Literal
    from protocols.imap.services import ImapServices
    from protocols.imap.view import Batch, MailboxView, Selected
    from protocols.imap.views import Views
    from protocols.imap.wire.cursor import Cursor
    from protocols.imap.wire.sequence import Range, SequenceSet
    from storage.model import Mailbox, MailboxList


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """One command; ``run`` parses its arguments, then does it.

    ``run`` returns the text behind ``OK`` (``[CODE] text``), or None for the usual
    one.  It raises WireError (BAD), Refused or MailError (NO).

    ``breaks_seqs``: its responses may hold EXPUNGE, which renumbers; False for FETCH,
    STORE and SEARCH (RFC 9051 section 7.5.1).  ``news`` False: says nothing of the
    selected mailbox.  ``timed`` False: lasts as long as the client likes, and is not
    measured.
    """

    name: str
    states: frozenset[State]
    run: Callable[[Context, Cursor], Awaitable[bytes | None]]
    breaks_seqs: bool = True
    news: bool = True
    timed: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Messages to answer FETCH from: arrays, and stored values by field."""

    batch: Batch
    values: Mapping[str, Sequence[Any]]
    view: MailboxView


@dataclasses.dataclass(frozen=True, slots=True)
class Attribute:
    """A FETCH item with one value per message.

    ``render`` returns a bytes template with one ``%`` place, and its values, from
    the arrays and the ``fields`` (of ``Messages.columns``).
    """

    name: str
    render: Callable[[Page], tuple[bytes, Sequence[object]]]
    fields: tuple[str, ...] = ()
    parse: Callable[[Cursor], None] | None = None  # arguments behind the name


Positions = Sequence[int]
"""Ascending positions in a batch: the messages that SEARCH still considers."""


class Finder(Protocol):
    """What a search key sees: a slice of the mailbox."""

    @property
    def now(self) -> int:
        """Epoch seconds."""

    @property
    def batch(self) -> Batch:
        """The columns of the slice."""

    @property
    def view(self) -> MailboxView:
        """What the flags of the batch mean."""

    async def values(
        self, positions: Positions, field: str
    ) -> Sequence[tuple[int, Any]]:
        """Return (position, value) of a field, without messages that are gone."""

    async def contains(
        self, positions: Positions, field: str, needle: str
    ) -> Positions:
        """Return where a field contains a text (``Search.imap_substring``)."""

    def numbered(self, wanted: SequenceSet, *, uid: bool) -> Sequence[Range]:
        """Return the sequence numbers of a set; what does not exist is left out."""


@dataclasses.dataclass(frozen=True, slots=True)
class SearchKey:
    """One key: its arguments, what it costs, and which positions match.

    ``cost`` orders the keys of an AND: 0 arrays, 1 stored values, 2 texts.
    ``uses_modseq`` makes the answer say the highest MODSEQ and enables CONDSTORE
    (RFC 7162).
    """

    name: str
    match: Callable[[Finder, Positions, Any], Awaitable[Positions]]
    parse: Callable[[Cursor, str], object] | None = None  # with the charset
    cost: int = 0
    uses_modseq: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Extension:
    """What an extension adds; ``capabilities`` are told after login.

    ``before_login`` are told before it, too; ``dynamic`` makes capabilities from
    the settings.  ``enables`` are names that ENABLE takes.
    """

    capabilities: tuple[str, ...] = ()
    before_login: tuple[str, ...] = ()
    dynamic: Callable[[Context], tuple[str, ...]] | None = None
    commands: tuple[Command, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    search_keys: tuple[SearchKey, ...] = ()
    enables: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Registry:
    """Everything this server knows, by name."""

    extensions: tuple[Extension, ...]
    commands: Mapping[str, Command]
    attributes: Mapping[str, Attribute]
    search_keys: Mapping[str, SearchKey]
    enables: frozenset[str]


def make_registry(extensions: tuple[Extension, ...]) -> Registry:
    """Gather what the extensions add; ValueError when two claim one name."""
    commands = [c for e in extensions for c in e.commands]
    attributes = [a for e in extensions for a in e.attributes]
    keys = [k for e in extensions for k in e.search_keys]
    for things in (commands, attributes, keys):
        names = [thing.name for thing in things]
        if len(set(names)) != len(names):
            raise ValueError(f"declared twice: {sorted(names)}")
    return Registry(
        extensions,
        {command.name: command for command in commands},
        {attribute.name: attribute for attribute in attributes},
        {key.name: key for key in keys},
        frozenset(name for e in extensions for name in e.enables),
    )


class Context:
    """One connection as its commands see it."""

    __slots__ = (
        "after_reply",
        "channel",
        "failures",
        "literal",
        "modes",
        "principal",
        "registry",
        "selected",
        "services",
        "sessions",
        "state",
        "tag",
        "views",
    )

    def __init__(
        self,
        services: ImapServices,
        registry: Registry,
        views: Views,
        sessions: dict[int, int],
        channel: Channel,
    ) -> None:
        self.services = services
        self.registry = registry
        self.views = views
        self.sessions = sessions  # connections per account, of this process
        self.channel = channel
        self.state = State.NOT_AUTHENTICATED
        self.modes = Modes()
        self.principal: Principal | None = None
        self.selected: Selected | None = None
        self.literal: Literal | None = None  # APPEND's message
        self.tag = "*"  # of the command that runs
        self.failures = 0  # refused logins
        self.after_reply: Callable[[], None] | None = None  # once, after the reply

    def advance(self, event: Event) -> None:
        """Go to the next state of the connection."""
        self.state = advance(self.state, event)

    @property
    def access(self) -> Access:
        """Who touches which account; only after login."""
        if self.principal is None:
            raise RuntimeError("no one is logged in")
        return Access(self.principal.account, self.principal.account)

    @property
    def mailbox(self) -> Selected:
        """The selected mailbox; only in the selected state."""
        if self.selected is None:
            raise RuntimeError("no mailbox is selected")
        return self.selected

    @property
    def writable(self) -> Selected:
        """The selected mailbox; Refused when it was opened by EXAMINE."""
        self.require_writable()
        return self.mailbox

    def require_writable(self) -> None:
        """Refuse to change a mailbox that was opened by EXAMINE."""
        if self.mailbox.read_only:
            raise Refused("READ-ONLY", "the mailbox is open read-only")

    def send(self, data: bytes) -> None:
        """Add a complete response, with its CRLF."""
        self.channel.send(data)

    def name(self, path: str) -> bytes:
        """Return a mailbox name as this connection writes it."""
        return encode.mailbox(path, utf8=self.modes.utf8)

    async def mailboxes(self) -> MailboxList:
        """Return all mailboxes of the account."""
        return await self.services.mailboxes.list(self.access)

    async def find(self, path: str, *, code: str = "NONEXISTENT") -> Mailbox:
        """Return a mailbox by name; Refused with ``code`` when there is none."""
        listed = await self.mailboxes()
        for mailbox in listed.mailboxes:
            if mailbox.path == path:
                return mailbox
        raise Refused(code, "no such mailbox")

    async def refresh(self) -> None:
        """Read what was committed to the selected mailbox; MailboxGoneError."""
        if self.selected is not None:
            await self.views.refresh(self.selected)

    def tell(self, *, expunge: bool) -> None:
        """Send the news of the selected mailbox as they are known here."""
        if self.selected is not None:
            news = self.selected.sync(expunge=expunge, form=self.modes.form)
            if news:
                self.send(news)

    def enable_condstore(self) -> None:
        """Do what the first CONDSTORE enabling command does (RFC 7162 section 3.1)."""
        if self.modes.enable("CONDSTORE") and self.selected is not None:
            self.send(b"* OK [HIGHESTMODSEQ %d] Highest\r\n" % self.selected.told)

    def unselect(self) -> None:
        """Leave the selected mailbox."""
        if self.selected is not None:
            self.views.release(self.selected)
            self.selected = None
            self.advance(Event.UNSELECT)

    def capabilities(self) -> bytes:
        """Return the capabilities of this moment (RFC 9051 section 6.1.1)."""
        names: list[str] = []
        for extension in self.registry.extensions:
            names += extension.before_login
            if self.principal is not None:
                names += extension.capabilities
            if extension.dynamic is not None:
                names += extension.dynamic(self)
        return " ".join(dict.fromkeys(names)).encode("ascii")

    @property
    def private(self) -> bool:
        """Passwords may be sent: the connection is encrypted, or need not be."""
        return self.channel.transport.tls or self.services.settings.plaintext_auth
