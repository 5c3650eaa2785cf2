"""${message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
needs = 1


def upgrade() -> None:
    """Say what changes, and why the previous release still works."""
    ${upgrades if upgrades else "pass"}
