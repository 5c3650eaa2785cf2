"""JMAP grammar: documents, ids, states, dates, arguments, requests."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.core.errors import Kind, MailError
from protocols.jmap.wire import arguments, dates, errors, ids, ijson, request, state
from protocols.jmap.wire.arguments import Argument, Bad
from protocols.jmap.wire.errors import MethodError, RequestError, SetError

# --- I-JSON ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"a":1,"a":2}',
        b'[{"x":[{"b":1,"b":1}]}]',
        b'"\\ud800"',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b"NaN",
        b"[1e999]",
        b"\xef\xbb\xbf{}",
        b"[" * 140 + b"]" * 140,
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
    ],
)
def test_what_is_not_i_json(text):
    with pytest.raises(RequestError) as error:
        ijson.loads(text)
    assert error.value.kind == "notJSON"
    assert error.value.status == 400


def test_a_bomb_of_values_is_refused_before_it_is_built():
    with pytest.raises(RequestError) as error:
        ijson.loads(b"[" + b"{}," * 300_000 + b"{}]")
    assert error.value.problem()["limit"] == "maxSizeRequest"
    assert len(ijson.loads(b'["' + b",[{" * 300_000 + b'"]')[0]) == 900_000


@given(st.recursive(st.text() | st.integers(-(2**53), 2**53) | st.none(), st.lists))
def test_documents_come_back(value):
    assert ijson.loads(orjson.dumps(value)) == value


@given(st.binary(max_size=60))
def test_any_octets_give_a_value_or_a_request_error(data):
    try:
        ijson.loads(data)
    except RequestError as error:
        json.loads(ijson.problem(error))


def test_depth():
    assert ijson.depth(1) == 0
    assert ijson.depth([]) == 0
    assert ijson.depth([[1], {"a": [1]}]) == 3


def test_rendered_values_are_copied():
    document = {"list": [ijson.Rendered(b'{"id":"x"}')]}
    assert ijson.dumps(document) == b'{"list":[{"id":"x"}]}'
    with pytest.raises(TypeError):
        ijson.dumps({"a": object()})


# --- ids --------------------------------------------------------------------------


@given(st.integers(1, ids.MAX_ID))
def test_ids_come_back(number):
    assert ids.parse_email(ids.email(number)) == number
    assert ids.parse_thread(ids.email(number)) is None
    assert ids.is_id(ids.email(number))


@pytest.mark.parametrize(
    "text",
    ["", "e", "e0", "e01", "e-1", "e1 ", "E1", "e\u0663", f"e{2**63}", "e" + "9" * 99],
)
def test_what_is_no_email_id(text):
    assert ids.parse_email(text) is None


ENCODINGS = st.sampled_from(["8bit", "base64", "quoted-printable", "x-uuencode"])
RANGES = st.tuples(st.integers(0, 10**9), st.integers(0, 10**9), ENCODINGS)


@given(st.binary(min_size=32, max_size=32), st.lists(RANGES, max_size=3))
def test_blob_ids_come_back(digest, steps):
    blob = ids.Blob(digest)
    for start, length, encoding in steps:
        blob = blob.part(start, start + length, encoding)
    assert ids.parse_blob(blob.render()) == blob
    assert ids.is_id(blob.render())


def test_a_part_of_an_identity_part_is_one_range():
    blob = ids.Blob(bytes(32)).part(100, 900, "7bit").part(10, 20, "base64")
    assert blob.steps == ((110, 120, "base64"),)
    nested = ids.Blob(bytes(32)).part(100, 900, "base64").part(10, 20, "8bit")
    assert nested.steps == ((100, 900, "base64"), (10, 20, "8bit"))


@pytest.mark.parametrize("tail", ["-5-4-n", "-1-2", "-1-2-x", "-01-2-n", "-1-2-n" * 5])
def test_what_is_no_part_id(tail):
    assert ids.parse_blob("p" + "0" * 64 + tail) is None


# --- states -----------------------------------------------------------------------


def test_states():
    assert state.since("3-7", 3, 7) == (7, None, None)
    assert state.since("3-7.12", 3, 9) == (7, None, 12)
    for text in ("3-8", "2-7", "", "x", "3-", "-7", "3-7.", "3-7-1", "3-\u0667"):
        with pytest.raises(MethodError) as error:
            state.since(text, 3, 7)
        assert error.value.kind == "cannotCalculateChanges"


# --- dates ------------------------------------------------------------------------


@given(st.integers(-62_135_596_800, 253_402_300_799))
def test_utc_dates_come_back(seconds):
    assert dates.parse_utc(dates.utc(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2014-10-30T06:12:00Z", 1414649520),
        ("2014-10-30T06:12:00.123Z", 1414649520),
        ("2016-12-31T23:59:60Z", 1483228799),
        ("2014-10-30T14:12:00+08:00", None),
        ("2014-02-30T00:00:00Z", None),
        ("2014-10-30t06:12:00z", None),
        ("0000-01-01T00:00:00Z", None),
        ("2014-10-30", None),
        ("20141030T061200Z", None),
        ("", None),
    ],
)
def test_utc_dates(text, seconds):
    assert dates.parse_utc(text) == seconds


def test_dates_with_an_offset():
    assert dates.parse("2014-10-30T14:12:00+08:00").timestamp() == 1414649520
    assert dates.parse("2014-10-30T14:12:00+08:60") is None
    assert dates.parse("2014-10-30T14:12:00+25:00") is None


# --- arguments --------------------------------------------------------------------

SCHEMA = {
    "accountId": Argument(arguments.identifier),
    "limit": Argument(arguments.nullable(arguments.unsigned), None),
    "flag": Argument(arguments.boolean, False),
}


def test_defaults_and_nulls():
    assert arguments.parse(SCHEMA, {"accountId": "a1", "limit": None}) == {
        "accountId": "a1",
        "limit": None,
        "flag": False,
    }


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"accountId": 1},
        {"accountId": "a 1"},
        {"accountId": "a1", "limit": -1},
        {"accountId": "a1", "limit": 1.0},
        {"accountId": "a1", "limit": True},
        {"accountId": "a1", "limit": 2**53},
        {"accountId": "a1", "flag": None},
        {"accountId": "a1", "flag": 0},
        {"accountId": "a1", "unknown": 1},
    ],
)
def test_wrong_arguments(given):
    with pytest.raises(MethodError) as error:
        arguments.parse(SCHEMA, given)
    assert error.value.kind == "invalidArguments"


def test_all_wrong_arguments_are_named():
    with pytest.raises(MethodError) as error:
        arguments.parse(SCHEMA, {"limit": "x", "flag": "y"})
    for name in SCHEMA:
        assert name in error.value.description


@pytest.mark.parametrize("word", ["", "a b", "a(b", "ä", "a" * 256, "a\\", 'a"', "%"])
def test_what_is_no_keyword(word):
    with pytest.raises(Bad):
        arguments.keyword(word)


def test_keywords_are_lower_case():
    assert arguments.keyword_set({"$Seen": True, "FOO": True}) == ("$seen", "foo")
    with pytest.raises(Bad):
        arguments.keyword_set({"$seen": False})


# --- requests ---------------------------------------------------------------------


def test_a_request():
    found = request.parse(
        {"using": ["a"], "methodCalls": [["x", {}, "c"]], "createdIds": {}, "new": 1}, 1
    )
    assert found.using == {"a"}
    assert found.calls[0].call_id == "c"
    assert found.created_ids == {}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"using": [], "methodCalls": None},
        {"using": "a", "methodCalls": []},
        {"using": [1], "methodCalls": []},
        {"using": [], "methodCalls": [["x", {}]]},
        {"using": [], "methodCalls": [["x", [], "c"]]},
        {"using": [], "methodCalls": [["x", {}, 1]]},
        {"using": [], "methodCalls": [], "createdIds": {"a": 1}},
    ],
)
def test_what_is_no_request(value):
    with pytest.raises(RequestError) as error:
        request.parse(value, 4)
    assert error.value.kind == "notRequest"


def test_too_many_calls():
    with pytest.raises(RequestError) as error:
        request.parse({"using": [], "methodCalls": [["x", {}, "c"]] * 3}, 2)
    assert error.value.problem()["limit"] == "maxCallsInRequest"


# --- errors -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_a_place_in_every_table(kind):
    error = MailError(kind, "why")
    assert isinstance(errors.method_error(error), MethodError)
    assert isinstance(errors.set_error(error), SetError)
    assert 400 <= errors.request_error(error).status < 600


def test_problem_documents_keep_their_own_type():
    assert (
        errors.not_json("x").problem()["type"] == "urn:ietf:params:jmap:error:notJSON"
    )
    assert RequestError("about:blank", "x", 404).problem()["type"] == "about:blank"
