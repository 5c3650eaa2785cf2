"""Which mailbox views a process holds, and how they are kept current.

A view is loaded when a session selects its mailbox, refreshed by ``Messages.delta``,
and kept for a while after the last session left it, in an LRU bounded by the number of
messages.  Hints (``Changes.subscribe``, once per account in use) say that something
may have changed; the delta says what.  A lost hint loses nothing: NOOP, SELECT and
SEARCH always ask, and an idling session asks now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from protocols.imap.view import MailboxView, Selected

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailserverd.core.types import Access
    from storage.model import Mailbox, MailboxList, View, ViewDelta

log = get_logger("imap")
MAX_MESSAGES = 1_100_000
"""Messages in views that no session looks at: 24 octets each."""
REST = 300.0  # seconds that a view is kept after the last session left it


class ViewSource(Protocol):
    """What views are made from (``services.messages.Messages``)."""

    async def view(self, access: Access, mailbox_id: int) -> View:
        """Return the whole mailbox as arrays; NOT_FOUND."""

    async def delta(
        self, access: Access, mailbox_id: int, since_modseq: int
    ) -> ViewDelta:
        """Return what changed since a modseq; NOT_FOUND."""


class MailboxSource(Protocol):
    """Where the mailboxes' change counters come from (``services.mailboxes``)."""

    async def list(self, access: Access) -> MailboxList:
        """Return all mailboxes of an account."""


class HintSource(Protocol):
    """Where hints come from (``services.changes.Changes``)."""

    def subscribe(
        self, account: int, callback: Callable[[int, int], None]
    ) -> Callable[[], None]:
        """Call back on each change of an account; returns unsubscribe."""


class MailboxGoneError(Exception):
    """The selected mailbox was deleted, or made anew under another UIDVALIDITY."""


@dataclasses.dataclass(slots=True)
class _Held:
    """A view and the state of its refreshing."""

    view: MailboxView
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    begun: int = 0  # refreshes begun
    done: int = 0  # the last refresh that ended well
    hint: int = 0  # account modseq that was announced
    checked: int = 0  # account modseq announced before the last refresh began
    gone: bool = False
    rested: float = 0.0  # when it was first seen resting; 0 while it is looked at


@dataclasses.dataclass(slots=True)
class _Watch:
    """One account in use: its hints and the views that sessions look at."""

    unsubscribe: Callable[[], None]
    held: dict[int, _Held] = dataclasses.field(default_factory=dict)
    # by mailbox: one session loads its view, the others wait for it
    loading: dict[int, asyncio.Lock] = dataclasses.field(default_factory=dict)
    task: asyncio.Task[None] | None = None
    selecting: int = 0  # sessions inside ``select``


