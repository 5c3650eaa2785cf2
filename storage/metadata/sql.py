"""Statements: written in SQLAlchemy Core, compiled once, handed to the driver.

Measured per delivery (DESIGN decision 8): raw driver 39 us, Core compiled once 45,
Core built and compiled per call 1,035.  So every statement is a module-level
constant and a unit of work only binds parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import BindParameter, ColumnElement, bindparam
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import Boolean

if TYPE_CHECKING:
    from sqlalchemy.sql.elements import ClauseElement

SQLITE = sqlite.dialect(paramstyle="named")


class Sql:
    """A statement that knows its text in each dialect, compiled on first use."""

    __slots__ = ("_clause", "_sqlite")

    def __init__(self, clause: ClauseElement) -> None:
        self._clause = clause
        self._sqlite = ""

    @property
    def sqlite(self) -> str:
        """The text for SQLite, with ``:name`` parameters."""
        if not self._sqlite:
            self._sqlite = str(
                self._clause.compile(
                    dialect=SQLITE,
                    compile_kwargs={"literal_binds": False},
                )
            )
        return self._sqlite


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


@compiles(InIds, "sqlite")
def _in_ids_sqlite(element: InIds, compiler: Any, **kwargs: Any) -> str:
    column = compiler.process(element.column, **kwargs)
    return f"{column} IN (SELECT value FROM json_each(:{element.name}))"


@compiles(InIds, "postgresql")
def _in_ids_postgresql(element: InIds, compiler: Any, **kwargs: Any) -> str:
    column = compiler.process(element.column, **kwargs)
    name = compiler.process(bindparam(element.name), **kwargs)
    return f"{column} = ANY ({name})"


def ids(values: Any) -> bytes:
    """Encode integers for ``InIds``."""
    return orjson.dumps(list(values))


Marked = Callable[..., Any]
EMPTY: Mapping[str, object] = {}


def inline(work: Marked) -> Marked:
    """Mark a reading unit that is cheap enough to run on the loop (< 1 ms warm)."""
    work.inline = True  # type: ignore[attr-defined] # a mark the engines look for
    return work


def heavy(work: Marked) -> Marked:
    """Mark a writing unit that may touch thousands of rows: it runs in a thread."""
    work.heavy = True  # type: ignore[attr-defined] # a mark the engines look for
    return work
