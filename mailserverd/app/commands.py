"""What the command line may ask of a daemon, or of the data: names -> functions."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from mailserverd.app.blob_commands import blob_commands
from mailserverd.app.databases import status
from mailserverd.core.errors import Kind, MailError
from storage.metadata.queue_units import routing_domain
from storage.queue import Entry, Page, Selection, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from mailserverd.app.graph import Graph
    from mailserverd.settings import Settings

    Progress = Callable[[dict[str, Any]], None]

PAGE = 500  # messages read at once
TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "bool": bool,
    "Sequence[str]": (list, tuple),
    "None": type(None),
}
"""What a command's argument may be annotated as."""
QUEUED, LEASED, HELD = State.QUEUED, State.LEASED, State.HELD
OPEN = (QUEUED, LEASED, HELD)


class Commands:
    """Dispatches commands to services; every result is plain data."""

    def __init__(self, settings: Settings, graph: Graph) -> None:
        self._settings = settings
        self._graph = graph
        queue = graph.queue
        self._known: dict[str, Callable[..., Awaitable[Any]]] = {
            **graph.accounts.commands(),
            "queue.list": self._queue_list,
            "queue.show": self._queue_show,
            "queue.retry": functools.partial(self._act, queue.retry, (QUEUED,)),
            "queue.hold": functools.partial(self._act, queue.hold, (QUEUED, LEASED)),
            "queue.release": functools.partial(self._act, queue.release, (HELD,)),
            "queue.cancel": functools.partial(self._act, self._cancel, OPEN),
            "storage.status": self._status,
            "storage.check": self._check,
            **blob_commands(graph),
        }

    async def run(self, command: str, args: dict[str, Any], progress: Progress) -> Any:
        """Run one command; INVALID for unknown ones or wrong arguments."""
        if command == "storage.migrate":
            raise MailError(
                Kind.UNAVAILABLE, "stop the daemon first: it holds the databases"
            )
        known = self._known.get(command)
        if known is None:
            raise MailError(Kind.INVALID, f"unknown command {command}")
        if "progress" in inspect.signature(known).parameters:
            known = functools.partial(known, progress)
        try:
            _check_arguments(known, args)
        except TypeError as error:
            raise MailError(Kind.INVALID, f"{command}: {error}") from error
        return await known(**args)

    # --- queue ----------------------------------------------------------------

    async def _queue_list(self, domain: str = "") -> list[dict[str, Any]]:
        return [_entry(one) async for one in self._entries(Selection("", domain))]

    async def _entries(self, which: Selection) -> AsyncIterator[Entry]:
        if which.queue_id:
            yield await self._graph.queue.show(which.queue_id)
            return
        after = ""
        while page := await self._graph.queue.list(Page(after, PAGE, which.domain)):
            for entry in page:
                yield entry
            after = page[-1].message.queue_id

    async def _queue_show(self, id: str) -> dict[str, Any]:
        return _entry(await self._graph.queue.show(id))

    async def _cancel(self, selection: Selection) -> int:
        """Count those in flight, too: they are dropped unless the attempt succeeds."""
        return sum(await self._graph.queue.cancel(selection))

    async def _act(
        self,
        action: Callable[[Selection], Awaitable[int]],
        states: tuple[State, ...],
        *,
        id: str = "",
        domain: str = "",
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Act on recipients; those in ``states`` are what it concerns."""
        if bool(id) == bool(domain):
            raise MailError(Kind.INVALID, "name an id, all, or a domain")
        selection = Selection("" if id == "all" else id, domain)
        if not dry_run:
            return {"count": await action(selection), "dry_run": False}
        concerned = [
            to
            async for entry in self._entries(selection)
            for to in entry.recipients
            if to.state in states
            and selection.domain in {"", routing_domain(to.address)}
        ]
        return {"count": len(concerned), "dry_run": True}

    # --- storage --------------------------------------------------------------

    async def _status(self) -> list[dict[str, Any]]:
        return await status(self._settings, self._graph.clock, self._graph.stores)

    async def _check(
        self, progress: Progress, repair: bool = False, dry_run: bool = False
    ) -> dict[str, Any]:
        return await self._graph.upkeep.check(progress, repair=repair, dry_run=dry_run)


def _check_arguments(known: Callable[..., Any], args: dict[str, Any]) -> None:
    """Raise TypeError unless a command takes these arguments, of these types."""
    signature = inspect.signature(known)
    for name, value in signature.bind(**args).arguments.items():
        # As text: that is what annotations are here.
        allowed = str(signature.parameters[name].annotation).split(" | ")
        if not any(isinstance(value, TYPES.get(one, ())) for one in allowed):
            raise TypeError(f"{name} must be of type {' or '.join(allowed)}")


def _entry(entry: Entry) -> dict[str, Any]:
    message = entry.message
    return {
        "id": message.queue_id,
        "sender": message.reverse_path,
        "size": message.blob.size,
        "created": message.created,
        "expires": message.expires,
        "message_id": message.message_id,
        "origin": message.origin,
        "recipients": [
            {
                "address": to.address,
                "state": State(to.state).name.lower(),
                "attempts": to.attempts,
                "next_attempt": to.due,
                "reply": to.reply,
                "status": to.status,
                "mta": to.mta,
            }
            for to in entry.recipients
        ],
    }
