"""Replies, ours and theirs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.core.errors import TEMPORARY, Kind, MailError
from protocols.smtp import replies
from protocols.smtp.wire.reply import MAX_LINES, Reply, ReplyError, ReplyReader

printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)
some_replies = st.builds(
    Reply,
    st.sampled_from([220, 250, 451, 550]),
    st.just(""),
    st.lists(printable.map(lambda t: "x" + t[:200]), min_size=1, max_size=4).map(
        "\n".join
    ),
)


@given(st.lists(some_replies, max_size=4), st.integers(1, 50))
def test_round_trip_in_any_pieces(sent: list[Reply], size: int) -> None:
    wire = b"".join(reply.encode() for reply in sent)
    reader = ReplyReader()
    found = []
    for start in range(0, len(wire), size):
        found += reader.feed(wire[start : start + size])
    assert found == sent
    assert not reader.pending


def test_enhanced_codes_stand_on_every_line() -> None:
    reply = Reply(550, "5.1.1", "no\nsuch user")
    assert reply.encode() == b"550-5.1.1 no\r\n550 5.1.1 such user\r\n"
    assert ReplyReader().feed(reply.encode()) == [reply]


def test_a_nul_of_a_peer_is_not_kept() -> None:
    assert ReplyReader().feed(b"550 no\0body\r\n") == [Reply(550, "", "no?body")]


def test_an_enhanced_code_of_another_class_is_text() -> None:
    assert ReplyReader().feed(b"250 5.1.1 odd\r\n") == [Reply(250, "", "5.1.1 odd")]
    assert ReplyReader().feed(b"250 2.1.1234 odd\n") == [Reply(250, "", "2.1.1234 odd")]


def test_what_others_send_stays_on_its_line() -> None:
    wire = Reply(550, "5.7.1", "evil\r\n250 ok \x00 \u00fc").encode()
    assert wire == b"550-5.7.1 evil?\r\n550 5.7.1 250 ok ? ?\r\n"
    assert "\u00fc".encode() in Reply(250, "", "\u00fc").encode(utf8=True)
    assert len(Reply(550, "5.7.1", "x" * 5000).encode()) < 512


@pytest.mark.parametrize(
    "wire",
    [
        b"hello\r\n",
        b"25 x\r\n",
        b"650 x\r\n",
        b"250x\r\n",
        b"250-a\r\n251 b\r\n",
        b"2" * 5000,
        b"250-a\r\n" * (MAX_LINES + 1),
    ],
)
def test_what_is_no_reply(wire: bytes) -> None:
    with pytest.raises(ReplyError):
        ReplyReader().feed(wire)


def test_a_reply_without_text() -> None:
    assert ReplyReader().feed(b"250\r\n") == [Reply(250, "", "")]


def test_every_kind_of_error_has_its_reply() -> None:
    assert set(replies.BY_KIND) == set(Kind)
    for kind, (code, enhanced) in replies.BY_KIND.items():
        assert (code < 500) == (kind in TEMPORARY), kind
        assert enhanced[0] == str(code)[0], kind
        reply = replies.refusal(MailError(kind, "because"))
        assert reply.text == "Because"
