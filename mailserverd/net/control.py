"""The control socket: commands to a running daemon, one JSON object per line.

Request ``{"command": "account.add", "args": {...}}``; replies are any number of
``{"progress": {...}}`` lines and at last ``{"result": ...}`` or
``{"error": {"kind": "NOT_FOUND", "text": "..."}}``.  Only the daemon's own user and
root may speak (the socket is 0600 and the peer's uid is checked).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import orjson

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.sockets import address, peer_uid

if TYPE_CHECKING:
    import pathlib

log = get_logger("control")
Progress = Callable[[dict[str, Any]], None]
Handler = Callable[[str, dict[str, Any], Progress], Awaitable[Any]]
LINE_LIMIT = 1 << 20
BACKLOG = 128


class _GoneError(Exception):
    """The client left before its command was done."""


def bind(path: pathlib.Path) -> socket.socket:
    """Listen on ``path``; a stale socket of a dead daemon is replaced."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        with address(path) as where:
            sock.bind(where)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(old)
    return sock


async def serve(sock: socket.socket, handler: Handler) -> asyncio.Server:
    """Answer commands on a socket that ``bind`` made."""
    return await asyncio.start_unix_server(
        lambda r, w: _session(r, w, handler), sock=sock, limit=LINE_LIMIT
    )


async def _session(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler
) -> None:
    try:
        if not _permitted(writer.transport):
            return
        while line := await reader.readline():
            answer = await _answer(line, writer, handler)
            if writer.is_closing():
                return
            _send(writer, answer)
            await writer.drain()
    except (ConnectionError, ValueError):
        return  # the client left, or its line was longer than the limit
    finally:
        writer.close()


def _permitted(transport: asyncio.BaseTransport) -> bool:
    uid = peer_uid(transport)
    if uid in {0, os.geteuid()}:
        return True
    log.warning("control-refused", uid=uid)
    return False


async def _answer(
    line: bytes, writer: asyncio.StreamWriter, handler: Handler
) -> dict[str, Any]:
    def progress(state: dict[str, Any]) -> None:
        if writer.is_closing():  # the client was interrupted: so is its command
            raise _GoneError
        _send(writer, {"progress": state})

    try:
        request = orjson.loads(line)
        command, args = str(request["command"]), dict(request.get("args") or {})
    except (KeyError, TypeError, ValueError):
        return _refusal(MailError(Kind.INVALID, "malformed request"))
    try:
        return {"result": await handler(command, args, progress)}
    except MailError as error:
        return _refusal(error)
    except _GoneError:
        log.info("control-interrupted", command=command)
        return {}
    except Exception:
        log.exception("control-failed", command=command)
        return _refusal(MailError(Kind.INTERNAL, "see the daemon's log"))


def _refusal(error: MailError) -> dict[str, Any]:
    return {"error": {"kind": error.kind.name, "text": error.text}}


def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(orjson.dumps(message, default=str) + b"\n")


async def call(
    path: pathlib.Path, command: str, args: dict[str, Any], progress: Progress
) -> Any:
    """Send one command to a running daemon and return its result.

    Raises ConnectionError or FileNotFoundError when no daemon listens, and the
    daemon's MailError.
    """
    with address(path) as where:
        reader, writer = await asyncio.open_unix_connection(where, limit=64 << 20)
    try:
        _send(writer, {"command": command, "args": args})
        while line := await reader.readline():
            reply = orjson.loads(line)
            if "progress" in reply:
                progress(reply["progress"])
            elif "error" in reply:
                error = reply["error"]
                raise MailError(Kind[error["kind"]], error["text"])
            else:
                return reply["result"]
        raise MailError(Kind.UNAVAILABLE, "the daemon closed the connection")
    finally:
        writer.close()
