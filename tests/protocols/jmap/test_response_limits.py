"""What a response may hold is bounded, however cleverly it is asked for."""

from __future__ import annotations

import itertools

import pytest

from protocols.jmap.budget import FREE, Share, Site
from protocols.jmap.services import Limits, Settings
from protocols.jmap.wire.errors import MethodError
from tests.lib.jmap import message, with_jmap

SMALL = Settings(hostname="mx.example.org", limits=Limits(max_response=2_000_000))
FOLDED = "a" * 70 + "\n " + ("b" * 70 + "\n ") * 300


def spellings(name: str, count: int) -> list[str]:
    """Return a header property in letters large and small."""
    cases = itertools.product(*((c.lower(), c.upper()) for c in name))
    return [
        f"header:X-{''.join(case)}:asRaw" for case in itertools.islice(cases, count)
    ]


@with_jmap(settings=SMALL)
async def test_one_field_in_many_spellings(client):
    email = await client.add(message(X_Abcdefgh=FOLDED))
    few = await client.get(email, *spellings("abcdefgh", 10))
    assert len(few) == 11
    args = {"ids": [email], "properties": spellings("abcdefgh", 256)}
    assert (await client.fails("Email/get", **args))["type"] == "requestTooLarge"
    blob = (await client.get(email, "blobId"))["blobId"]
    args = {"blobIds": [blob], "properties": spellings("abcdefgh", 256)}
    assert (await client.fails("Email/parse", **args))["type"] == "requestTooLarge"
    args = {"bodyProperties": spellings("abcdefgh", 256)}
    args |= {"ids": [email], "properties": ["bodyStructure"]}
    assert (await client.fails("Email/get", **args))["type"] == "requestTooLarge"


@with_jmap(settings=SMALL)
async def test_many_small_fields_and_parts(client):
    fields = await client.add("From: a@b\n" + "A:b\n" * 50_000 + "\nbody\n")
    args = {"ids": [fields], "properties": ["headers"]}
    assert (await client.fails("Email/get", **args))["type"] == "requestTooLarge"
    kind = "multipart/mixed; boundary=x"
    parts = await client.add(
        message(Content_Type=kind, body="--x\n\n1\n" * 900 + "--x--\n")
    )
    args = {"ids": [parts], "properties": ["bodyStructure"]}
    calls = [["Email/get", args, str(n)] for n in range(10)]
    kinds = [name for name, _, _ in await client.calls(*calls)]
    assert kinds[0] == "Email/get"
    assert kinds[-1] == "error"


@with_jmap()
async def test_a_header_block_without_end(client):
    """Only its first octets are shown, as over IMAP."""
    email = await client.add("From: a@b\n" + "A: " + "c" * 3_000_000 + "\n\nbody\n")
    found = await client.get(email, "headers", "header:a")
    assert 900_000 < len(found["header:a"]) < 1_100_000
    assert [one["name"] for one in found["headers"]] == ["From", "A"]


@with_jmap(settings=SMALL)
async def test_lists_of_many_addresses(client):
    to = ",\n ".join(f"u{n}@x.example" for n in range(9_000))
    email = await client.add(message(To=to))
    args = {"ids": [email], "properties": ["to"]}
    calls = [["Email/get", args, str(n)] for n in range(10)]
    kinds = [name for name, _, _ in await client.calls(*calls)]
    assert kinds[0] == "Email/get"
    assert kinds[-1] == "error"


def test_all_answers_together_are_bounded():
    site = Site(3 * FREE)
    first, second, small = (Share(site, 10 * FREE) for _ in range(3))
    first.spend(3 * FREE)
    with pytest.raises(MethodError) as caught:
        second.spend(FREE + FREE + 1)
    assert caught.value.kind == "serverUnavailable"
    small.spend(FREE)  # always passes
    first.settle(FREE * 2)  # made: what was read for it has gone
    second.spend(1)
    assert site.held == 2 * FREE + 2
    for share in (first, second, small):
        share.close()
        share.close()
    assert site.held == 0


@with_jmap()
async def test_an_answer_that_was_sent_holds_nothing(client):
    email = await client.add(message(body="x" * 1_500_000))
    args = {"ids": [email], "fetchTextBodyValues": True, "properties": ["bodyValues"]}
    for _ in range(3):
        await client.call("Email/get", **args)
    assert client.site.api._site.held == 0
