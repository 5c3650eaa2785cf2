"""What every search engine promises (``storage.api.SearchIndex``)."""

import asyncio
import random

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.text import And, Not, Or, Term, Text, fields_of, pack, parse
from tests.lib.failing import MODES, FailingSearchIndex
from tests.lib.search_engines import ENGINES

ANN = ("from: Ann Lee <ann@example.com>\nto: bob@example.org\nsubject: The fox", "")
MAILS = {
    1: ANN,
    2: ("from: bob@example.org\ncc: ann@example.com\nsubject: Re: dogs", "brown fox"),
    3: ("subject: 東京の天気\nbcc: secret@example.net", "quick brown fox, lazy dogs"),
    4: ("", ""),
    5: ("from: Zoë <zoe@example.com>", "Grüße from the STRASSE " + "filler " * 3000),
    9: ("subject: \ud800 lone", "nul \0 and \udc80"),
}


@pytest.fixture(scope="module", params=ENGINES)
def shared(request, tmp_path_factory):
    """Return a function that runs ``work(index)``; the index stays open meanwhile."""
    place = tmp_path_factory.mktemp("search")
    with asyncio.Runner() as runner:
        context = ENGINES[request.param](place / "search")
        index = runner.run(context.__aenter__())
        yield lambda work: runner.run(work(index))
        runner.run(context.__aexit__(None, None, None))


@pytest.fixture
def on(shared):
    """The same, with nothing indexed."""

    async def clear(index):
        for account in (1, 2, 3, 7, 12):
            await index.drop(account)

    shared(clear)
    return shared


@pytest.fixture(params=ENGINES)
def reopening(request, tmp_path):
    """Return a function that opens the engine on the same place each time."""

    def run(work):
        async def opened():
            async with ENGINES[request.param](tmp_path / "search") as index:
                return await work(index)

        return asyncio.run(opened())

    return run


def documents(mails):
    return [(email, pack(*mail)) for email, mail in mails.items()]


async def fill(index, account=1, mails=MAILS, watermark=10):
    await index.update(account, documents(mails), [], 0, watermark)


async def find(index, value, field="text", account=1):
    return list((await index.search(account, parse(field, value))).ids)


def test_nothing_is_known_of_an_account_that_was_never_indexed(on):
    async def work(index):
        assert await index.watermark(7) == 0
        hits = await index.search(7, parse("text", "word"))
        assert (list(hits.ids), hits.watermark) == ([], 0)
        assert list((await index.search(7, And(()))).ids) == []

    on(work)


def test_each_field_is_found_by_its_words(on):
    async def work(index):
        await fill(index)
        assert await find(index, "fox") == [1, 2, 3]
        assert await find(index, "FOX", "subject") == [1]
        assert await find(index, "fox", "body") == [2, 3]
        assert await find(index, "ann@example.com", "from") == [1]
        assert await find(index, "ann", "cc") == [2]
        assert await find(index, "bob", "to") == [1]
        assert await find(index, "secret", "bcc") == [3]
        assert await find(index, "zoë strasse") == [5]
        assert await find(index, "fox dogs") == [2, 3]
        assert await find(index, "nowhere") == []
        assert await find(index, "天気") == [3]
        assert await find(index, "気") == [3]
        assert await find(index, "lone nul") == [9]

    on(work)


def test_phrases_and_prefixes(on):
    async def work(index):
        await fill(index)
        assert await find(index, '"brown fox"') == [2, 3]
        assert await find(index, '"fox brown"') == []
        assert await find(index, '"quick brown fox"', "body") == [3]
        assert await find(index, '"fox lazy" quick') == [3]
        assert await find(index, "fil*") == [5]
        assert await find(index, "fil") == []
        assert await find(index, "d*") == [2, 3]
        assert await find(index, "ann@exam*") == [1, 2]

    on(work)


def test_operators(on):
    async def work(index):
        await fill(index)
        fox, dogs = parse("text", "fox"), parse("text", "dogs")

        async def ids(query):
            return list((await index.search(1, query)).ids)

        assert await ids(And((fox, Not(dogs)))) == [1]
        assert await ids(Or((dogs, parse("from", "zoe*")))) == [2, 3, 5]
        assert await ids(Not(Or((fox, dogs)))) == [4, 5, 9]
        assert await ids(And(())) == sorted(MAILS)
        assert await ids(Or(())) == []
        assert await ids(Not(And(()))) == []
        assert await ids(Not(Not(fox))) == [1, 2, 3]

    on(work)


def test_updates_are_kept_and_move_the_watermark(reopening):
    async def first(index):
        await fill(index)

    async def second(index):
        assert await index.watermark(1) == 10
        more = {20: ("subject: fox", "")}
        await index.update(1, documents(more), [2, 4, 777], 10, 25)
        assert await find(index, "fox") == [1, 3, 20]

    async def third(index):
        hits = await index.search(1, parse("text", "fox"))
        assert (list(hits.ids), hits.watermark) == ([1, 3, 20], 25)
        assert list((await index.search(1, And(()))).ids) == [1, 3, 5, 9, 20]

    for step in (first, second, third):
        reopening(step)


def test_an_update_from_elsewhere_changes_nothing(on):
    async def work(index):
        await fill(index)
        for since in (0, 9, 11):
            with pytest.raises(MailError) as caught:
                await index.update(1, documents({50: ANN}), [1], since, 60)
            assert caught.value.kind is Kind.CONFLICT
        assert await index.watermark(1) == 10
        assert await find(index, "fox") == [1, 2, 3]

    on(work)


