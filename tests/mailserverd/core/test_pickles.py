"""What processes send one another comes out as it went in."""

from __future__ import annotations

import collections
import dataclasses
import pickle
from array import array
from fractions import Fraction

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.pickles import dumps
from mailserverd.core.types import Access, Envelope, Recipient
from storage.metadata.deliver import add_email
from storage.model import EmailPatch, FlagChange, Flags, StoreFlags
from tests.lib.shard import delivery


@dataclasses.dataclass(frozen=True, slots=True)
class One:
    """A single field: ``attrgetter`` would return no tuple."""

    only: int


@dataclasses.dataclass(slots=True)
class Counted:
    """Not made of its arguments alone."""

    start: int
    step: int = 1
    seen: int = dataclasses.field(init=False, default=0)


@dataclasses.dataclass(slots=True)
class Checked:
    """Changed by what it is made with."""

    start: int
    end: int

    def __post_init__(self):
        self.end += 1


@dataclasses.dataclass
class Open:
    """Has whatever is set."""

    a: int
    b: int


@dataclasses.dataclass(frozen=True, slots=True)
class Derived(One):
    """Fields in two places."""

    more: int


def changed(value, **fields):
    for name, content in fields.items():
        setattr(value, name, content)
    return value


@pytest.mark.parametrize(
    "value",
    [
        delivery(1),
        Envelope("a@b", (Recipient("c@d", ("NEVER",)), Recipient("é@f"))),
        StoreFlags(1, array("I", [1, 2]), FlagChange.ADD, Flags(1)),
        [EmailPatch(1, ("x",))] * 3,
        {Access(1, 2): (One(3), Derived(4, 5))},
        changed(Counted(1), seen=7, step=9),
        changed(Checked(1, 2), start=5),
        changed(Open(1, 2), c=3),
        collections.OrderedDict(a=Fraction(1, 3)),
        (add_email, None, -1, 2**70, b"\x00", "\ud800", 1.5, frozenset({1})),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_is_the_same(value):
    again = pickle.loads(dumps(value))
    assert again == value
    assert type(again) is type(value)
    if isinstance(value, Open):
        assert again.c == 3


def test_what_is_one_thing_stays_one():
    one = Access(1, 2)
    again = pickle.loads(dumps([one, one]))
    assert again[0] is again[1]


def test_errors_keep_what_they_say():
    again = pickle.loads(dumps(MailError(Kind.LIMIT, "too much", of="it")))
    assert (again.kind, again.text, again.details) == (
        Kind.LIMIT,
        "too much",
        {"of": "it"},
    )


def test_what_has_no_form_is_refused():
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        dumps(lambda: None)


def test_it_is_smaller_and_named_once():
    assert len(dumps([delivery(n) for n in range(10)])) < 4000
