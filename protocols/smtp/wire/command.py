"""Command lines: a verb and its arguments (RFC 5321 section 4.1.1).

Each parser raises ``CommandError`` with the reply's code, never anything else.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from protocols.smtp.wire.path import PathError, parse_path

MAX_LINE = 2048  # octets, CRLF included: 512 and what the extensions add
MAX_PARAMETERS = 16
_VERB = re.compile(rb"[A-Za-z]{1,16}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PARAMETER = re.compile(
    "([A-Za-z0-9][A-Za-z0-9-]{0,63})(?:=([!-<>-~\u00a0-\U0010ffff]+))?"
)
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_XCHAR = re.compile(r"\+([0-9A-F]{2})")
_HELO = re.compile("[!-~\u00a0-\U0010ffff]{1,255}")
_SIZE = re.compile(r"[0-9]{1,20}")


class CommandError(ValueError):
    """A command that cannot be obeyed as it stands: the reply it deserves."""

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.enhanced = enhanced
        self.text = text


class Command(NamedTuple):
    """``verb`` in upper case; ``argument`` as it stands, without outer spaces."""

    verb: str
    argument: str


class PathArguments(NamedTuple):
    """What MAIL FROM and RCPT TO carry; see ``path.Path`` for the first two."""

    address: str
    ascii: bool
    params: dict[str, str | None]  # names in upper case


def parse_command(line: bytes) -> Command:
    """Divide a line (without its CRLF) into verb and argument."""
    verb, _, rest = line.partition(b" ")
    if not _VERB.fullmatch(verb):
        raise CommandError(500, "5.5.2", "Command not recognized")
    try:
        argument = rest.strip(b" ").decode()
    except UnicodeDecodeError:
        raise CommandError(500, "5.5.2", "Command is not UTF-8") from None
    if not argument.isprintable() and _CONTROL.search(argument):
        raise CommandError(500, "5.5.2", "Control character in command")
    return Command(verb.decode().upper(), argument)


def parse_path_arguments(argument: str, keyword: str) -> PathArguments:
    """Read ``FROM:<path> params`` or ``TO:<path> params`` (``keyword`` with colon)."""
    if argument[: len(keyword)].upper() != keyword:
        raise CommandError(501, "5.5.4", f"Syntax: {keyword}<address>")
    start = len(keyword)
    while argument[start : start + 1] == " ":  # many clients put one there
        start += 1
    sender = keyword == "FROM:"
    try:
        path = parse_path(argument, start, foreign=sender)
    except PathError as error:
        text = str(error)
        raise CommandError(
            553, "5.1.7" if sender else "5.1.3", text[:1].upper() + text[1:]
        ) from None
    params = parse_parameters(argument[path.end :])
    return PathArguments(path.address, path.ascii, params)


def parse_parameters(text: str) -> dict[str, str | None]:
    """Read `` KEY=value KEY2`` (RFC 5321 section 4.1.2, esmtp-param)."""
    if not text:
        return {}
    if text[0] != " ":
        raise CommandError(501, "5.5.4", "Text after the address")
    params: dict[str, str | None] = {}
    for word in filter(None, text.split(" ")):
        match = _PARAMETER.fullmatch(word)
        if match is None or match[1].upper() in params:
            raise CommandError(501, "5.5.4", "Malformed or repeated parameter")
        params[match[1].upper()] = match[2]
    if len(params) > MAX_PARAMETERS:
        raise CommandError(501, "5.5.4", "Too many parameters")
    return params


def parse_helo(argument: str) -> str:
    """Return the name that HELO, EHLO or LHLO gives (RFC 5321 section 4.1.1.1).

    Liberal: clients behind NAT give any name, and policy judges it, not the parser.
    """
    if not _HELO.fullmatch(argument):
        raise CommandError(501, "5.5.4", "Syntax: EHLO hostname")
    return argument


def parse_bdat(argument: str) -> tuple[int, bool]:
    """Return (octets, last) of ``BDAT n [LAST]`` (RFC 3030 section 2)."""
    size, _, last = argument.partition(" ")
    if not _SIZE.fullmatch(size) or last.upper() not in {"", "LAST"}:
        raise CommandError(501, "5.5.4", "Syntax: BDAT octets [LAST]")
    return int(size), bool(last)


def decode_xtext(value: str) -> str:
    """Undo xtext (RFC 3461 section 4); ValueError when it is not that."""
    if not _XTEXT.fullmatch(value):
        raise ValueError("not xtext")
    return _XCHAR.sub(lambda match: chr(int(match[1], 16)), value)
