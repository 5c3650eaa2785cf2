"""Base subjects and thread keys."""

from __future__ import annotations

import pytest

from mailserverd.mail.threads import base_subject, thread_keys, thread_subject


@pytest.mark.parametrize(
    ("subject", "base"),
    [
        ("", ""),
        ("Hello", "Hello"),
        ("Re: Hello", "Hello"),
        ("RE : FWD: fw:Hello (fwd) (Fwd)", "Hello"),
        ("Re[2]: Hello", "Hello"),
        ("[list] Re: [list] Hello", "Hello"),
        ("[only a blob]", "[only a blob]"),
        ("[a][b]", "[b]"),
        ("[fwd: Re: Hello]", "Hello"),
        ("[Fwd: [x] [fwd: Hello (fwd)]]", "Hello"),
        ("Hello   there\tyou", "Hello there you"),
        ("Reply: Hello", "Reply: Hello"),
        ("Re:", ""),
        ("Re: [x] ", "[x]"),
        ("(fwd)", ""),
    ],
)
def test_base_subject(subject: str, base: str) -> None:
    assert base_subject(subject) == base


@pytest.mark.parametrize(
    "subject", ["re:" * 9999, "[a]" * 9999, "[fwd:" * 9999 + "]" * 9999]
)
def test_hostile_subjects(subject: str) -> None:
    assert len(base_subject(subject)) <= 1000


def test_foreign_prefixes_join_threads() -> None:
    assert thread_subject("AW: Sv: Hallo Welt") == thread_subject("hallo  welt")
    assert thread_subject("Art: x") != thread_subject("x")


def test_keys_need_id_and_subject() -> None:
    first = thread_keys([b"1@x"], "Hello")
    answer = thread_keys([b"2@x", b"1@x", b"1@x"], "hello")
    other = thread_keys([b"3@x", b"1@x"], "Something else")
    assert len(answer) == 2
    assert set(first) & set(answer)
    assert not set(first) & set(other)
    assert thread_keys([b'"a"@x'], "s") == thread_keys([b"a@x"], "s")
    assert thread_keys([], "s") == ()


def test_many_ids_keep_first_and_last() -> None:
    ids = [b"%d@x" % n for n in range(500)]
    keys = thread_keys(ids, "s")
    assert len(keys) == 64
    assert keys[0] == thread_keys(ids[:1], "s")[0]
    assert keys[-1] == thread_keys(ids[-1:], "s")[0]
