"""Reading TOML files: secrets from files, drop-ins, and the line of every key."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from typing import TYPE_CHECKING, Any, TypeVar

from mailserverd.config.schema import Path, Problem, check

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

S = TypeVar("S")
HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
KEY = re.compile(r"""^\s*("[^"]*"|'[^']*'|[A-Za-z0-9_.-]+)\s*=""")
DECODE_LINE = re.compile(r"at line (\d+)")


class ConfigError(Exception):
    """The configuration cannot be used; ``problems`` lists every mistake."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclasses.dataclass(slots=True)
class _Source:
    """Which file and line last set each key."""

    places: dict[Path, tuple[str, int]]

    def locate(self, problem: Problem, fallback: str) -> Problem:
        """Return the problem with the file and line of its nearest known key."""
        if problem.file:
            return problem
        path = problem.path
        while path and path not in self.places:
            path = path[:-1]
        file, line = self.places.get(path, (fallback, 0))
        return dataclasses.replace(problem, file=file, line=line)


def load(
    cls: type[S],
    file: pathlib.Path,
    across: Callable[[S], list[Problem]] = lambda _: [],
) -> S:
    """Read ``file`` and ``conf.d/*.toml`` beside it, and check them against ``cls``.

    ``across`` finds what no single key can know.  Raises ConfigError with every
    mistake at once.
    """
    problems: list[Problem] = []
    source = _Source({})
    merged: dict[str, Any] = {}
    for path in [file, *sorted(file.parent.glob("conf.d/*.toml"))]:
        raw = _read(path, problems)
        _note_lines(path, source)
        _merge(merged, _resolve(raw, path.parent, problems, ()))
    settings = None if problems else check(cls, merged, problems)
    if settings is not None:
        problems += across(settings)
    if settings is None or problems:
        raise ConfigError([source.locate(p, str(file)) for p in problems])
    return settings


def _read(path: pathlib.Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(Problem((), f"cannot be read: {error.strerror}", str(path)))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problems.append(Problem((), "is not UTF-8 text", str(path), line))
    except tomllib.TOMLDecodeError as error:
        found = DECODE_LINE.search(str(error))
        line = int(found[1]) if found else 0
        problems.append(Problem((), f"is not valid TOML: {error}", str(path), line))
    return {}


def _resolve(raw: Any, base: pathlib.Path, problems: list[Problem], at: Path) -> Any:
    """Replace every ``{ file = "path" }`` by that file's first line."""
    if isinstance(raw, list):
        return [_resolve(v, base, problems, (*at, n)) for n, v in enumerate(raw)]
    if not isinstance(raw, dict):
        return raw
    if set(raw) == {"file"} and isinstance(raw["file"], str) and at:
        try:
            return (base / raw["file"]).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(at, f"cannot read {raw['file']}: {error}"))
            return ""
    return {key: _resolve(v, base, problems, (*at, key)) for key, v in raw.items()}


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    """Override table by table, key by key; a list replaces the list before it."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _note_lines(path: pathlib.Path, source: _Source) -> None:
    """Find the line of each key; tomllib does not tell.  Near enough is enough."""
    table: Path = ()
    arrays: dict[Path, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for number, line in enumerate(lines, 1):
        if header := HEADER.match(line):
            table = tuple(part.strip(" \"'") for part in header[2].split("."))
            if header[1] == "[[":
                arrays[table] = arrays.get(table, -1) + 1
                source.places[table] = (str(path), number)
                table = (*table, arrays[table])
            source.places[table] = (str(path), number)
        elif key := KEY.match(line):
            steps = tuple(part.strip(" \"'") for part in key[1].split("."))
            source.places[(*table, *steps)] = (str(path), number)
