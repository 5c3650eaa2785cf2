"""Types of columns that engines spell in their own ways, for tables and migrations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, Integer
from sqlalchemy import Text as _Text
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine


Text: TypeEngine[str] = _Text().with_variant(
    postgresql.TEXT(collation="C"), "postgresql"
)
"""A text that compares and sorts by its code points, whatever the database's
collation."""

RowId: TypeEngine[int] = Integer().with_variant(BigInteger(), "postgresql")
"""An integer key: SQLite's rowid, which holds 64 bits."""
