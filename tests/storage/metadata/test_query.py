"""Email/query against a naive filter and sort in Python."""

from __future__ import annotations

import dataclasses
import random
from array import array

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.metadata import flags, query, query_walk
from storage.model import (
    Condition,
    EmailQuery,
    FlagChange,
    Flags,
    Operator,
    Sort,
    StoreFlags,
)
from tests.lib import mail_model
from tests.lib.shard import NOW, Shard, keys

WORDS = {"$seen": 1, "$answered": 2, "$flagged": 4, "$draft": 8}
INBOX_BY_DATE = EmailQuery(Condition("in_mailbox", 1), limit=5, total=True)


@pytest.fixture(scope="module")
def filled():
    """A shard of 120 emails, and their facts as the test knows them."""
    rng = random.Random(5)
    shard = Shard()
    facts = {}
    for number in range(1, 121):
        system = rng.choice((0, 0, 1, 1, 5, 9))
        words = tuple(rng.sample(("$junk", "work"), rng.randint(0, 1)))
        received = NOW + rng.randint(0, 40)
        sent = rng.choice((None, NOW - rng.randint(0, 50)))
        where = tuple(rng.sample(range(1, 5), rng.choice((1, 1, 2))))
        other = rng.randint(1, number)
        joins = keys(number, other) if rng.random() < 0.3 else keys(number)
        added = shard.deliver(
            number,
            mailboxes=where,
            flags=Flags(system, words),
            received_at=received,
            sent_at=sent,
            size=rng.randint(100, 110),
            thread_keys=joins,
            base_subject=f"subject {number % 9}",
        )
        facts[added.email_id] = {
            "thread": added.thread_id,
            "received": received,
            "sent": sent,
            "size": 0,
            "number": number,
        }
    marked = array("I", rng.sample(range(1, 30), 6))
    shard.run(
        flags.store_flags, StoreFlags(1, marked, FlagChange.ADD, Flags(), deleted=True)
    )
    for key, (thread, system, words, where) in mail_model.snapshot(
        shard
    ).emails.items():
        names = {name for name, bit in WORDS.items() if system & bit} | set(words)
        facts[key] |= {"words": names, "where": set(where), "thread": thread}
    sizes = dict(shard.rows("SELECT email_id, size FROM email_state"))
    shown = {
        key: one | {"size": sizes[key]} for key, one in facts.items() if "words" in one
    }
    return shard, shown


def passes(facts, one, tree):
    if isinstance(tree, Operator):
        results = [passes(facts, one, part) for part in tree.conditions]
        return {"AND": all(results), "OR": any(results), "NOT": not any(results)}[
            tree.op
        ]
    kin = [other for other in facts.values() if other["thread"] == one["thread"]]
    return TESTS[tree.op](one, kin, tree.value)


TESTS = {
    "in_mailbox": lambda one, _, value: value in one["where"],
    "in_mailbox_other_than": lambda one, _, value: bool(one["where"] - set(value)),
    "before": lambda one, _, value: one["received"] < value,
    "after": lambda one, _, value: one["received"] >= value,
    "sent_before": lambda one, _, value: (one["sent"] or value) < value,
    "min_size": lambda one, _, value: one["size"] >= value,
    "max_size": lambda one, _, value: one["size"] < value,
    "has_attachment": lambda one, _, value: (one["number"] % 3 == 0) == value,
    "has_keyword": lambda one, _, value: value in one["words"],
    "not_keyword": lambda one, _, value: value not in one["words"],
    "ids": lambda one, _, value: one["id"] in value,
    "all_in_thread_have_keyword": lambda _, kin, value: all(
        value in other["words"] for other in kin
    ),
    "some_in_thread_have_keyword": lambda _, kin, value: any(
        value in other["words"] for other in kin
    ),
    "none_in_thread_have_keyword": lambda _, kin, value: (
        not any(value in other["words"] for other in kin)
    ),
}


def expected(facts, asked):
    for key, one in facts.items():
        one["id"] = key
    found = [
        key
        for key, one in facts.items()
        if asked.filter is None or passes(facts, one, asked.filter)
    ]
    found.sort(reverse=not asked.sort[0].ascending)
    for comparator in reversed(asked.sort):
        found.sort(
            key=lambda key: sort_key(facts, facts[key], comparator),
            reverse=not comparator.ascending,
        )
    if asked.collapse_threads:
        seen = {}
        for key in found:
            seen.setdefault(facts[key]["thread"], key)
        found = list(seen.values())
    return found


