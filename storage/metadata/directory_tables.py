"""Tables of the directory database (DESIGN section 4): who exists, and where.

Domain names are A-labels in lower case; local parts are case-folded and NFC.
Account ids are never used again (AUTOINCREMENT; removed accounts leave their row).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    text,
)

from storage.metadata.column_types import Text

DIRECTORY = MetaData()

STATE = Table(
    "directory_state",
    DIRECTORY,
    Column("id", Integer, primary_key=True),
    Column("version", BigInteger, nullable=False),  # grows with every change
)

DOMAIN = Table(
    "domain",
    DIRECTORY,
    Column("domain_id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("postmaster", Text, nullable=False),  # "" or who gets postmaster@, abuse@
    Column("created", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

ACCOUNT = Table(
    "account",
    DIRECTORY,
    Column("account_id", Integer, primary_key=True),
    Column("address", Text, nullable=False),  # the primary one
    Column("name", Text, nullable=False),
    Column("shard", LargeBinary, nullable=False),  # UUID inside the shard's database
    Column("state", Text, nullable=False),  # creating active disabled deleted purged
    Column("admin", Integer, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),  # of its last change
    Index("account_version", "version"),
    Index(
        "account_admin",
        "admin",
        sqlite_where=text("admin = 1"),
        postgresql_where=text("admin = 1"),
    ),
    sqlite_autoincrement=True,
)

ADDRESS = Table(
    "address",
    DIRECTORY,
    Column("domain_id", Integer, primary_key=True),
    Column("local", Text, primary_key=True),
    Column("account_id", Integer, nullable=True),  # NULL: an alias
    Column("created", BigInteger, nullable=False),
    Index("address_account", "account_id"),
    Index("address_domain_account", "domain_id", "account_id"),
    sqlite_with_rowid=False,
)

ALIAS_TARGET = Table(
    "alias_target",
    DIRECTORY,
    Column("domain_id", Integer, primary_key=True),
    Column("local", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("target", Text, nullable=False),  # canonical address, local or not
    Column("send_as", Integer, nullable=False),  # a local target may send as the alias
    Index("alias_target_target", "target"),
    sqlite_with_rowid=False,
)

CREDENTIAL = Table(
    "credential",
    DIRECTORY,
    Column("credential_id", Integer, primary_key=True),
    Column("account_id", Integer, nullable=False),
    Column("kind", Text, nullable=False),  # password app-password
    Column("name", Text, nullable=False),  # of an app password
    Column("hash", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
    Index("credential_account", "account_id", "kind", "name", unique=True),
    sqlite_autoincrement=True,
)

DKIM_KEY = Table(
    "dkim_key",
    DIRECTORY,
    Column("domain_id", Integer, primary_key=True),
    Column("selector", Text, primary_key=True),
    Column("algorithm", Text, nullable=False),  # rsa ed25519
    Column("pem", Text, nullable=False),
    Column("txt", Text, nullable=False),  # the record to publish
    Column("state", Text, nullable=False),  # active retired
    Column("created", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

SHARD = Table(  # databases that may stand behind ``account.shard``
    "shard",
    DIRECTORY,
    Column("uuid", LargeBinary, primary_key=True),
    Column("name", Text, nullable=False),  # where the configuration had it last, or ""
    Column("added", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
