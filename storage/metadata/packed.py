"""Whole columns of a result in one row.

Thousands of rows made one by one cost a microsecond each, and as many returns from the
database's code to Python, each of which waits for the loop's thread.  An aggregate
makes one value of a column inside the database, which is then taken apart at once.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import LargeBinary

if TYPE_CHECKING:
    from collections.abc import Sequence


class Packed(ColumnElement[Any]):
    """All values of a column of an ordered subquery; see ``unpacked``.

    A JSON array in SQLite, an array in PostgreSQL.
    """

    inherit_cache = False
    type = LargeBinary()

    def __init__(self, column: ColumnElement[Any]) -> None:
        self.column = column


@compiles(Packed, "sqlite")
def _packed_sqlite(element: Packed, compiler: Any, **kwargs: Any) -> str:
    return f"json_group_array({compiler.process(element.column, **kwargs)})"


@compiles(Packed, "postgresql")
def _packed_postgresql(element: Packed, compiler: Any, **kwargs: Any) -> str:
    return f"array_agg({compiler.process(element.column, **kwargs)})"


def unpacked(value: Any) -> Sequence[Any]:
    """Return the values that ``Packed`` made one of."""
    if value is None:
        return ()
    found: Sequence[Any] = orjson.loads(value) if isinstance(value, str) else value
    return found


def numbers(typecode: str, value: Any) -> array[int]:
    """Return the integers that ``Packed`` made one of, as an array."""
    return array(typecode, unpacked(value))