def sort_key(facts, one, comparator):
    kin = [other for other in facts.values() if other["thread"] == one["thread"]]
    return KEYS[comparator.by](one, kin, comparator.keyword)


KEYS = {
    "receivedAt": lambda one, _, __: one["received"],
    "sentAt": lambda one, _, __: (
        one["received"] if one["sent"] is None else one["sent"]
    ),
    "size": lambda one, _, __: one["size"],
    "subject": lambda one, _, __: f"subject {one['number'] % 9}",
    "from": lambda one, _, __: f"sender {one['number'] % 7}",
    "to": lambda _, __, ___: "me",
    "hasKeyword": lambda one, _, word: word in one["words"],
    "someInThreadHaveKeyword": lambda _, kin, word: any(
        word in other["words"] for other in kin
    ),
    "allInThreadHaveKeyword": lambda _, kin, word: all(
        word in other["words"] for other in kin
    ),
}

LEAVES = (
    Condition("in_mailbox", 1),
    Condition("in_mailbox", 3),
    Condition("in_mailbox", 77),
    Condition("in_mailbox_other_than", (1, 2)),
    Condition("before", NOW + 20),
    Condition("after", NOW + 12),
    Condition("sent_before", NOW - 20),
    Condition("min_size", 105),
    Condition("max_size", 108),
    Condition("has_attachment", True),
    Condition("has_attachment", False),
    Condition("has_keyword", "$seen"),
    Condition("not_keyword", "$seen"),
    Condition("has_keyword", "$flagged"),
    Condition("has_keyword", "work"),
    Condition("not_keyword", "$junk"),
    Condition("all_in_thread_have_keyword", "$seen"),
    Condition("some_in_thread_have_keyword", "work"),
    Condition("none_in_thread_have_keyword", "$flagged"),
    Condition("ids", frozenset(range(20, 60))),
)
SORTS = (
    Sort("receivedAt", ascending=False),
    Sort("receivedAt"),
    Sort("sentAt"),
    Sort("size", ascending=False),
    Sort("subject"),
    Sort("from", ascending=False),
    Sort("to"),
    Sort("hasKeyword", ascending=False, keyword="$flagged"),
    Sort("someInThreadHaveKeyword", keyword="work"),
    Sort("allInThreadHaveKeyword", ascending=False, keyword="$seen"),
)


def random_tree(rng, depth=0):
    if depth == 3 or rng.random() < 0.5:
        return rng.choice(LEAVES)
    parts = tuple(random_tree(rng, depth + 1) for _ in range(rng.randint(0, 3)))
    return Operator(rng.choice(("AND", "AND", "OR", "NOT")), parts)


@pytest.mark.parametrize("seed", range(240))
def test_any_query_is_what_a_naive_one_gives(filled, seed, monkeypatch):
    shard, facts = filled
    monkeypatch.setattr(query, "CHUNK", 7 + seed % 150)
    monkeypatch.setattr(query, "FIRST", 1 + seed % 5)
    monkeypatch.setattr(query_walk, "MOST", 3 + seed % 7)
    monkeypatch.setattr(query, "MANY", seed % 2 * 1000)
    rng = random.Random(seed)
    sorts = SORTS[:2] if seed > 150 else SORTS
    asked = EmailQuery(
        rng.choice((None, random_tree(rng), random_tree(rng), rng.choice(LEAVES))),
        tuple(rng.sample(sorts, rng.choice((1, 1, 2)) if seed <= 150 else 1)),
        position=rng.choice((0, 0, 3, -4, 500)),
        limit=rng.choice((None, 0, 5, 20)),
        collapse_threads=rng.random() < 0.4,
        total=rng.random() < 0.5,
    )
    right = expected(facts, asked)
    start = asked.position if asked.position >= 0 else max(0, len(right) - 4)
    end = None if asked.limit is None else start + asked.limit
    for unit in (query.run, query.quick):
        answer = shard.run(unit, asked)
        if answer is None:
            assert unit is query.quick
            continue
        assert list(answer.ids) == right[start:end]
        assert answer.position == start
        assert answer.total == (len(right) if asked.total else None)


@pytest.mark.parametrize("collapse", [False, True])
@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("ascending", [False, True])
def test_a_mailbox_by_date_is_answered_from_its_index(
    filled, collapse, unseen, ascending
):
    shard, facts = filled
    tree = Condition("in_mailbox", 2)
    if unseen:
        tree = Operator("AND", (tree, Condition("not_keyword", "$seen")))
    asked = EmailQuery(
        tree,
        (Sort("receivedAt", ascending=ascending),),
        position=2,
        limit=7,
        collapse_threads=collapse,
    )
    answer = shard.run(query.quick, asked)
    assert list(answer.ids) == expected(facts, asked)[2:9]


