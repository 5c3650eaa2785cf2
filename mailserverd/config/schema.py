"""Settings as frozen dataclasses: each component declares its own beside itself.

``option(kind, default, doc)`` declares one key.  ``check`` turns a raw TOML table into
an instance, collecting every mistake instead of stopping at the first one.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, TypeVar

from mailserverd.config.kinds import Kind  # noqa: TC001 - evaluated at run time
from mailserverd.core.urls import shown

S = TypeVar("S")
REQUIRED: Any = dataclasses.MISSING
Path = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """What is known of one key."""

    doc: str
    kind: Kind | None = None
    table: type[Any] | None = None  # a nested table
    tables: type[Any] | None = None  # an array of tables
    example: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it is, what is wrong, and what would be right."""

    path: Path
    text: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        return f"{place if self.file else ''}{dotted(self.path)}: {self.text}"


def dotted(path: Path) -> str:
    """Render a path as ``listener[2].address``."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step + 1}]"
        else:
            text += f".{step}" if text else step
    return text or "(file)"


def option(kind: Kind, default: Any, doc: str, *, example: Any = None) -> Any:
    """Declare a key with its default (``REQUIRED`` when there is none)."""
    known = Option(doc, kind=kind, example=example)
    return dataclasses.field(default=default, metadata={"option": known})


def table(cls: type[S], doc: str) -> S:
    """Declare a nested table; absent, it has its defaults."""
    known = Option(doc, table=cls)
    field: Any = dataclasses.field(default_factory=cls, metadata={"option": known})
    result: S = field
    return result


def tables(cls: type[S], doc: str) -> tuple[S, ...]:
    """Declare an array of tables; absent, it is empty."""
    known = Option(doc, tables=cls)
    field: Any = dataclasses.field(default=(), metadata={"option": known})
    result: tuple[S, ...] = field
    return result


def check(
    cls: type[S], raw: dict[str, Any], problems: list[Problem], path: Path = ()
) -> S | None:
    """Return an instance of ``cls``, or None after adding to ``problems``."""
    before = len(problems)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    problems += [
        Problem((*path, key), _unknown(key, list(fields)))
        for key in sorted(raw.keys() - fields.keys())
    ]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        known: Option = field.metadata["option"]
        if name in raw:
            values[name] = _value(known, raw[name], problems, (*path, name))
        elif known.table is not None:  # which may hold keys that have no default
            values[name] = check(known.table, {}, problems, (*path, name))
        elif field.default is REQUIRED and field.default_factory is REQUIRED:
            problems.append(Problem(path, _missing(name, known)))
    return cls(**values) if len(problems) == before else None


def _missing(name: str, known: Option) -> str:
    expects = known.kind.expects if known.kind else "a table"
    example = f', such as "{known.example}"' if known.example else ""
    return f'"{name}" is missing: {expects}{example}'


def _value(known: Option, raw: Any, problems: list[Problem], path: Path) -> Any:
    if known.table is not None:
        if not isinstance(raw, dict):
            problems.append(Problem(path, f"must be a table: [{path[-1]}]"))
            return None
        return check(known.table, raw, problems, path)
    if known.tables is not None:
        if not isinstance(raw, list) or not all(isinstance(t, dict) for t in raw):
            problems.append(Problem(path, f"must be tables: [[{path[-1]}]]"))
            return None
        found = [
            check(known.tables, item, problems, (*path, number))
            for number, item in enumerate(raw)
        ]
        return tuple(found)
    assert known.kind is not None
    try:
        return known.kind.parse(raw)
    except ValueError as error:
        problems.append(Problem(path, f"{error} (it is {_shown(raw)!r})"))
        return None


def _shown(raw: Any) -> Any:
    """Return a value as it may be shown: a URL may hold a password."""
    if isinstance(raw, list):
        return [_shown(one) for one in raw]
    return shown(raw) if isinstance(raw, str) else raw


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    hint = f'did you mean "{near[0]}"?' if near else "known: " + ", ".join(known)
    return f"unknown key; {hint}"
