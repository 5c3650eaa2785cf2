"""Conversations as text files, run against a listening socket.

Lines: ``C: text`` sends a line with CRLF, ``C~ text`` sends octets with Python's
backslash escapes and no line end, ``C= expression`` the bytes that a Python
expression gives.  ``S: regex`` reads a line that must match whole, ``S* regex``
reads lines until one matches.  ``TLS`` shakes hands, ``EOF`` ends our side, ``CLOSE``
expects the server's close, ``NEW`` opens a new connection.  ``#`` is a comment.
``{name}`` in ``C:`` and ``S:`` stands for a given variable.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Mapping

TIME_LIMIT = 10.0
STEP = re.compile(r"(C:|C~|C=|S:|S\*|TLS|EOF|CLOSE|NEW)(?: (.*))?")


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One line of a dialog."""

    kind: str
    text: str
    where: str  # "file:line"


def parse(path: pathlib.Path) -> list[Step]:
    """Read a dialog file; ValueError names a line that is no step."""
    steps = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = STEP.fullmatch(line.rstrip())
        if match is None:
            raise ValueError(f"{path.name}:{number}: not a step: {line}")
        steps.append(Step(match[1], match[2] or "", f"{path.name}:{number}"))
    return steps


def client_context() -> ssl.SSLContext:
    """Return a context that accepts any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Player:
    """Plays the client's part."""

    def __init__(
        self, host: str, port: int, *, tls: bool, variables: Mapping[str, str]
    ) -> None:
        self._address = (host, port)
        self._tls = client_context() if tls else None
        self._variables = variables
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def play(self, steps: list[Step]) -> None:
        """Play all steps; AssertionError names the first that went wrong."""
        await self._open()
        try:
            for step in steps:
                try:
                    async with asyncio.timeout(TIME_LIMIT):
                        await self._step(step)
                except TimeoutError:
                    raise AssertionError(f"{step.where}: nothing came") from None
        finally:
            await self._close()

    async def _open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(
            *self._address, ssl=self._tls, limit=1 << 20
        )

    async def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def _step(self, step: Step) -> None:
        assert self._reader is not None
        assert self._writer is not None
        if step.kind[0] == "C" and step.kind != "CLOSE":
            with contextlib.suppress(ConnectionError):  # the reply tells
                self._writer.write(self._octets(step))
                await self._writer.drain()
        elif step.kind[0] == "S":
            await self._expect(step, until=step.kind == "S*")
        elif step.kind == "TLS":
            await self._writer.start_tls(client_context())
        elif step.kind == "EOF":
            self._writer.write_eof()
        elif step.kind == "NEW":
            await self._close()
            await self._open()
        else:
            rest = await self._reader.read()
            assert not rest, f"{step.where}: not closed, but {rest[:200]!r}"

    def _octets(self, step: Step) -> bytes:
        if step.kind == "C:":
            return self._fill(step.text).encode() + b"\r\n"
        if step.kind == "C~":
            escaped = step.text.encode("latin-1", "backslashreplace")
            return escaped.decode("unicode_escape").encode("latin-1")
        result: bytes = eval(step.text)
        return result

    def _fill(self, text: str, *, escape: bool = False) -> str:
        for name, value in self._variables.items():
            text = text.replace(f"{{{name}}}", re.escape(value) if escape else value)
        return text

    async def _expect(self, step: Step, *, until: bool) -> None:
        assert self._reader is not None
        pattern = re.compile(self._fill(step.text, escape=True))
        seen = []
        while True:
            line = await self._reader.readline()
            text = line.decode("utf-8", "replace").removesuffix("\n")
            if line and pattern.fullmatch(text.removesuffix("\r")):
                assert line.endswith(b"\r\n"), f"{step.where}: bare LF in {line!r}"
                return
            seen.append(text)
            if not until or not line:
                raise AssertionError(f"{step.where}: expected {step.text}, got {seen}")


def play(
    path: pathlib.Path,
    address: tuple[str, int],
    *,
    tls: bool = False,
    **variables: str,
) -> object:
    """Return the coroutine that plays a file against a server."""
    return Player(*address, tls=tls, variables=variables).play(parse(path))
