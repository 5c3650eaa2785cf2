"""MIME messages: nothing makes the scanner fail, and what it yields is valid."""

from __future__ import annotations

from mailserverd.mail import mime
from mailserverd.mail.octets import Windows
from mailserverd.mail.scanner import scan
from mailserverd.mail.transfer import TransferDecoder
from tests.lib.mail_checks import check_parsed

SEEDS = [
    b"",
    b"\r\n",
    b"From: a@b\r\nSubject: =?utf-8?q?x=C3=A9?= =?utf-8?b?eA==?=\r\n\r\nbody\r\n",
    b"Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n\r\nx\r\n--a\r\n"
    b"Content-Type: multipart/alternative; boundary=ab\r\n\r\n--ab\r\n\r\ny\r\n--ab--"
    b"\r\n--a\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\nz\r\n--a--\r\n",
    b"Content-Type: multipart/digest; boundary=a\n\n--a\n\nFrom: x\n\ny\n--a--\n",
    b"Content-Type: text/html; charset=utf-7; name*0*=utf-8''%41; name*1=b\r\n"
    b"Content-Transfer-Encoding: quoted-printable\r\nContent-Language: de, en\r\n"
    b'Content-Disposition: attachment; filename="=?utf-8?q?a?="\r\n'
    b"Content-ID: <x>\r\nContent-Description: d\r\n\r\n<p>=41&amp;<!-- x --><b>y</b>",
    b"Content-Transfer-Encoding: base64\r\n\r\nQUJD\r\nREVG\r\nQQ==\r\nQg==\r\n",
    b"Content-Transfer-Encoding: x-uue\r\n\r\nbegin 644 x\r\n#04)#\r\n`\r\nend\r\n",
    b"Date: Fri, 21 Nov 1997 09:55:06 -0600\r\nMessage-ID: <a@b>\r\nReferences: <c@d>"
    b"\r\nTo: Friends: a@b, c@d;\r\nAuto-Submitted: auto-replied\r\n\r\n",
]


def fuzz_one(data: bytes) -> None:
    """Parse and check; a large message takes the same way through windows."""
    parsed = check_parsed(data)
    through_windows = scan(Windows(memoryview(data)))
    found = [
        (e.section, e.header_start, e.body_start, e.body_end)
        for e in through_windows.entities
    ]
    assert found == [
        (p.section, p.header_start, p.body_start, p.body_end) for p in parsed.parts
    ]
    for part in parsed.parts:
        body = data[part.body_start : part.body_end]
        mime.decode_transfer(body, part.encoding)
        decoder = TransferDecoder(part.encoding)
        for start in range(0, len(body), 7):
            decoder.feed(body[start : start + 7])
        decoder.finish()
