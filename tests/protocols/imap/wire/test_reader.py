"""The reader: whole equals byte by byte, limits before memory, nothing escapes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocols.imap.wire.cursor import Cursor
from protocols.imap.wire.errors import WireError
from protocols.imap.wire.reader import (
    AUTHENTICATED,
    PRE_AUTH,
    Append,
    Chunk,
    Command,
    Continue,
    Limits,
    Malformed,
    RawLine,
    Reader,
    Tail,
)

SMALL = Limits(line=40, literal=16, command=64, literals=2, skip=20, append_skip=30)
WORDS = [
    b"a1 ",
    b"APPEND ",
    b"append x ",
    b"SELECT ",
    b"UID FETCH 1:* ",
    b"{3}\r\n",
    b"{3+}\r\n",
    b"{0}\r\n",
    b"{30+}\r\n",
    b"{99+}\r\n",
    b"{99}\r\n",
    b"~{3}\r\n",
    b"abc",
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b'"',
    b"\\",
    b"(",
    b")",
    b" ",
]


def pieces(cursor: Cursor) -> list[bytes]:
    return [bytes(piece) for piece in cursor._pieces]


def shown(event: object) -> object:
    """Return an event in a form that can be compared."""
    if isinstance(event, Command):
        return "command", event.tag, event.name, pieces(event.args)
    if isinstance(event, Append):
        return "append", event.tag, pieces(event.args), event.size, event.sync
    if isinstance(event, Tail):
        return "tail", pieces(event.args)
    return event


def run(reader: Reader, blocks: list[bytes]) -> list[object]:
    """Feed blocks, accepting every other APPEND; chunks are joined."""
    found: list[object] = []
    appends = 0
    for block in blocks:
        reader.feed(block)
        while (event := reader.next()) is not None:
            if isinstance(event, Chunk):
                if isinstance(found[-1], bytes):
                    found[-1] += event.data
                else:
                    found.append(event.data)
                continue
            found.append(shown(event))
            if isinstance(event, Append):
                appends += 1
                if appends % 2:
                    reader.accept()
                else:
                    reader.refuse(sync=event.sync)
    return found


@given(st.lists(st.sampled_from(WORDS), max_size=30).map(b"".join))
@example(b"a APPEND x {3+}\r\nabc\r\nb APPEND x {3+}\r\nabc\r\nc NOOP\r\n")
@example(b"a1 x {3+}\r\nab")
def test_whole_equals_byte_by_byte(data: bytes) -> None:
    for limits in (AUTHENTICATED, PRE_AUTH, SMALL):
        whole = run(Reader(limits), [data])
        single = run(Reader(limits), [data[i : i + 1] for i in range(len(data))])
        assert whole == single


@given(st.binary(max_size=300))
def test_any_bytes_give_events(data: bytes) -> None:
    run(Reader(SMALL), [data])
    run(Reader(PRE_AUTH), [data])


def events(data: bytes, limits: Limits = AUTHENTICATED) -> list[object]:
    return run(Reader(limits), [data])


def test_command_with_literals_is_parsed_once() -> None:
    found = events(b'a1 login {4}\r\nanna "x y"\r\n')
    assert found[0] == Continue()
    assert found[1] == ("command", "a1", "LOGIN", [b"a1 login ", b"anna", b' "x y"'])


def test_uid_commands_are_one_name() -> None:
    (event,) = events(b"a1 uid fetch 1:* (flags)\n")
    assert event[1:3] == ("a1", "UID FETCH")


def test_append_streams_its_literal() -> None:
    found = events(b"a APPEND {5}\r\ninbox (\\Seen) {6}\r\nfoobar\r\nb NOOP\r\n")
    assert found[0] == Continue()  # the mailbox is a small literal
    assert found[1][0] == "append"
    assert found[1][3:] == (6, True)
    assert found[2:4] == [b"foobar", ("tail", [b""])]
    assert found[4][1:3] == ("b", "NOOP")


def test_refused_append_is_skipped() -> None:
    reader = Reader()
    reader.feed(b"a APPEND x {6+}\r\nfoo")
    assert isinstance(reader.next(), Append)
    reader.refuse(sync=False)
    assert reader.next() is None
    reader.feed(b"bar\r\nb NOOP\r\n")
    event = reader.next()
    assert isinstance(event, Command)
    assert event.name == "NOOP"


def test_refused_sync_append_leaves_nothing_to_skip() -> None:
    reader = Reader()
    reader.feed(b"a APPEND x {6}\r\n")
    assert isinstance(reader.next(), Append)
    reader.refuse(sync=True)
    reader.feed(b"b NOOP\r\n")
    assert isinstance(reader.next(), Command)


@pytest.mark.parametrize(
    "data",
    [
        b"a" * 9000,
        b"a LOGIN {5000+}\r\n",
        b"a APPEND x {5000+}\r\nabc",
        b"a NOOP " + b"x" * 8200 + b"\r\n",
    ],
)
def test_too_much_before_login_is_fatal(data: bytes) -> None:
    reader = Reader(PRE_AUTH)
    reader.feed(data)
    event = reader.next()
    if isinstance(event, Append):
        reader.refuse(sync=event.sync)
        event = reader.next()
    assert isinstance(event, Malformed)
    assert event.fatal
    reader.feed(b"a NOOP\r\n")
    assert reader.next() is None
    assert reader.buffered == 0


def test_large_literal_is_refused_before_it_is_sent() -> None:
    assert events(b"a SELECT {70000}\r\nb NOOP\r\n")[0] == Malformed(
        "a", "literal too large"
    )


def test_large_non_sync_literal_is_dropped_then_refused() -> None:
    found = events(b"a SELECT {70000+}\r\n" + b"x" * 70000 + b"\r\nb NOOP\r\n")
    assert found[0] == Malformed("a", "literal too large")
    assert found[1][1:3] == ("b", "NOOP")


@pytest.mark.parametrize("line", [b"a NO\0OP\r\n", b"a NOOP\rx\r\n"])
def test_nul_and_bare_cr_are_refused(line: bytes) -> None:
    (event,) = events(line)
    assert event == Malformed("a", "bare CR or NUL in a command")


@pytest.mark.parametrize("line", [b"\r\n", b"a\r\n", b"+ x\r\n", b"a(b NOOP\r\n"])
def test_invalid_tags(line: bytes) -> None:
    (event,) = events(line)
    assert isinstance(event, Malformed)
    assert event.tag == "*"


def test_raw_line() -> None:
    reader = Reader()
    reader.expect_line(10)
    reader.feed(b"DONE\r\na NOOP\r\n")
    assert reader.next() == RawLine(b"DONE")
    assert isinstance(reader.next(), Command)
    reader.expect_line(10)
    reader.feed(b"x" * 20)
    event = reader.next()
    assert isinstance(event, Malformed)
    assert event.fatal


def cursor(text: bytes) -> Cursor:
    return Cursor([text])


def test_nesting_is_limited() -> None:
    deep = cursor(b"(" * 51)
    with pytest.raises(WireError, match="deeply"):
        for _ in range(51):
            deep.enter()


def test_strings() -> None:
    args = Cursor([b'"a\\"b" at]om ', b"lit\r\n", b" NIL"])
    assert args.astring() == b'a"b'
    args.space()
    assert args.astring() == b"at]om"
    args.space()
    assert args.astring() == b"lit\r\n"
    args.space()
    assert args.nstring() is None
    args.end()


@pytest.mark.parametrize("text", [b'"a', b'"a\\x"', b"", b"(", b"\x80", b"{3}"])
def test_no_string(text: bytes) -> None:
    with pytest.raises(WireError):
        cursor(text).astring()


def test_numbers_have_a_limit() -> None:
    assert cursor(b"9223372036854775807").number() == (1 << 63) - 1
    with pytest.raises(WireError):
        cursor(b"9223372036854775808").number()
    with pytest.raises(WireError):
        cursor(b"0").nz_number()


def test_events_are_values() -> None:
    assert dataclasses.is_dataclass(Command)
    assert Malformed("a", "x") == Malformed("a", "x")
