"""Parameters of an EmailSubmission's envelope: no client adds others by them."""

from __future__ import annotations

import pytest

from mailserverd.mail.dsn import decode_orcpt, decode_xtext
from protocols.jmap.submission import read_envelope
from protocols.smtp.client import Features, mail_command, rcpt_command

DSN = Features({"DSN": ""})


@pytest.mark.parametrize("text", ["plain", "a b", "x AUTH=<b@c>", "a+b=c", "+20"])
def test_parameters_are_encoded(text: str) -> None:
    """RFC 8621 section 7: xtext is removed in JMAP, so it is put on again."""
    to = {"email": "b@x.test", "parameters": {"orcpt": f"rfc822;{text}"}}
    sender = {"email": "a@x.test", "parameters": {"ENVID": text}}
    wanted = read_envelope({"mailFrom": sender, "rcptTo": [to]}, 10).envelope
    mail = mail_command(wanted, DSN, size=1, eight_bit=False)
    words = mail.split(" ")
    assert len(words) == 3, mail
    assert decode_xtext(words[2].removeprefix("ENVID=")) == text
    words = rcpt_command(wanted.recipients[0], DSN).split(" ")
    assert len(words) == 3, words
    kind, _, address = words[2].removeprefix("ORCPT=").partition(";")
    assert decode_orcpt(kind, address) == text


def test_utf8_original_recipients() -> None:
    to = {"email": "b@x.test", "parameters": {"ORCPT": "utf-8;a b=c+d\\@x.test"}}
    given = {"mailFrom": {"email": ""}, "rcptTo": [to]}
    (recipient,) = read_envelope(given, 10).envelope.recipients
    assert recipient.orcpt == "utf-8;a\\x{20}b\\x{3D}c\\x{2B}d\\x{5C}@x.test"
    assert decode_orcpt("utf-8", recipient.orcpt[6:]) == "a b=c+d\\@x.test"
