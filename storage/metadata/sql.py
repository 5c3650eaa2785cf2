"""Statements: written in SQLAlchemy Core, compiled once, handed to the driver.

Measured per delivery (DESIGN decision 8): raw driver 39 us, Core compiled once 45,
Core built and compiled per call 1,035.  So every statement is a module-level
constant and a unit of work only binds parameters.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import orjson
from sqlalchemy import BindParameter, ColumnElement, bindparam, cast, func
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import BigInteger, Boolean

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.sql.elements import ClauseElement

SQLITE = sqlite.dialect(paramstyle="named")
BOUND = re.compile(r"(?<!:):(\w+)|__\[POSTCOMPILE_(\w+)\]")
ARRAY = re.compile(r"(?<!:):(\w+)::\w+\[\]")


class PgSql(NamedTuple):
    """A statement for PostgreSQL: ``$1`` stands for the first of ``names``.

    ``arrays`` are the names that ``InIds`` binds; ``values`` takes parameters by
    name and returns them by place.
    """

    text: str
    names: tuple[str, ...]
    arrays: frozenset[str]
    returns: bool  # rows
    writes: bool
    values: Callable[[Any], tuple[Any, ...]]


class Sql:
    """A statement that knows its text in each dialect, compiled on first use.

    ``columns`` limits what an INSERT or UPDATE without ``values()`` sets: each
    is bound under its own name.  Constants inside the clause (``c.n + 1``,
    ``c.state == "queued"``) are rendered into the text.
    """

    __slots__ = ("_clause", "_columns", "_postgresql", "_sqlite")

    def __init__(self, clause: ClauseElement, columns: Sequence[str] = ()) -> None:
        self._clause = clause
        self._columns = list(columns) or None
        self._sqlite = ""
        self._postgresql: PgSql | None = None

    @property
    def sqlite(self) -> str:
        """The text for SQLite, with ``:name`` parameters."""
        if not self._sqlite:
            self._sqlite = _compile(self._clause, self._columns, SQLITE)
        return self._sqlite

    @property
    def postgresql(self) -> PgSql:
        """The text for PostgreSQL, with ``$1`` parameters and their types."""
        if self._postgresql is None:
            self._postgresql = _numbered(self._clause, self._columns)
        return self._postgresql


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

    @property
    def postgresql(self) -> PgSql:
        """The text for PostgreSQL, with ``$1`` for the first column."""
        if self._postgresql is None:
            found = _numbered(self._clause, self._columns)
            if list(found.names) != self._columns:
                raise ValueError(f"columns are not in the table's order: {found.names}")
            self._postgresql = found
        return self._postgresql


def _compile(clause: ClauseElement, columns: list[str] | None, dialect: Dialect) -> str:
    compiled: Any = clause.compile(dialect=dialect, column_keys=columns)
    required = {name for name, bind in compiled.binds.items() if bind.required}
    constants = {
        name: _literal(value, dialect.name)
        for name, value in compiled.construct_params(_check=False).items()
        if name not in required
    }
    return BOUND.sub(lambda m: constants.get(m[1] or m[2], m[0]), str(compiled))


@functools.cache
def _postgresql() -> Dialect:
    """Return the dialect that writes the type of each parameter: ``:n::BIGINT``."""
    from sqlalchemy.dialects.postgresql import asyncpg  # noqa: PLC0415 - if used at all

    make: Any = asyncpg.dialect
    dialect: Dialect = make(paramstyle="named")
    return dialect


def _numbered(clause: ClauseElement, columns: list[str] | None) -> PgSql:
    text = _compile(clause, columns, _postgresql())
    numbers: dict[str, str] = {}
    for match in BOUND.finditer(text):
        numbers.setdefault(match[1], f"${len(numbers) + 1}")
    names = tuple(numbers)
    arrays = frozenset(match[1] for match in ARRAY.finditer(text))
    writes = bool(getattr(clause, "is_dml", False))
    returns = not writes or bool(getattr(clause, "_returning", ()))
    numbered = BOUND.sub(lambda match: numbers[match[1]], text)
    return PgSql(numbered, names, arrays, returns, writes, _by_place(names, arrays))


def _by_place(
    names: tuple[str, ...], arrays: frozenset[str]
) -> Callable[[Any], tuple[Any, ...]]:
    """Return what turns parameters by name into a tuple."""
    if arrays:
        return lambda params: tuple(
            orjson.loads(params[name]) if name in arrays else params[name]
            for name in names
        )
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda params: tuple(params[name] for name in names)


def _literal(value: object, dialect: str) -> str:
    match value:
        case None:
            return "NULL"
        case bool() | int():
            return str(int(value))
        case list() | tuple():  # of column.in_(...)
            each = (_literal(one, dialect) for one in value)
            return ", ".join(each) or "SELECT 1 WHERE 1 = 0"
        case bytes():
            return f"X'{value.hex()}'" if dialect == "sqlite" else f"'\\x{value.hex()}'"
        case _:
            return "'" + str(value).replace("'", "''") + "'"


def p(name: str) -> BindParameter[Any]:
    """A parameter that the unit binds under ``name``."""
    return bindparam(name)


def total(value: Any) -> ColumnElement[int]:
    """The sum of a column, 0 of no rows: PostgreSQL's own would be a Decimal."""
    return cast(func.coalesce(func.sum(value), 0), BigInteger)


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
    kind = compiler.dialect.type_compiler_instance.process(element.column.type)
    kind = kind.partition(" ")[0]  # without a collation
    return f"{column} = ANY (:{element.name}::{kind}[])"


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


def several(work: Marked) -> Marked:
    """Mark a writing unit that touches other accounts than its own.

    An engine that lets the units of a batch advance side by side lets nothing
    advance beside it; the same holds for units of account 0.
    """
    work.several = True  # type: ignore[attr-defined] # a mark the engines look for
    return work
