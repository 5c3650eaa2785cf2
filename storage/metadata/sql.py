"""Statements: written in SQLAlchemy Core, compiled once, handed to the driver.

Measured per delivery (DESIGN decision 8): raw driver 39 us, Core compiled once 45,
Core built and compiled per call 1,035.  So every statement is a module-level
constant and a unit of work only binds parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from sqlalchemy import BindParameter, ColumnElement, bindparam
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import BigInteger, Boolean

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.sql.elements import ClauseElement

SQLITE = sqlite.dialect(paramstyle="named")
BOUND = re.compile(r"(?<!:):(\w+)|__\[POSTCOMPILE_(\w+)\]")


class Sql:
    """A statement that knows its text in each dialect, compiled on first use.

    ``columns`` limits what an INSERT or UPDATE without ``values()`` sets: each
    is bound under its own name.  Constants inside the clause (``c.n + 1``,
    ``c.state == "queued"``) are rendered into the text.
    """

    __slots__ = ("_clause", "_columns", "_sqlite")

    def __init__(self, clause: ClauseElement, columns: Sequence[str] = ()) -> None:
        self._clause = clause
        self._columns = list(columns) or None
        self._sqlite = ""

    @property
    def sqlite(self) -> str:
        """The text for SQLite, with ``:name`` parameters."""
        if not self._sqlite:
            self._sqlite = _compile(self._clause, self._columns, SQLITE)
        return self._sqlite


class Insert(Sql):
    """An INSERT whose rows are tuples in the order of ``columns``.

    Binding by place costs half of binding by name, and these are wide.
    """

    __slots__ = ()

    @property
    def sqlite(self) -> str:
        """The text for SQLite, with ``?`` for the columns in their order."""
        if not self._sqlite:
            text = _compile(self._clause, self._columns, SQLITE)
            names = [match[1] for match in BOUND.finditer(text)]
            if names != self._columns:
                raise ValueError(f"columns are not in the table's order: {names}")
            self._sqlite = BOUND.sub("?", text)
        return self._sqlite


def _compile(clause: ClauseElement, columns: list[str] | None, dialect: Dialect) -> str:
    compiled: Any = clause.compile(dialect=dialect, column_keys=columns)
    required = {name for name, bind in compiled.binds.items() if bind.required}
    constants = {
        name: _literal(value)
        for name, value in compiled.construct_params(_check=False).items()
        if name not in required
    }
    return BOUND.sub(lambda m: constants.get(m[1] or m[2], m[0]), str(compiled))


def _literal(value: object) -> str:
    match value:
        case None:
            return "NULL"
        case bool() | int():
            return str(int(value))
        case list() | tuple():  # of column.in_(...)
            return ", ".join(map(_literal, value)) or "SELECT 1 WHERE 1 = 0"
        case bytes():
            return f"X'{value.hex()}'"
        case _:
            return "'" + str(value).replace("'", "''") + "'"


def p(name: str) -> BindParameter[Any]:
    """A parameter that the unit binds under ``name``."""
    return bindparam(name)


class InIds(ColumnElement[bool]):
    """``column IN (the integers bound under name)``: one text for any count.

    SQLite reads them from a JSON array, PostgreSQL from an array parameter.
    Bind the value with ``ids([...])``.
    """

    inherit_cache = False
    type = Boolean()

    def __init__(self, column: ColumnElement[Any], name: str) -> None:
        self.column = column
        self.name = name

    def self_group(self, against: Any = None) -> InIds:
        """Stay as it is: ``(... IN ...) = 1`` would keep SQLite from an index."""
        return self


@compiles(InIds, "sqlite")
def _in_ids_sqlite(element: InIds, compiler: Any, **kwargs: Any) -> str:
    column = compiler.process(element.column, **kwargs)
    return f"{column} IN (SELECT value FROM json_each(:{element.name}))"


@compiles(InIds, "postgresql")
def _in_ids_postgresql(element: InIds, compiler: Any, **kwargs: Any) -> str:
    column = compiler.process(element.column, **kwargs)
    name = compiler.process(bindparam(element.name), **kwargs)
    return f"{column} = ANY ({name})"


class Greater(ColumnElement[int]):
    """The greater of two columns that are never NULL."""

    inherit_cache = False
    type = BigInteger()

    def __init__(self, left: ColumnElement[Any], right: ColumnElement[Any]) -> None:
        self.left = left
        self.right = right


@compiles(Greater, "sqlite")
def _greater_sqlite(element: Greater, compiler: Any, **kwargs: Any) -> str:
    left = compiler.process(element.left, **kwargs)
    return f"max({left}, {compiler.process(element.right, **kwargs)})"


@compiles(Greater)
def _greater(element: Greater, compiler: Any, **kwargs: Any) -> str:
    left = compiler.process(element.left, **kwargs)
    return f"greatest({left}, {compiler.process(element.right, **kwargs)})"


def ids(values: Any) -> bytes:
    """Encode integers for ``InIds``."""
    return orjson.dumps(list(values))


Marked = TypeVar("Marked", bound=Callable[..., Any])
EMPTY: Mapping[str, object] = {}


def inline(work: Marked) -> Marked:
    """Mark a reading unit that is cheap enough to run on the loop (< 1 ms warm)."""
    work.inline = True  # type: ignore[attr-defined] # a mark the engines look for
    return work


def heavy(work: Marked) -> Marked:
    """Mark a writing unit that may touch thousands of rows: it runs in a thread."""
    work.heavy = True  # type: ignore[attr-defined] # a mark the engines look for
    return work