@pytest.mark.parametrize("offset", [0, 2, -1, -50])
@pytest.mark.parametrize("collapse", [False, True])
def test_an_anchor_places_the_window(filled, offset, collapse):
    shard, facts = filled
    asked = EmailQuery(Condition("in_mailbox", 1), collapse_threads=collapse)
    right = expected(facts, asked)
    anchor = right[4]
    found = shard.run(
        query.run,
        EmailQuery(
            asked.filter,
            anchor=anchor,
            anchor_offset=offset,
            limit=3,
            collapse_threads=collapse,
        ),
    )
    start = max(0, 4 + offset)
    assert (found.position, list(found.ids)) == (start, right[start : start + 3])


@pytest.mark.parametrize("offset", [-9, -1, 0, 1, 9])
def test_an_anchor_is_found_in_whichever_chunk(filled, offset, monkeypatch):
    monkeypatch.setattr(query, "CHUNK", 4)  # of the first; each is twice the one before
    shard, facts = filled
    asked = EmailQuery(Condition("in_mailbox", 1), limit=3)
    right = expected(facts, dataclasses.replace(asked, limit=None))
    assert len(right) > 28  # three chunks
    for place, anchor in enumerate(right):
        found = shard.run(
            query.run,
            dataclasses.replace(asked, anchor=anchor, anchor_offset=offset),
        )
        start = max(0, place + offset)
        assert (found.position, list(found.ids)) == (start, right[start : start + 3])


def test_an_anchor_outside_the_result_is_an_error(filled):
    shard, _ = filled
    with pytest.raises(MailError) as caught:
        shard.run(query.run, EmailQuery(Condition("in_mailbox", 77), anchor=1))
    assert caught.value.kind is Kind.ANCHOR_NOT_FOUND


@pytest.mark.parametrize(
    "asked",
    [
        EmailQuery(Condition("colour", "red")),
        EmailQuery(Operator("XOR", ())),
        EmailQuery(sort=(Sort("colour"),)),
    ],
)
def test_what_is_not_known_is_refused(filled, asked):
    shard, _ = filled
    with pytest.raises(MailError) as caught:
        shard.run(query.run, asked)
    assert caught.value.kind is Kind.UNSUPPORTED


def test_a_huge_thread_does_not_hold_the_loop():
    shard = Shard()
    for number in range(1, 700):
        shard.deliver(number, thread_keys=keys(1))
    shard.deliver(1000, received_at=NOW - 10)
    asked = EmailQuery(Condition("in_mailbox", 1), limit=5, collapse_threads=True)
    assert shard.run(query.quick, asked) is None
    assert shard.run(query.run, asked).ids == (699, 700)


@pytest.mark.parametrize(
    "asked",
    [
        EmailQuery(limit=5, total=True),
        EmailQuery(limit=5, collapse_threads=True),
        EmailQuery(Condition("in_mailbox", 1), limit=5, total=True),
        EmailQuery(Condition("in_mailbox", 1), limit=5, position=600),
        EmailQuery(Condition("in_mailbox_other_than", (2, 3)), limit=5),
        EmailQuery(Condition("some_in_thread_have_keyword", "$seen"), limit=5),
        EmailQuery(
            Operator("AND", (Condition("in_mailbox", 1), Condition("min_size", 9))),
            limit=5,
        ),
        EmailQuery(Condition("before", NOW + 700), limit=5),
        EmailQuery(Condition("has_keyword", "$seen"), limit=5),
    ],
)
def test_a_page_by_date_costs_the_same_in_a_larger_mailbox(large, asked):
    """Steps of SQLite's machine are counted, so that no scan can creep in."""

    def steps(shard):
        count = 0

        def step():
            nonlocal count
            count += 1

        shard.connection.set_progress_handler(step, 20)
        answer = shard.run(query.quick, asked) or shard.run(query.run, asked)
        shard.connection.set_progress_handler(None, 0)
        assert len(answer.ids) == 5
        return count

    few, many = map(steps, large)
    assert many < 1.2 * few + 20


@pytest.fixture(scope="module")
def large():
    """Two shards, one of which holds four times as much as the other."""
    shards = []
    for count in (1000, 4000):
        shard = Shard()
        for number in range(1, count + 1):
            shard.deliver(number, flags=Flags(number % 2), thread_keys=keys(number))
        shards.append(shard)
    return shards
