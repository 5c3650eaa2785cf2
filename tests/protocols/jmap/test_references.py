"""Result references (RFC 8620 section 3.7) and patches (section 5.3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.jmap.wire import patch, references
from protocols.jmap.wire.errors import MethodError, SetError
from protocols.jmap.wire.ijson import Rendered
from protocols.jmap.wire.request import Invocation

THREADS = Invocation(
    "Thread/get",
    {
        "list": [
            {"id": "trd194", "emailIds": ["msg1020", "msg1021", "msg1023"]},
            Rendered(b'{"id":"trd114","emailIds":["msg201","msg223"]}'),
        ],
        "a/b~c": 1,
        "nested": [[1, [2]], [3]],
    },
    "t2",
)


def resolve(path, name="Thread/get", call="t2"):
    reference = {"resultOf": call, "name": name, "path": path}
    return references.resolve({"#ids": reference, "x": 1}, [THREADS])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/list/*/id", ["trd194", "trd114"]),
        ("/list/*/emailIds", ["msg1020", "msg1021", "msg1023", "msg201", "msg223"]),
        ("/list/0/emailIds/2", "msg1023"),
        ("/list/1/id", "trd114"),
        ("/list/1", {"id": "trd114", "emailIds": ["msg201", "msg223"]}),
        ("/a~1b~0c", 1),
        ("/nested/*", [1, [2], 3]),
        ("/nested/*/0", [1, 3]),
    ],
)
def test_paths(path, value):
    assert resolve(path) == {"ids": value, "x": 1}


@pytest.mark.parametrize(
    "path",
    [
        "list",
        "/nothing",
        "/list/2",
        "/list/01",
        "/list/-1",
        "/list/x",
        "/list/*/nothing",
        "/a~1b~0c/x",
        "/a~2",
        "/*",
        "/" * 100,
    ],
)
def test_paths_that_lead_nowhere(path):
    with pytest.raises(MethodError) as error:
        resolve(path)
    assert error.value.kind == "invalidResultReference"


def test_the_response_must_be_the_one_named():
    for wrong in ({"name": "Email/get"}, {"call": "t3"}):
        with pytest.raises(MethodError):
            resolve("/list/*/id", **wrong)
    for value in (None, "x", {}, {"resultOf": "t2", "name": "Thread/get"}):
        with pytest.raises(MethodError) as error:
            references.resolve({"#ids": value}, [THREADS])
        assert error.value.kind == "invalidResultReference"


def test_the_first_response_of_a_call_counts():
    failed = Invocation("error", {"type": "x"}, "t2")
    reference = {"resultOf": "t2", "name": "Thread/get", "path": "/list"}
    with pytest.raises(MethodError):
        references.resolve({"#ids": reference}, [failed, THREADS])


def test_plain_and_referenced_at_once():
    reference = {"resultOf": "t2", "name": "Thread/get", "path": "/list"}
    for args in ({"ids": [], "#ids": reference}, {"#ids": reference, "ids": []}):
        with pytest.raises(MethodError) as error:
            references.resolve(args, [THREADS])
        assert error.value.kind == "invalidArguments"


def test_a_reference_cannot_blow_up():
    many = Invocation("x", {"a": [[0] * 2000] * 2000}, "c")
    with pytest.raises(MethodError):
        references.resolve(
            {"#a": {"resultOf": "c", "name": "x", "path": "/a/*"}}, [many]
        )


def test_references_to_references_do_not_double_without_end():
    """2 ** 64 copies of a small value would be asked for in 10 kB."""
    left, responses = 1_000_000, [Invocation("Core/echo", {"a": ["x" * 10]}, "0")]

    def spend(octets):
        nonlocal left
        left -= octets
        if left < 0:
            raise MethodError("requestTooLarge")

    with pytest.raises(MethodError) as error:
        for number in range(64):
            one = {"resultOf": str(number), "name": "Core/echo", "path": ""}
            args = references.resolve({"#a": one, "#b": one}, responses, spend)
            responses.append(Invocation("Core/echo", args, str(number + 1)))
    assert error.value.kind == "requestTooLarge"
    assert len(responses) < 17


def test_what_a_reference_weighs():
    assert references.weight("abc") == 19
    assert references.weight({"abc": [1, None, Rendered(b"[1]")]}) == 16 * 6 + 3 + 3


# --- patches ------------------------------------------------------------------------

TODO = {"title": "x", "keywords": {"music": True, "mozart": True}, "ids": ["a"]}


def test_the_minimal_patch_and_the_whole_object_are_one():
    whole = {"keywords": {"music": True, "chopin": True}}
    minimal = {"keywords/chopin": True, "keywords/mozart": None}
    assert patch.apply(TODO, minimal) == patch.apply(TODO, whole)
    assert TODO["keywords"] == {"music": True, "mozart": True}


def test_null_removes_and_a_missing_key_is_nothing():
    assert patch.apply(TODO, {"keywords/none": None}) == {"keywords": TODO["keywords"]}
    assert patch.apply(TODO, {"title": None}) == {"title": None}


@pytest.mark.parametrize(
    "bad",
    [
        {"keywords": {}, "keywords/a": True},
        {"keywords/a/b": 1, "keywords/a": {}},
        {"ids/0": "b"},
        {"title/x": 1},
        {"none/x": 1},
        {"keywords/none/x": 1},
        {"a~2": 1},
        {"/".join("a" * 99): 1},
    ],
)
def test_invalid_patches(bad):
    with pytest.raises(SetError) as error:
        patch.apply(TODO, bad)
    assert error.value.kind == "invalidPatch"


@given(st.dictionaries(st.text("ab/~01", max_size=6), st.none() | st.booleans()))
def test_any_pointers_patch_or_are_refused(given_patch):
    try:
        patch.apply({"a": {"b": {}}}, given_patch)
    except SetError as error:
        assert error.kind == "invalidPatch"