def test_an_update_without_documents_moves_the_watermark(on):
    async def work(index):
        await index.update(1, [], [], 0, 5)
        assert await index.watermark(1) == 5
        await index.update(1, [], [], 5, 5)
        await index.update(1, documents(MAILS), [], 5, 6)
        assert await find(index, "fox") == [1, 2, 3]
        assert await index.watermark(1) == 6

    on(work)


def test_accounts_never_see_one_another(on):
    async def work(index):
        await fill(index, account=1)
        await fill(index, account=12, mails={7: ANN}, watermark=3)
        assert await find(index, "fox", account=12) == [7]
        assert await find(index, "fox", account=2) == []
        await index.drop(1)
        assert await index.watermark(1) == 0
        assert await find(index, "fox") == []
        assert await find(index, "fox", account=12) == [7]
        await index.drop(99)

    on(work)


def test_a_text_that_cannot_be_read_does_not_stop_the_others(on):
    async def work(index):
        texts = [(1, b"no packed text"), *documents({2: ANN})]
        await index.update(1, texts, [], 0, 5)
        assert await find(index, "fox") == [2]
        assert await index.watermark(1) == 5

    on(work)


def test_queries_that_are_too_complex_are_refused(on):
    deep = parse("text", "x")
    for _ in range(100):
        deep = Not(deep)
    wide = Or(tuple(parse("text", f"w{n}") for n in range(5000)))
    unknown = Term("x-header", ("a",))

    async def work(index):
        for query in (deep, wide, unknown, Term("text", ())):
            with pytest.raises(MailError) as caught:
                await index.search(1, query)
            assert caught.value.kind is Kind.INVALID
        assert await index.watermark(1) == 0

    on(work)


def test_concurrent_callers_get_their_own_answers(on):
    async def work(index):
        for account in range(1, 4):
            await fill(index, account, {account: ANN})
        answers = await asyncio.gather(
            *(find(index, "fox", account=n % 4) for n in range(40))
        )
        assert answers == [[n % 4] if n % 4 else [] for n in range(40)]

    on(work)


def random_mail(rng):
    letters = "ab" if rng.random() < 0.8 else "a日本"

    def words(count):
        picks = ["".join(rng.choices(letters, k=rng.randint(1, 4))) for _ in range(9)]
        return " ".join(rng.choices(picks, k=rng.randrange(count)))

    names = rng.sample(("from", "to", "cc", "bcc", "subject"), rng.randrange(6))
    return "\n".join(f"{name}: {words(5)}" for name in names), words(40)


def random_query(rng, depth=2):
    kind = rng.random()
    if depth and kind < 0.4:
        parts = tuple(random_query(rng, depth - 1) for _ in range(rng.randrange(4)))
        return And(parts) if rng.random() < 0.5 else Or(parts)
    if depth and kind < 0.5:
        return Not(random_query(rng, depth - 1))
    words = ["".join(rng.choices("ab日", k=rng.randint(1, 3))) for _ in range(3)]
    value = " ".join(words[: rng.randint(1, 3)])
    value = rng.choice((value, f'"{value}"', words[0] + "*"))
    return parse(rng.choice(("text", "text", "from", "subject", "body")), value)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_index_says_what_looking_at_each_message_says(on, seed):
    rng = random.Random(seed)
    texts = {}

    async def work(index):
        watermark = 0
        for _ in range(14):
            new = {len(texts) + 1000 + n: random_mail(rng) for n in range(9)}
            gone = rng.sample(sorted(texts), min(len(texts), 2))
            await index.update(1, documents(new), gone, watermark, watermark + 5)
            watermark += 5
            texts.update({key: Text(fields_of(*mail)) for key, mail in new.items()})
            for key in gone:
                texts[key] = None
            for _ in range(12):
                query = random_query(rng)
                live = (key for key, text in texts.items() if text)
                expected = sorted(key for key in live if texts[key].matches(query))
                hits = await index.search(1, query)
                assert list(hits.ids) == expected, query
                assert hits.watermark == watermark

    on(work)


@pytest.mark.parametrize("mode", MODES)
def test_a_failing_engine_fails_with_a_temporary_kind(on, mode):
    """And one that says where it stands is fed from there: each email once."""

    async def work(index):
        failing = FailingSearchIndex(index, mode)
        failing.delay = 0.003
        fed = 0
        for number in range(1, 7):
            try:
                since = await failing.watermark(1)
                new = documents(dict.fromkeys(range(since + 1, number + 1), ANN))
                await failing.update(1, new, [], since, number)
                fed = number
                hits = await failing.search(1, parse("text", "fox"))
                assert list(hits.ids) == list(range(1, number + 1))
            except MailError as error:
                assert error.temporary
        assert failing.failed
        assert await index.watermark(1) >= fed
        since = await index.watermark(1)
        new = documents(dict.fromkeys(range(since + 1, 8), ANN))
        await index.update(1, new, [], since, 7)
        assert await find(index, "fox") == list(range(1, 8))

    on(work)


def test_an_update_whose_answer_was_lost_is_not_done_twice(on):
    async def work(index):
        lost = FailingSearchIndex(index, "after")
        with pytest.raises(MailError):
            await lost.update(1, documents(MAILS), [], 0, 10)
        assert await index.watermark(1) == 10
        with pytest.raises(MailError) as caught:
            await index.update(1, documents(MAILS), [], 0, 10)
        assert caught.value.kind is Kind.CONFLICT
        assert await find(index, "fox") == [1, 2, 3]

    on(work)
