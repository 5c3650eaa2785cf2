"""Units of work for tests of the PostgreSQL engine, on a table of numbers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, Table, text

from mailserverd.core.errors import Kind, MailError
from storage.metadata.column_types import Text
from storage.metadata.sql import Sql, heavy, inline, p, several, total

TABLES = MetaData()
NUMBER = Table(
    "number",
    TABLES,
    Column("n", BigInteger, primary_key=True, autoincrement=False),
    Column("account", BigInteger, nullable=False),
    Column("word", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
TABLE = (
    "CREATE TABLE number (n bigint PRIMARY KEY, account bigint NOT NULL, "
    'word text COLLATE "C" NOT NULL, body bytea NOT NULL)',
    "ALTER TABLE number OWNER TO mail",
)
SETUP = (
    *TABLE,
    "CREATE FUNCTION fail(code text) RETURNS bigint LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'as asked' USING ERRCODE = code; END $$",
    "CREATE SEQUENCE tries",
    "GRANT ALL ON SEQUENCE tries TO mail",
    "CREATE FUNCTION fail_once(code text) RETURNS bigint LANGUAGE plpgsql AS "
    "$$ BEGIN IF nextval('tries') = 1 THEN "
    "RAISE EXCEPTION 'once' USING ERRCODE = code; END IF; RETURN 1; END $$",
)
ADD = Sql(NUMBER.insert(), ("n", "account", "word", "body"))
ALL = Sql(NUMBER.select().order_by(NUMBER.c.n))
WORDS = Sql(NUMBER.select().order_by(NUMBER.c.word))
SUM = Sql(NUMBER.select().with_only_columns(total(NUMBER.c.n)))
OF = Sql(NUMBER.select().where(NUMBER.c.account == p("a")).order_by(NUMBER.c.n))
FAIL = Sql(text("SELECT fail(:code)"))
FAIL_ONCE = Sql(text("SELECT fail_once(:code)"))
SLEEP = Sql(text("SELECT 1 FROM pg_sleep(:seconds)"))


def add(tx: Any, account: int, n: int) -> int:
    """Add a number."""
    return add_word(tx, account, (n, "")) and n


def add_word(tx: Any, account: int, args: tuple[int, str]) -> bool:
    """Add a number with a word."""
    n, word = args
    row = {"n": n, "account": account, "word": word, "body": b"\0"}
    return tx.run(ADD, row) == 1


def add_and_count(tx: Any, account: int, n: int) -> int:
    """Add a number; return how many the account has: its units see one another."""
    add(tx, account, n)
    return len(tx.all(OF, {"a": account}))


def add_then_raise(tx: Any, account: int, args: tuple[int, Any]) -> None:
    """Add a number, then raise."""
    add(tx, account, args[0])
    error: BaseException = args[1]
    raise error


def add_then_refuse(tx: Any, account: int, n: int) -> None:
    """Add a number, then refuse, always."""
    add(tx, account, n)
    raise MailError(Kind.OVER_QUOTA)


def refuse(_tx: Any, _account: int, _args: None) -> None:
    """Refuse before anything was written."""
    raise MailError(Kind.NOT_FOUND)


def add_then_fail(tx: Any, account: int, args: tuple[int, str]) -> None:
    """Add a number, then meet an error of the server."""
    add(tx, account, args[0])
    tx.one(FAIL, {"code": args[1]})


def add_then_fail_once(tx: Any, account: int, args: tuple[int, str]) -> int:
    """Add a number, and meet an error of the server the first time."""
    add(tx, account, args[0])
    tx.one(FAIL_ONCE, {"code": args[1]})
    return args[0]


def add_slowly(tx: Any, account: int, args: tuple[int, float]) -> int:
    """Add a number after some seconds."""
    tx.one(SLEEP, {"seconds": args[1]})
    return add(tx, account, args[0])


@heavy
def add_heavily(tx: Any, account: int, n: int) -> int:
    """Add a number in the thread of heavy units."""
    return add(tx, account, n)


@several
def add_for_all(tx: Any, _account: int, accounts: list[int]) -> list[int]:
    """Add a number to each account; return how many each then has."""
    return [add_and_count(tx, account, 1000 * account) for account in accounts]


@inline
def numbers(tx: Any, _account: int, _args: None) -> list[int]:
    """Return all numbers: one statement."""
    return [row[0] for row in tx.all(ALL)]


def numbers_in_thread(tx: Any, _account: int, _args: None) -> list[int]:
    """Do as ``numbers``, off the loop."""
    return [row[0] for row in tx.all(ALL)]


@inline
def numbers_twice(tx: Any, _account: int, _args: None) -> bool:
    """Return whether two statements saw the same."""
    return bool(tx.all(ALL) == tx.all(ALL))


@inline
def numbers_and_words(tx: Any, _account: int, _args: None) -> list[list[Any]]:
    """Return the same rows in two orders, and those of no account."""
    numbers_, words, none = tx.each((ALL, {}), (WORDS, {}), (OF, {"a": -1}))
    return [[row[0] for row in numbers_], [row[2] for row in words], none]


def words(tx: Any, _account: int, _args: None) -> list[str]:
    """Return all words in their order."""
    return [row[2] for row in tx.all(WORDS)]


def summed(tx: Any, _account: int, _args: None) -> Any:
    """Return the sum of all numbers."""
    return tx.one(SUM)[0]


def wait(tx: Any, _account: int, seconds: float) -> int:
    """Take some seconds in the server."""
    return len(tx.all(SLEEP, {"seconds": seconds}))
