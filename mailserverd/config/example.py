"""The example file, generated from the settings classes so that it is never stale."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import TYPE_CHECKING, Any

from mailserverd.config.schema import REQUIRED, Option

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def example(
    cls: type[Any],
    intro: str,
    more: Mapping[str, Iterable[Mapping[str, object]]] | None = None,
) -> str:
    """Return a commented TOML file with every key, its meaning and its default.

    ``more`` names further tables, without comments, of an array of tables.
    """
    lines = _comment(intro)
    for field in dataclasses.fields(cls):
        known: Option = field.metadata["option"]
        nested = known.table or known.tables
        if nested is None:
            raise TypeError(f"{field.name}: the root holds tables only")
        header = f"[{field.name}]" if known.table else f"[[{field.name}]]"
        lines += ["", *_comment(known.doc), header, *_keys(nested)]
        for row in (more or {}).get(field.name, ()):
            lines += ["", header, *(f"{key} = {toml(row[key])}" for key in row)]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 86)]


def _keys(cls: type[Any]) -> list[str]:
    lines: list[str] = []
    for field in dataclasses.fields(cls):
        known: Option = field.metadata["option"]
        assert known.kind is not None
        default = field.default
        value = known.example if known.example is not None else default
        shown = f"{field.name} = {toml(value)}"
        if default is not REQUIRED and known.example is None:
            shown = f"# {shown}"
        lines += [*_comment(f"{known.doc} ({known.kind.expects})"), shown]
    return lines


def toml(value: Any) -> str:
    """Render a value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    text = str(value)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
