"""Search: index and tail together, without an index, headers, IMAP substrings."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Access
from mailserverd.services import search as service
from mailserverd.services.indexer import Indexer
from mailserverd.services.search import Search
from storage.model import Condition, EmailQuery, Operator
from tests.lib.mailhost import offload
from tests.lib.memory_index import MemoryIndex
from tests.lib.office import ME, OTHER, mail, office
from tests.lib.search_engines import ENGINES

MAILS = (
    mail("The quick fox", "brown and lazy", Message_ID="<fox@example.org>"),
    mail("Re: dogs", "a fox jumps over", X_Mailer="Fancy =?utf-8?q?Gr=C3=BC=C3=9Fe?="),
    mail("=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "nothing here", Cc="carol@example.net"),
    mail("plain", "Fuchsbau"),
)


async def accounts():
    return (1, 2)


@contextlib.asynccontextmanager
async def searching(tmp_path, index=None):
    """Yield the office, a search over four emails, and an indexer, nothing indexed."""
    index = index or MemoryIndex()
    async with office(tmp_path) as it:
        search = Search(it.store, index, it.messages, offload)
        indexer = Indexer(it.store, index, [it.database], it.clock)
        for raw in MAILS:
            await it.add(raw)
        yield it, search, indexer


async def find(it, search, tree):
    """Return the ids of emails that match a filter with text conditions."""
    resolved = await search.resolve(ME, tree)
    result = await it.messages.query(ME, EmailQuery(resolved))
    return sorted(result.ids)


def text(op, value):
    return Condition(op, value)


def tree(op, *parts):
    return Operator(op, parts)


QUERIES = (
    (text("text", "fox"), [1, 2]),
    (text("text", "FOX"), [1, 2]),
    (text("text", "fo"), []),
    (text("text", "fo*"), [1, 2]),
    (text("subject", "fox"), [1]),
    (text("body", "fox"), [2]),
    (text("body", '"fox jumps"'), [2]),
    (text("body", '"jumps fox"'), []),
    (text("subject", "grüsse"), [3]),
    (text("from", "ann"), [1, 2, 3, 4]),
    (text("cc", "carol"), [3]),
    (text("to", "carol"), []),
    (tree("AND", text("text", "fox"), text("body", "lazy")), [1]),
    (tree("OR", text("subject", "dogs"), text("body", "lazy")), [1, 2]),
    (tree("NOT", text("text", "fox")), [3, 4]),
    (tree("NOT", text("text", "fox"), Condition("has_keyword", "$seen")), [3, 4]),
    (tree("AND", text("text", "fox"), Condition("in_mailbox", 1)), [1, 2]),
    (tree("AND", text("text", "fox"), Condition("in_mailbox", 2)), []),
    (tree("OR", text("text", "fox"), Condition("in_mailbox", 2)), [1, 2]),
    (tree("AND", tree("NOT", text("text", "fox")), text("from", "ann")), [3, 4]),
    (tree("AND", Condition("not_keyword", "$seen"), tree("OR")), []),
    (text("header", ("X-Mailer",)), [2]),
    (text("header", ("x-mailer", "grüße")), [2]),
    (text("header", ("Message-ID", "FOX@")), [1]),
    (tree("NOT", text("header", ("X-Mailer",))), [1, 3, 4]),
    (tree("AND", text("header", ("Subject", "o")), text("text", "fox")), [1, 2]),
    (tree("AND", text("header", ("Subject", "q")), Condition("in_mailbox", 2)), []),
)


@pytest.mark.parametrize("indexed", [0, 2, 4])
def test_answers_do_not_depend_on_how_far_the_index_is(tmp_path, indexed):
    async def run():
        index = MemoryIndex()
        async with office(tmp_path) as it:
            search = Search(it.store, index, it.messages, offload)
            indexer = Indexer(it.store, index, [it.database], it.clock)
            for number, raw in enumerate(MAILS):
                if number == indexed:
                    await indexer.flush(1)
                await it.add(raw)
            assert len(index.kept.get(1, ())) == indexed % len(MAILS)
            if indexed == len(MAILS):
                await indexer.flush(1)
            for asked, expected in QUERIES:
                assert await find(it, search, asked) == expected, asked

    asyncio.run(run())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_on_real_engines(tmp_path, engine):
    async def run():
        async with (
            ENGINES[engine](tmp_path / "search") as index,
            searching(tmp_path, index) as (it, search, indexer),
        ):
            await indexer.flush(1)
            await it.add(mail("late fox"))
            for asked, expected in QUERIES[:16]:
                found = await find(it, search, asked)
                assert [key for key in found if key != 5] == expected, asked
            assert await find(it, search, text("subject", "late")) == [5]

    asyncio.run(run())


@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.INTERNAL, Kind.LIMIT])
def test_without_an_index_everything_is_looked_at(tmp_path, kind):
    async def run():
        index = MemoryIndex()
        async with searching(tmp_path, index) as (it, search, indexer):
            await indexer.flush(1)
            index.fails = MailError(kind)
            for asked, expected in QUERIES:
                assert await find(it, search, asked) == expected, asked

    asyncio.run(run())


def test_a_query_that_is_too_complex_is_refused(tmp_path):
    async def run():
        index = MemoryIndex()
        async with searching(tmp_path, index) as (_, search, _indexer):
            index.fails = MailError(Kind.INVALID, "too complex")
            with pytest.raises(MailError) as caught:
                await search.resolve(ME, text("text", "fox"))
            assert caught.value.kind is Kind.INVALID

    asyncio.run(run())


def test_an_index_from_another_life_is_not_believed(tmp_path):
    """A restored account has fewer changes than its index has seen."""

    async def run():
        index = MemoryIndex()
        async with searching(tmp_path, index) as (it, search, indexer):
            index.marks[1] = 1000
            index.kept[1] = {}
            assert await find(it, search, text("text", "fox")) == [1, 2]
            await indexer.flush(1)
            assert len(index.kept[1]) == 4
            assert index.marks[1] < 1000

    asyncio.run(run())


def test_destroyed_emails_are_not_found(tmp_path):
    async def run():
        index = MemoryIndex()
        async with searching(tmp_path, index) as (it, search, indexer):
            await indexer.flush(1)
            await it.messages.destroy(ME, [1])
            assert await find(it, search, text("text", "fox")) == [2]
            await indexer.flush(1)
            assert sorted(index.kept[1]) == [2, 3, 4]

    asyncio.run(run())


def test_header_search_has_a_bound_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "MAX_HEADER_SCAN", 3)

    async def run():
        async with searching(tmp_path) as (_, search, _indexer):
            with pytest.raises(MailError) as caught:
                await search.resolve(ME, text("header", ("X-Mailer",)))
            assert caught.value.kind is Kind.UNSUPPORTED

    asyncio.run(run())


# --- IMAP ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "needle", "expected"),
    [
        ("text", "FOX", {1, 2}),
        ("text", "ox j", {2}),
        ("text", "uchsb", {4}),
        ("text", "grüß", {2, 3}),
        ("text", "fox@example", {1}),
        ("text", "", {1, 2, 3, 4}),
        ("body", "fox", {2}),
        ("body", "subject", set()),
        ("subject", "RE: D", {2}),
        ("subject", "GRÜSSE", {3}),
        ("from", "ann@exam", {1, 2, 3, 4}),
        ("cc", "example.net", {3}),
        ("bcc", "ann", set()),
        ("header:x-mailer", "", {2}),
        ("header:X-MAILER", "fancy grüße", {2}),
        ("header:Nothing", "", set()),
        ("header:Message-Id", "<fox@example.org>", {1}),
    ],
)
def test_substrings(tmp_path, field, needle, expected):
    async def run():
        async with searching(tmp_path) as (_, search, _indexer):
            ids = [1, 2, 3, 4, 99]
            found = await search.imap_substring(ME, ids, field, needle)
            assert found - {99} == expected

    asyncio.run(run())


def test_substrings_look_only_where_they_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "ROWS", 2)
    monkeypatch.setattr(service, "BLOCKS", 2)

    async def run():
        async with searching(tmp_path) as (_, search, _indexer):
            assert await search.imap_substring(ME, [2, 3, 4], "text", "fox") == {2}
            assert await search.imap_substring(OTHER, [1, 2], "text", "fox") == set()
            for call in (
                search.imap_substring(Access(2, 1), [1], "text", "fox"),
                search.resolve(Access(2, 1), text("text", "fox")),
            ):
                with pytest.raises(MailError) as caught:
                    await call
                assert caught.value.kind is Kind.FORBIDDEN

    asyncio.run(run())


def test_headers_without_end_do_not_hold_up_others(tmp_path):
    """Whoever sends them: only their start is looked at, and off the loop."""

    async def run():
        late = 0.0

        async def ticks():
            nonlocal late
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                late = max(late, time.monotonic() - before - 0.01)

        async with searching(tmp_path) as (it, search, _):
            for _ in range(2):
                await it.add(b"From: a@b\r\n" + b"A: b\r\n" * 500_000 + b"\r\nx\r\n")
            other = asyncio.create_task(ticks())
            try:
                for tree_ in (
                    text("header", ("A", "z")),
                    text("header", ("From", "a")),
                ):
                    found = await find(it, search, tree_)
            finally:
                other.cancel()
            assert {5, 6} <= set(found)
            assert late < 0.5, late

    asyncio.run(run())
