"""What PostgreSQL and its driver report, in the vocabulary of the daemon."""

from __future__ import annotations

import asyncio
import ssl

import asyncpg

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger

log = get_logger("storage")

DRIVER = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    asyncio.TimeoutError,
)
"""What the driver raises."""
FULL = ("53100", "53200")  # disk_full, out_of_memory
AGAIN = ("40001", "40P01")  # serialization_failure, deadlock_detected
TEMPORARY = (
    "08",  # connection
    "25006",  # read_only_sql_transaction: this is no longer the primary
    "28",  # authorization
    "3D",  # unknown database
    "40",  # rolled back
    "53",  # insufficient resources
    "55P03",  # lock_not_available
    "57",  # cancelled, shut down, starting up
    "58",  # system error (input/output)
    "XX001",  # data_corrupted
    "XX002",  # index_corrupted
)
GONE = ("08", "57P01", "57P02", "57P03", "25P03")
"""After these the connection is no more, or there is none yet."""


def code_of(error: BaseException) -> str:
    """Return the SQLSTATE; empty for what the server did not say."""
    if isinstance(error, asyncpg.PostgresError):
        return getattr(error, "sqlstate", None) or ""
    return ""


def is_lost(error: BaseException) -> bool:
    """Whether the connection went, so that the transaction under way is over."""
    if isinstance(error, asyncpg.PostgresError):
        return code_of(error).startswith(GONE)
    return isinstance(error, DRIVER)


def is_temporary(error: BaseException) -> bool:
    """Whether it is the server's state, and no mistake of ours."""
    return is_lost(error) or code_of(error).startswith(TEMPORARY)


def is_conflict(error: BaseException) -> bool:
    """Whether the same transaction may succeed at once."""
    stale = isinstance(error, asyncpg.InvalidCachedStatementError)  # now forgotten
    return stale or code_of(error) in AGAIN


def translate(error: BaseException, name: str, *, told: bool = False) -> MailError:
    """Turn a driver error into what callers may see; the cause goes to the log, unless
    it was ``told`` there.

    STORAGE_FULL, UNAVAILABLE, INVALID (a text holds a NUL), or INTERNAL for a mistake
    of ours (constraint, SQL).
    """
    code = code_of(error)
    if not told:
        log.error("database-error", database=name, code=code, error=describe(error))
    if code in FULL:
        return MailError(Kind.STORAGE_FULL, "storage is full")
    if is_temporary(error):
        return MailError(Kind.UNAVAILABLE, "storage is temporarily unavailable")
    if code == "22021":  # character_not_in_repertoire
        return MailError(Kind.INVALID, "a text holds a character that is not one")
    return MailError(Kind.INTERNAL)


def describe(error: BaseException) -> str:
    """Return one line about an error; the driver's texts name no password."""
    return str(error).partition("\n")[0] or type(error).__name__


def cannot_open(error: BaseException, where: str) -> MailError:
    """Return UNAVAILABLE, saying what to do, for a connection that failed."""
    code = code_of(error)
    if code.startswith("28"):
        hint = "the server refuses the user or the password of the URL"
    elif code.startswith("3D"):
        hint = "there is no such database; make it with: createdb --encoding=UTF8"
    elif code.startswith("53300"):
        hint = "the server has no connection left; raise max_connections"
    elif code == "42501":  # insufficient_privilege
        hint = "make the user of the URL the owner: ALTER DATABASE ... OWNER TO ..."
    elif isinstance(error, ssl.SSLError):
        hint = "check sslmode and sslrootcert of the URL"
    elif isinstance(error, FileNotFoundError | PermissionError):
        hint = "is PostgreSQL running there? are the paths in the URL right?"
    elif isinstance(error, ValueError | asyncpg.InterfaceError):
        hint = "check the URL"
    elif code:
        hint = "see the server's log"
    else:
        hint = "is PostgreSQL running there?"
    failure = MailError(Kind.UNAVAILABLE, f"{where}: {describe(error)}; {hint}")
    failure.__cause__ = error
    return failure
