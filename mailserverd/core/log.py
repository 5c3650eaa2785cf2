"""Structured logs: one JSON line per event on standard error, no secrets, no bodies.

``get_logger("smtp").info("message-accepted", message="m1", size=5120)`` writes
``{"event": "message-accepted", "component": "smtp", "level": "info", ...}``.
Connection-wide context (peer, session id) is bound inside the connection's task.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from typing import Any, TextIO, cast

import orjson
import structlog

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
SECRET_KEYS = frozenset({"password", "secret", "token", "credentials", "authorization"})
_FACTS: dict[str, str] = {}  # on every line


def get_logger(component: str) -> structlog.stdlib.BoundLogger:
    """Return a logger whose lines bear the component's name."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(component=component)
    return logger


def name_process(name: str) -> None:
    """Let every line say ``process=name``: one of several that write one log."""
    _FACTS["process"] = name


def configure(
    level: str = "info", form: str = "json", stream: TextIO | None = None
) -> None:
    """Set the level (debug info warning error) and form (json or text) of all logs."""
    target = stream or sys.stderr
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=target.isatty())
        if form == "text"
        else structlog.processors.JSONRenderer(serializer=_dumps)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_facts,
            _redact,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Lossy(target))),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Libraries()], force=True)


class _Libraries(logging.Handler):
    """What libraries log by the standard library, as events like all others."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one event; never raises."""
        try:
            text, trace = record.getMessage(), record.exc_info
            log = get_logger(record.name)
            log.log(record.levelno, "library", text=text, exc_info=trace)
        except Exception:
            self.handleError(record)


class _Lossy:
    """A stream on which a failed write (full disk) loses a line, and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _dumps(event: dict[str, Any], **_: object) -> str:
    try:
        return orjson.dumps(
            event, default=repr, option=orjson.OPT_NON_STR_KEYS
        ).decode()
    except TypeError:  # a lone surrogate, an integer beyond 64 bits
        return json.dumps(event, default=repr)


def _add_facts(_logger: object, _name: str, event: Any) -> Any:
    for key, fact in _FACTS.items():
        event.setdefault(key, fact)
    return event


def _redact(_logger: object, _name: str, event: Any) -> Any:
    for key in SECRET_KEYS & event.keys():
        event[key] = "[redacted]"
    return event
