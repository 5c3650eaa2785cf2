"""A shard in memory or in a file for tests, and messages to put into it."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import TYPE_CHECKING, Any

import zstandard
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from storage.metadata.common_tables import COMMON
from storage.metadata.deliver import add_email, prepare_account
from storage.metadata.sqlite import SqliteTx
from storage.metadata.tables import create_all
from storage.model import Added, AddEmail, BlobRef, Flags, NewAccount, NewEmail

if TYPE_CHECKING:
    from collections.abc import Callable

STORE = bytes(16)
NOW = 1_800_000_000


class Shard:
    """Runs units of work directly, each in a savepoint as the engine does."""

    def __init__(self, *accounts: int) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        make_tables(self.connection)
        self.now = NOW
        self.statements = 0
        for account in accounts or (1,):
            self.run(prepare_account, NewAccount("me@example.org"), account)

    def run(self, work: Callable[..., Any], args: Any = None, account: int = 1) -> Any:
        """Run a unit; what it raises undoes what it did."""
        execute = self.connection.execute
        execute("SAVEPOINT u")
        try:
            result = work(SqliteTx(self.connection, self.now), account, args)
        except BaseException:
            execute("ROLLBACK TO u")
            execute("RELEASE u")
            raise
        execute("RELEASE u")
        return result

    def rows(self, text: str, *args: object) -> list[tuple[Any, ...]]:
        """Run SQL of the test's own."""
        return self.connection.execute(text, args).fetchall()

    def deliver(self, number: int = 1, account: int = 1, **how: Any) -> Added:
        """Add a message; ``how`` as in ``delivery``."""
        return self.run(add_email, delivery(number, **how), account)

    def count_statements(self, work: Callable[[], object]) -> int:
        """Return how many statements ``work`` sends to SQLite."""
        seen: list[str] = []
        self.connection.set_trace_callback(seen.append)
        work()
        self.connection.set_trace_callback(None)
        return sum(not text.startswith(("SAVEPOINT", "RELEASE")) for text in seen)


def make_tables(connection: sqlite3.Connection) -> None:
    """Create the tables and indexes of a shard."""
    engine = create_engine(
        "sqlite://", creator=lambda: connection, poolclass=StaticPool
    )
    with engine.connect() as made:
        COMMON.create_all(made)
        create_all(made)
        made.commit()


def blob_ref(content: bytes) -> BlobRef:
    """Return where a blob with this content might lie."""
    digest = hashlib.sha256(content).digest()
    return BlobRef(digest, STORE, 1, 0, len(content), len(content))


def keys(*numbers: int) -> tuple[bytes, ...]:
    """Return the thread keys of messages with these numbers."""
    return tuple(
        hashlib.blake2b(b"%d" % number, digest_size=12).digest() for number in numbers
    )


def message(number: int, **facts: Any) -> NewEmail:
    """Return the facts of a message, each field overridable."""
    size = facts.pop("size", 1000 + number)
    headers = facts.pop("headers", f"subject: message {number}")
    body = facts.pop("body", f"text of {number}")
    text = f"{headers}\0{body}".encode("utf-8", "surrogateescape")
    values: dict[str, Any] = {
        "blob": blob_ref(b"%d" % number),
        "size": size,
        "header_size": 100,
        "sent_at": NOW - 60,
        "envelope": b'("date" "subject" NIL)',
        "bodystructure": b'("text" "plain" NIL NIL NIL "7bit" 5 1)',
        "list_json": b'{"subject":"message %d"}' % number,
        "part_table": b"parts",
        "thread_keys": keys(number),
        "message_id": f"{number}@example.org",
        "base_subject": "message",
        "sort_from": f"sender {number % 7}",
        "sort_to": "me",
        "has_attachment": number % 3 == 0,
        "search_headers": b"",
        "search_text": zstandard.compress(text),
    }
    return NewEmail(**(values | facts))


def delivery(number: int = 1, **how: Any) -> AddEmail:
    """Return a delivery to the inbox; fields of AddEmail or NewEmail override."""
    names = (
        "received_at",
        "mailboxes",
        "roles",
        "flags",
        "acceptance",
        "recipient",
        "check_quota",
    )
    given = {name: how.pop(name) for name in names if name in how}
    if "mailboxes" not in given:
        given.setdefault("roles", ("inbox",))
    given.setdefault("received_at", NOW + number)
    given.setdefault("flags", Flags())
    return AddEmail(message(number, **how), **given)
