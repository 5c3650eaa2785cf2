"""ENVELOPE, BODYSTRUCTURE and BODY."""

from __future__ import annotations

import pytest

from mailserverd.mail import mime
from mailserverd.mail.imap_wire import nstring, string
from tests.lib import imap_syntax
from tests.lib.mail_checks import check_parsed


def test_envelope_of_rfc_3501() -> None:
    """The example session of RFC 3501 section 8."""
    raw = (
        b"Date: Wed, 17 Jul 1996 02:23:25 -0700 (PDT)\r\n"
        b"From: Terry Gray <gray@cac.washington.edu>\r\n"
        b"Subject: IMAP4rev1 WG mtg summary and minutes\r\n"
        b"To: imap@cac.washington.edu\r\n"
        b"cc: minutes@CNRI.Reston.VA.US, John Klensin <KLENSIN@MIT.EDU>\r\n"
        b"Message-Id: <B27397-0100000@cac.washington.edu>\r\n"
        b"MIME-Version: 1.0\r\n"
        b"Content-Type: TEXT/PLAIN; CHARSET=US-ASCII\r\n\r\n"
    )
    gray = b'(("Terry Gray" NIL "gray" "cac.washington.edu"))'
    assert mime.parse(raw).envelope == (
        b'("Wed, 17 Jul 1996 02:23:25 -0700 (PDT)" '
        b'"IMAP4rev1 WG mtg summary and minutes" '
        + gray
        + b" "
        + gray
        + b" "
        + gray
        + b' ((NIL NIL "imap" "cac.washington.edu")) '
        b'((NIL NIL "minutes" "CNRI.Reston.VA.US")'
        b'("John Klensin" NIL "KLENSIN" "MIT.EDU")) NIL NIL '
        b'"<B27397-0100000@cac.washington.edu>")'
    )


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        (b"", b'""'),
        (b"plain", b'"plain"'),
        (b'a"b\\c', b'"a\\"b\\\\c"'),
        (b"a\r\nb\x00c", b'"abc"'),
        (b"caf\xc3\xa9", b"{5}\r\ncaf\xc3\xa9"),
        (b"tab\tbell\x07", b'"tab\tbell\x07"'),
        (b"x" * 1001, b"{1001}\r\n" + b"x" * 1001),
    ],
)
def test_strings(text: bytes, wire: bytes) -> None:
    assert string(text) == wire


def test_absent_is_nil_and_empty_is_not() -> None:
    assert nstring(None) == b"NIL"
    assert nstring("") == b"NIL"
    absent = imap_syntax.envelope(mime.parse(b"X: y\r\n\r\n").envelope)
    assert absent == [None] * 10
    empty = imap_syntax.envelope(
        mime.parse(b"Date:\r\nSubject: \r\nFrom:\r\nMessage-ID:\r\n\r\n").envelope
    )
    assert empty[:3] == [b"", b"", None]
    assert empty[9] == b""


def test_sender_and_reply_to_default_to_from() -> None:
    raw = b"From: a@b\r\nSender:\r\nReply-To: c@d\r\n\r\n"
    values = imap_syntax.envelope(mime.parse(raw).envelope)
    author = [[None, None, b"a", b"b"]]
    assert values[2:5] == [author, author, [[None, None, b"c", b"d"]]]


def test_groups_and_odd_addresses() -> None:
    raw = b"To: g: a@b;, x, =?utf-8?q?=C3=A9?= <\xc3\xa9@f>\r\n\r\n"
    assert imap_syntax.envelope(mime.parse(raw).envelope)[5] == [
        [None, None, b"g", None],
        [None, None, b"a", b"b"],
        [None, None, None, None],
        [None, None, b"x", b""],
        [b"=?utf-8?q?=C3=A9?=", None, b"\xc3\xa9", b"f"],
    ]


FULL = (
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
    b"Content-Type: text/plain; charset=utf-8; format=flowed\r\n"
    b"Content-Transfer-Encoding: 8BIT\r\nContent-ID: <id@x>\r\n"
    b"Content-Description: a text\r\nContent-MD5: Q2hlY2s=\r\n"
    b"Content-Language: en, de\r\nContent-Location: http://x/\r\n"
    b"Content-Disposition: inline; filename*=utf-8''%c3%a9.txt\r\n\r\nx\r\ny\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\nz\r\n--b--\r\n"
)


NO_ENVELOPE = b'(NIL "in" NIL NIL NIL NIL NIL NIL NIL NIL)'


def test_bodystructure_with_extension_data() -> None:
    text = (
        b'("text" "plain" ("charset" "utf-8" "format" "flowed") "<id@x>" "a text"'
        b' "8bit" 4 2 "Q2hlY2s=" ("inline" ("filename*" "utf-8\'\'%C3%A9.txt"))'
        b' ("en" "de") "http://x/")'
    )
    inner = (
        b'("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 1 1 NIL NIL NIL NIL)'
    )
    message = b'("message" "rfc822" NIL NIL NIL "7bit" 16 %b %b 3 NIL NIL NIL NIL)'
    assert mime.parse(FULL).bodystructure == b'(%b%b "mixed" %b NIL NIL NIL)' % (
        text,
        message % (NO_ENVELOPE, inner),
        b'("boundary" "b")',
    )


def test_body_leaves_extension_data_out() -> None:
    parsed = check_parsed(FULL)
    text = (
        b'("text" "plain" ("charset" "utf-8" "format" "flowed") "<id@x>" "a text"'
        b' "8bit" 4 2)'
    )
    inner = b'("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 1 1)'
    message = b'("message" "rfc822" NIL NIL NIL "7bit" 16 %b %b 3)'
    assert mime.render_body(mime.load_parts(parsed.part_table)) == (
        b'(%b%b "mixed")' % (text, message % (NO_ENVELOPE, inner))
    )


def test_unparsed_message_has_valid_syntax() -> None:
    raw = (
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nQQ=="
    )
    tree = imap_syntax.bodystructure(check_parsed(raw).bodystructure)
    assert tree[7] == [None] * 10


@pytest.mark.parametrize(
    "wire",
    [
        b'("a" "b")',
        b'("a" "b" NIL NIL NIL "7bit" 1 NIL NIL NIL NIL) ',
        b'("text" "b" NIL NIL NIL "7bit" 1 NIL NIL NIL NIL)',
        b'("a\r\n" "b" NIL NIL NIL "7bit" 1 NIL NIL NIL NIL)',
        b'("a\xc3" "b" NIL NIL NIL "7bit" 1 NIL NIL NIL NIL)',
        b'( "mixed" NIL NIL NIL NIL)',
        b'("a" "b" () NIL NIL "7bit" 1 NIL NIL NIL NIL)',
        b'("a" {3}\r\nb NIL NIL NIL "7bit" 1 NIL NIL NIL NIL)',
    ],
)
def test_the_checker_itself_refuses(wire: bytes) -> None:
    with pytest.raises(SyntaxError):
        imap_syntax.bodystructure(wire)
