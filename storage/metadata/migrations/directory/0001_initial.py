"""The first schema of the directory database."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from storage.metadata.column_types import Text

revision = "0001"
down_revision = None
needs = 1


def upgrade() -> None:
    """Make every table."""
    _account()
    _address()
    _alias_target()
    _credential()
    _directory_state()
    _dkim_key()
    _domain()


def _account() -> None:
    op.create_table(
        "account",
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("address", Text, nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("shard", sa.LargeBinary(), nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("admin", sa.Integer(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "account_admin",
        "account",
        ["admin"],
        sqlite_where=sa.text("admin = 1"),
        postgresql_where=sa.text("admin = 1"),
    )
    op.create_index("account_version", "account", ["version"])


def _address() -> None:
    op.create_table(
        "address",
        sa.Column("domain_id", sa.Integer(), nullable=False),
        sa.Column("local", Text, nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=True),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("domain_id", "local"),
        sqlite_with_rowid=False,
    )
    op.create_index("address_account", "address", ["account_id"])
    op.create_index("address_domain_account", "address", ["domain_id", "account_id"])


def _alias_target() -> None:
    op.create_table(
        "alias_target",
        sa.Column("domain_id", sa.Integer(), nullable=False),
        sa.Column("local", Text, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("target", Text, nullable=False),
        sa.Column("send_as", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("domain_id", "local", "position"),
        sqlite_with_rowid=False,
    )
    op.create_index("alias_target_target", "alias_target", ["target"])


def _credential() -> None:
    op.create_table(
        "credential",
        sa.Column("credential_id", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("kind", Text, nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("hash", Text, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("credential_id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "credential_account", "credential", ["account_id", "kind", "name"], unique=True
    )


def _directory_state() -> None:
    op.create_table(
        "directory_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def _dkim_key() -> None:
    op.create_table(
        "dkim_key",
        sa.Column("domain_id", sa.Integer(), nullable=False),
        sa.Column("selector", Text, nullable=False),
        sa.Column("algorithm", Text, nullable=False),
        sa.Column("pem", Text, nullable=False),
        sa.Column("txt", Text, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("domain_id", "selector"),
        sqlite_with_rowid=False,
    )


def _domain() -> None:
    op.create_table(
        "domain",
        sa.Column("domain_id", sa.Integer(), nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("postmaster", Text, nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("domain_id"),
        sa.UniqueConstraint("name"),
        sqlite_autoincrement=True,
    )