class Views:
    """All views of this process."""

    def __init__(
        self,
        messages: ViewSource,
        mailboxes: MailboxSource,
        changes: HintSource,
        *,
        max_messages: int = MAX_MESSAGES,
    ) -> None:
        self._messages = messages
        self._mailboxes = mailboxes
        self._changes = changes
        self._max_messages = max_messages
        self._watches: dict[int, _Watch] = {}
        self._resting: OrderedDict[tuple[int, int], _Held] = OrderedDict()
        self._resting_messages = 0

    async def select(
        self, access: Access, mailbox: Mailbox, *, read_only: bool
    ) -> Selected:
        """Return a session's view, as current as ``mailbox`` says it can be."""
        key = access.account, mailbox.mailbox_id
        watch = self._watch(access.account)
        watch.selecting += 1
        try:
            async with watch.loading.setdefault(key[1], asyncio.Lock()):
                held = watch.held.get(key[1]) or self._wake(watch, key)
                if held is None or self._stale(held, mailbox):
                    held = _Held(await self._load(access, mailbox))
                    watch.held[key[1]] = held
                selected = Selected(
                    held.view, access, mailbox.path, read_only=read_only
                )
                held.view.selections.add(selected)
        finally:
            watch.selecting -= 1
            self._unwatch(access.account)
        if held.view.highestmodseq < mailbox.highestmodseq or held.hint > held.checked:
            await self._refresh_selecting(selected)
        return selected

    @staticmethod
    def _stale(held: _Held, mailbox: Mailbox) -> bool:
        return held.gone or held.view.uidvalidity != mailbox.uidvalidity

    async def _refresh_selecting(self, selected: Selected) -> None:
        try:
            await self.refresh(selected)
        except BaseException:
            self.release(selected)
            raise
        selected.catch_up()

    async def _load(self, access: Access, mailbox: Mailbox) -> MailboxView:
        view = await self._messages.view(access, mailbox.mailbox_id)
        return MailboxView(access.account, view)

    def _wake(self, watch: _Watch, key: tuple[int, int]) -> _Held | None:
        """Take a view back that nobody looked at; it missed hints meanwhile."""
        held = self._resting.pop(key, None)
        if held is not None:
            self._resting_messages -= len(held.view.uids)
            held.rested = 0.0
            watch.held[key[1]] = held
        return held

    def release(self, selected: Selected) -> None:
        """End a session's look; the view rests, least recently used first out."""
        selected.listener = None
        view = selected.view
        view.selections.discard(selected)
        watch = self._watches.get(view.account)
        held = watch.held.get(view.mailbox_id) if watch else None
        if watch is None or held is None or held.view is not view or view.selections:
            return
        del watch.held[view.mailbox_id]
        self._unwatch(view.account)
        if not held.gone:
            self._rest(held)

    def _rest(self, held: _Held) -> None:
        held.view.rest()
        self._resting[held.view.account, held.view.mailbox_id] = held
        self._resting_messages += len(held.view.uids)
        while self._resting_messages > self._max_messages:
            _, old = self._resting.popitem(last=False)
            self._resting_messages -= len(old.view.uids)

    def sweep(self, now: float) -> int:
        """Let go of views that nobody came back to; call every few seconds.

        ``now`` is a monotonic time in seconds.  Returns how many messages they had.
        """
        before = self._resting_messages
        for key, held in tuple(self._resting.items()):
            if not held.rested:
                held.rested = now
            elif now - held.rested > REST:
                del self._resting[key]
                self._resting_messages -= len(held.view.uids)
        return before - self._resting_messages

    def _watch(self, account: int) -> _Watch:
        watch = self._watches.get(account)
        if watch is None:
            unsubscribe = self._changes.subscribe(account, self._hinted)
            watch = self._watches[account] = _Watch(unsubscribe)
        return watch

    def _unwatch(self, account: int) -> None:
        watch = self._watches.get(account)
        if watch is not None and not watch.held and not watch.selecting:
            del self._watches[account]
            watch.unsubscribe()

    def _hinted(self, account: int, modseq: int) -> None:
        watch = self._watches.get(account)
        if watch is None:
            return
        for held in watch.held.values():
            held.hint = max(held.hint, modseq)
        if watch.task is None and self._listening(watch):
            watch.task = asyncio.get_running_loop().create_task(
                self._follow(watch), name=f"imap-follow-{account}"
            )

    def _listening(self, watch: _Watch) -> list[_Held]:
        """Return the views that are behind and have an idling session."""
        return [
            held
            for held in watch.held.values()
            if held.hint > held.checked
            and not held.gone
            and any(s.listener is not None for s in held.view.selections)
        ]

    async def _follow(self, watch: _Watch) -> None:
        """Refresh what idling sessions look at until no hint is left."""
        try:
            while behind := self._listening(watch):
                for held in await self._really_behind(behind):
                    await self._follow_one(held)
        except MailError as error:
            log.warning("follow-failed", error=str(error))
        except Exception:
            log.exception("follow-crashed")
        finally:
            watch.task = None

    async def poll(self) -> None:
        """Refresh what idling sessions look at, as if there had been hints."""
        for watch in tuple(self._watches.values()):
            for held in tuple(watch.held.values()):
                if any(s.listener is not None for s in held.view.selections):
                    await self._poll_one(held)

    async def _poll_one(self, held: _Held) -> None:
        try:
            await self._follow_one(held)
        except MailError as error:
            log.warning("poll-failed", error=str(error))

    async def _really_behind(self, behind: list[_Held]) -> list[_Held]:
        """With several views, ask the list of mailboxes which of them changed."""
        if len(behind) == 1:
            return behind
        hints = [held.hint for held in behind]
        access = next(iter(behind[0].view.selections)).access
        listed = await self._mailboxes.list(access)
        modseqs = {m.mailbox_id: m.highestmodseq for m in listed.mailboxes}
        changed = []
        for held, hint in zip(behind, hints, strict=True):
            modseq = modseqs.get(held.view.mailbox_id)
            if modseq is None or modseq > held.view.highestmodseq:
                changed.append(held)
            else:
                held.checked = max(held.checked, hint)
        return changed

    async def _follow_one(self, held: _Held) -> None:
        selected = next(iter(held.view.selections), None)
        if selected is None:
            return
        with contextlib.suppress(MailboxGoneError):  # the sessions were told
            await self.refresh(selected)

    def _tell(self, held: _Held) -> None:
        for selected in tuple(held.view.selections):
            if selected.listener is None:
                continue
            try:
                selected.listener()
            except Exception:
                log.exception("listener-crashed", account=held.view.account)

    def behind(self, selected: Selected) -> bool:
        """Say whether a hint came since the view was refreshed."""
        held = self._held(selected)
        return held.hint > held.checked

    def _held(self, selected: Selected) -> _Held:
        view = selected.view
        watch = self._watches.get(view.account)
        held = watch.held.get(view.mailbox_id) if watch else None
        if held is None or held.view is not view or held.gone:
            raise MailboxGoneError
        return held

    async def refresh(self, selected: Selected) -> None:
        """Read what was committed before this call; raises MailboxGoneError.

        Callers that wait for the same view share a refresh, if it began after
        they came.
        """
        held = self._held(selected)
        ticket = held.begun
        async with held.lock:
            if held.done > ticket:
                return
            held.begun += 1
            number, hint = held.begun, held.hint
            try:
                news = await self._read(held, selected.access)
            finally:
                if held.gone:
                    self._tell(held)
            held.done, held.checked = number, max(hint, held.checked)
        if news:
            self._tell(held)

    async def _read(self, held: _Held, access: Access) -> bool:
        view = held.view
        try:
            delta = await self._messages.delta(
                access, view.mailbox_id, view.highestmodseq
            )
            if delta.complete:
                return self._apply(held, delta)
            loaded = await self._messages.view(access, view.mailbox_id)
        except MailError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            held.gone = True
            raise MailboxGoneError from error
        if loaded.uidvalidity != view.uidvalidity:
            held.gone = True
            raise MailboxGoneError
        view.replace(loaded)
        return True

    def _apply(self, held: _Held, delta: ViewDelta) -> bool:
        try:
            return held.view.apply(delta)
        except RuntimeError:
            held.gone = True  # never guess: the next SELECT loads it anew
            raise
