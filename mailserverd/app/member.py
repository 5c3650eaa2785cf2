"""What a worker and the background process have in common: obeying the supervisor."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from typing import TYPE_CHECKING, Any, Protocol

from mailserverd.app import orders
from mailserverd.core import log as logs
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.net.listeners import ListenError
from mailserverd.net.tls import CertificateError

if TYPE_CHECKING:
    import pathlib

    from mailserverd.core.tally import Tally
    from mailserverd.net.channel import Channel
    from mailserverd.net.listeners import Shared
    from mailserverd.settings import Settings

log = get_logger("daemon")


@dataclasses.dataclass(frozen=True, slots=True)
class Common:
    """What every process has from the supervisor."""

    settings: Settings
    name: str  # "worker-0", "background"
    number: int
    base: pathlib.Path  # data_dir
    sockets: Shared
    tally: Tally
    control: socket.socket | None

    @property
    def run_dir(self) -> pathlib.Path:
        """Where the processes' sockets and locks lie."""
        return self.base / "run"

    @property
    def slots(self) -> list[str]:
        """The names of all processes of the daemon but the supervisor."""
        workers = [f"worker-{n}" for n in range(self.settings.server.processes)]
        return [*workers, "background"]


class Role(Protocol):
    """What a process does; called in this order, never at once.

    New settings may also come before ``serve``: to a process that was just started.
    """

    async def open(self) -> None:
        """Open everything; MailError when that cannot be."""

    async def serve(self) -> None:
        """Listen, and begin what runs beside."""

    async def apply(self, settings: Settings) -> None:
        """Take over new settings; ListenError or CertificateError changes nothing."""

    def look_around(self) -> None:
        """Another process has ended: see to what it may have left."""

    async def drain(self) -> None:
        """Accept nothing new, finish what is under way; others may still write."""

    async def close(self) -> None:
        """Close the databases."""


class Orders:
    """What the supervisor says, in order; a ping is answered at once."""

    def __init__(self, channel: Channel, sockets: Shared) -> None:
        self._channel = channel
        self._sockets = sockets
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(channel.fileno(), self._read)

    async def next(self) -> Any:
        """Return the next order."""
        return await self._queue.get()

    def _read(self) -> None:
        try:
            received = self._channel.receive()
        except BlockingIOError:
            return
        if received is None:  # the supervisor is dead, and so are we
            os._exit(os.EX_TEMPFAIL)
        order, descriptors = received
        match order:
            case orders.Ping(number):
                self._channel.send(orders.Pong(number))
            case orders.Sockets(addresses):
                for address, descriptor in zip(addresses, descriptors, strict=True):
                    self._sockets.add(address, socket.socket(fileno=descriptor))
            case _:
                self._queue.put_nowait(order)


async def obey(channel: Channel, role: Role, common: Common) -> int:
    """Do what the supervisor says until the end; returns the exit status."""
    inbox = Orders(channel, common.sockets)
    try:
        await role.open()
    except (MailError, CertificateError) as error:
        channel.send(orders.Failed(_told(error)))
        return os.EX_TEMPFAIL
    channel.send(orders.Ready())
    while not isinstance(order := await inbox.next(), orders.Close):
        answer = await _carry_out(order, role, common)
        if answer is not None:
            channel.send(answer)
        if isinstance(answer, orders.Failed):
            return os.EX_TEMPFAIL
    await role.close()
    return os.EX_OK


async def _carry_out(order: object, role: Role, common: Common) -> object:
    match order:
        case orders.Serve():
            try:
                await role.serve()
            except (ListenError, CertificateError) as error:
                return orders.Failed(_told(error))
            return orders.Serving()
        case orders.Apply(settings):
            return await _apply(settings, role, common)
        case orders.Died():
            role.look_around()
        case orders.Drain():
            common.sockets.keep(())
            await role.drain()
            return orders.Drained()
    return None


def _told(error: Exception) -> MailError:
    if isinstance(error, MailError):
        return error
    return MailError(Kind.UNAVAILABLE, str(error))


async def _apply(settings: Settings, role: Role, common: Common) -> object:
    server = settings.server
    try:
        await role.apply(settings)
    except (ListenError, CertificateError) as error:
        return orders.Applied(str(error))
    except Exception as error:
        log.exception("settings-not-applied")
        return orders.Applied(repr(error))
    logs.configure(server.log_level, server.log_format)
    common.sockets.keep(one.address for one in settings.listener)
    return orders.Applied()
