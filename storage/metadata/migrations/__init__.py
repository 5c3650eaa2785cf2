"""Alembic's revisions, one history per kind of database; no alembic.ini is needed.

Revision ``0002`` brings schema version 1 to 2.  Each file says with ``needs`` the
oldest schema version that a program must know to work on the result: expand first
(``needs`` stays), contract a release later (``needs`` grows).
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import update

from storage.metadata.meta import META_TABLE

if TYPE_CHECKING:
    from sqlalchemy import Connection

HERE = pathlib.Path(__file__).parent


def config(kind: str) -> Config:
    """Return Alembic's configuration for one kind of database."""
    found = Config()
    for name, value in (
        ("script_location", HERE),
        ("version_locations", HERE / kind),
        ("path_separator", "newline"),
    ):
        found.set_main_option(name, str(value).replace("%", "%%"))
    return found


def head(kind: str) -> tuple[str, int]:
    """Return the newest revision of a kind and what it needs."""
    scripts = ScriptDirectory.from_config(config(kind))
    revision = scripts.get_current_head()
    if revision is None:
        raise LookupError(f"no revisions of {kind}")
    script = scripts.get_revision(revision)
    needs: int = script.module.needs
    return revision, needs


def upgrade(connection: Connection, kind: str) -> None:
    """Run the revisions that a database lacks, inside the open transaction."""
    revision, needs = head(kind)
    settings = config(kind)
    settings.attributes["connection"] = connection
    command.upgrade(settings, revision)
    connection.execute(
        update(META_TABLE).values(schema_version=int(revision), needs_version=needs)
    )
