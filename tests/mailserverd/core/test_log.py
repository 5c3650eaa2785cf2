"""Logs: one JSON object per line, whoever writes, and no secrets."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from mailserverd.core.log import configure, get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    made = io.StringIO()
    configure(stream=made)
    yield made
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]


def test_what_strangers_say_stays_inside_one_line(stream: io.StringIO) -> None:
    log = get_logger("test")
    nasty = 'x"}\n{"event":"forged"}\r\x00\x1b[2J\u2028'
    log.info("event", said=nasty, password="secret", raw=b"\xff")
    log.info("event", said="\ud800", number=2**70, many=[object()])
    event, odd = lines(stream)
    assert (odd["said"], odd["number"]) == ("\ud800", 2**70)
    assert event["said"] == nasty
    assert event["password"] == "[redacted]"
    assert event["event"] == "event"


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_line_is_one_write(stream: io.StringIO, form: str) -> None:
    """Several processes write one log: what comes in two pieces they would mix."""
    pieces: list[str] = []
    stream.write = pieces.append  # type: ignore[assignment]
    configure(form=form, stream=stream)
    get_logger("test").info("event", said="something")
    assert len(pieces) == 1
    assert pieces[0].endswith("\n")


def test_what_libraries_log_is_an_event_too(stream: io.StringIO) -> None:
    """A traceback of theirs is many lines, of which none may be ours."""
    library = logging.getLogger("some.library")
    library.info("not interesting")
    try:
        int("a\nb")
    except ValueError:
        library.exception("it %s", "failed\n{}")
    (event,) = lines(stream)
    assert event["component"] == "some.library"
    assert event["level"] == "error"
    assert event["text"] == "it failed\n{}"
    assert "ValueError: invalid literal" in event["exception"]
