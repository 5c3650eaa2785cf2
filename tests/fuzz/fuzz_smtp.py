"""SMTP, both ends: any octets are commands, replies, or the protocol's own error."""

from __future__ import annotations

from protocols.smtp.client import ClientConnection
from protocols.smtp.conn import BadLine, Content, Line, ServerConnection, State
from protocols.smtp.extension import MailParameters, RcptParameters
from protocols.smtp.settings import SmtpSettings
from protocols.smtp.transaction import read_mail_parameters, read_rcpt_parameters
from protocols.smtp.wire.command import (
    CommandError,
    parse_bdat,
    parse_command,
    parse_helo,
    parse_path_arguments,
)
from protocols.smtp.wire.data import is_clean
from protocols.smtp.wire.reply import Reply, ReplyError

SETTINGS = SmtpSettings("mx.example.org")
SEEDS = [
    b"EHLO c.example\r\nMAIL FROM:<a@b.example> SIZE=5 BODY=8BITMIME SMTPUTF8\r\n",
    b'RCPT TO:<@r,@s:"a b"@[192.0.2.1]> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+40b\r\n',
    b"MAIL FROM:<> RET=FULL ENVID=x+2B AUTH=<>\r\nDATA\r\na\r\n..b\r\n.\r\nQUIT\r\n",
    b"BDAT 5\r\nhelloBDAT 0 LAST\r\nRCPT TO:<Postmaster>\r\n",
    b"220 x ESMTP\r\n250-x\r\n250-SIZE 100\r\n250 DSN\r\n354 go\r\n550 5.1.1 no\r\n",
    b"MAIL FROM:<\xc3\xbc@b\xc3\xbccher.example> SMTPUTF8\r\nNOOP \x00\n\r\r\n.\r\n",
]


def fuzz_one(data: bytes) -> None:
    """Both readers see the same whole or in pieces; parsers raise only their own."""
    whole = list(_serve(data, len(data) or 1))
    for size in (1, 7):
        assert list(_serve(data, size)) == whole
    _ask(data)


def _serve(data: bytes, size: int) -> list[object]:
    """Read as a server that obeys DATA and BDAT blindly; content joined."""
    conn = ServerConnection()
    seen: list[object] = []
    for start in range(0, len(data), size):
        conn.feed(data[start : start + size])
        while (event := conn.next_event()) is not None:
            if isinstance(event, Content):
                _content(seen, event)
            else:
                seen.append(_line(conn, event))
        assert conn.buffered < 4096
    # How far an unfinished body was read depends on the pieces.
    return seen[:-1] if seen and isinstance(seen[-1], bytearray) else seen


def _content(seen: list[object], event: Content) -> None:
    if not (seen and isinstance(seen[-1], bytearray)):
        seen.append(bytearray())
    body = seen[-1]
    assert isinstance(body, bytearray)
    body += event.data
    if event.end:
        seen[-1] = (bytes(body), event.clean)


def _line(conn: ServerConnection, event: Line | BadLine) -> object:
    if isinstance(event, BadLine):
        return event
    try:
        command = parse_command(event.data)
        if command.verb == "DATA":
            conn.start_data()
        elif command.verb == "BDAT":
            conn.start_chunk(min(parse_bdat(command.argument)[0], 100))
            conn.state = State.CHUNKS
        elif command.verb == "EHLO":
            return parse_helo(command.argument)
        elif command.verb == "MAIL":
            return _mail(command.argument)
        elif command.verb == "RCPT":
            return _rcpt(command.argument)
    except CommandError as error:
        assert 500 <= error.code < 560
        wire = Reply(error.code, error.enhanced, error.text).encode()
        assert is_clean(wire)
        assert len(wire) < 512
        return error.code
    return command


def _mail(argument: str) -> object:
    found = parse_path_arguments(argument, "FROM:")
    read_mail_parameters(found.params, MailParameters(SETTINGS))
    _check_address(found.address)
    return found


def _rcpt(argument: str) -> object:
    found = parse_path_arguments(argument, "TO:")
    read_rcpt_parameters(found.params, RcptParameters())
    _check_address(found.address)
    return found


def _check_address(address: str) -> None:
    """Whatever is accepted can be put into a command to the next server."""
    assert not any(c in address for c in "\r\n\0")
    if address not in {"", "postmaster"}:
        again = parse_path_arguments(f"FROM:<{address}>", "FROM:")
        assert again.address == address


def _ask(data: bytes) -> None:
    """Read as a client: replies or ReplyError, in bounded memory."""
    client = ClientConnection()
    for name in ("EHLO", "MAIL", "RCPT", "DATA"):
        client.command(name, name)
    try:
        for answer in client.receive(data):
            assert 200 <= answer.reply.code < 600
            assert "\n" not in answer.reply.line
    except ReplyError:
        return
    assert client.features.max_size >= 0
