"""No statement of the shard scans a table or sorts without need.

SQLite's planner is asked, with the statistics that a shard is made with.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.dialects import postgresql

from storage.metadata.sql import Sql
from tests.lib.shard import Shard

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = (
    "accounts",
    "blobs",
    "boxes",
    "changes",
    "collect",
    "columns",
    "copies",
    "deliver",
    "edit_sql",
    "epochs",
    "identities",
    "indexed",
    "mailboxes",
    "messages",
    "prune",
    "query",
    "query_filter",
    "query_sort",
    "query_walk",
    "retired",
    "submissions",
    "texts",
    "threads",
)
KNOWN = {  # what may scan or sort, and why
    "blobs.BLOBLESS": "a check looks at every email",
    "blobs.DROP_HOMELESS": "a repair looks at every upload",
    "blobs.DROP_KEPT": "uploads of one day, and only when an account has too many",
    "indexed.BEHIND": "looks at every account, off the loop",
    "messages.FEW_CHANGED": "sorts, by uid, at most some hundred rows",
    "messages.CHANGED": "what changed is told by uid",
    "messages.VIEW": "aggregates its own rows, which the index brings in order",
    "messages.VANISHED": "tombstones are kept by modseq, told by uid",
    "threads.EMAILS": "a handful of emails each",
    "query.THREADS": "counts the threads of all mail, off the loop",
    "query.COUNT": "counts all mail, off the loop",
    "query_walk.THREADS": "the same",
    "query_walk.COUNT": "the same",
    "query_filter.THREAD_FLAGS": "a look at the whole account, off the loop",
    "texts.LAST": "ends at the first row",
}
BIG = "email|email_state|mailbox_email|mailbox_thread|thread_key|blob|blob_owner"
SLOW = re.compile(
    r"SCAN (?!json_each|CONSTANT ROW|new$)|TEMP B-TREE|"
    rf"SEARCH ({BIG}) USING .*\(account_id=\?\)$"
)
BOUND = re.compile(r"(?<!:):(\w+)")


def statements() -> Iterator[tuple[str, Sql]]:
    for module in MODULES:
        for name, value in vars(
            importlib.import_module(f"storage.metadata.{module}")
        ).items():
            yield from named(f"{module}.{name}", value)


def named(name: str, value: Any) -> Iterator[tuple[str, Sql]]:
    if isinstance(value, Sql):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from named(f"{name}[{key}]", part)


STATEMENTS = dict(statements())


@pytest.fixture(scope="module")
def shard():
    return Shard()


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements_use_indexes(shard, name):
    text = STATEMENTS[name].sqlite
    values = dict.fromkeys(BOUND.findall(text), b"[]")
    marks = (b"[]",) * text.count("?")
    plan = shard.connection.execute(f"EXPLAIN QUERY PLAN {text}", values or marks)
    steps = [row[3] for row in plan.fetchall()]
    assert name in KNOWN or not any(map(SLOW.search, steps)), steps


STARTS = {  # where a statement that could begin elsewhere must begin
    "messages.CHANGED": "email_state USING INDEX email_state_modseq",
    "messages.VIEW": "mailbox_email USING PRIMARY KEY (account_id=? AND mailbox_id=?",
    "changes.EMAILS": "email_state USING INDEX email_state_modseq",
    **{
        f"query_walk.WALK[('all', {facts}, {ascending})]": "email_state_date (account"
        for facts in (False, True)
        for ascending in (False, True)
    },
    "blobs.MINE": "email USING INDEX email_hash (hash=? AND account_id=?)",
}


@pytest.mark.parametrize("name", STARTS)
def test_statements_begin_where_little_is(shard, name):
    text = STATEMENTS[name].sqlite
    values = dict.fromkeys(BOUND.findall(text), 1)
    plan = shard.connection.execute(f"EXPLAIN QUERY PLAN {text}", values)
    steps = [row[3] for row in plan.fetchall()]
    searches = [step for step in steps if step.startswith("SEARCH")]
    assert STARTS[name] in searches[0], steps


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements_are_postgresql_too(name):
    clause = STATEMENTS[name]._clause
    text = str(clause.compile(dialect=postgresql.dialect()))
    assert text
