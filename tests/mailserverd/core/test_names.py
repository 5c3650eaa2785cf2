from __future__ import annotations

from mailserverd.core.names import a_labels


def test_a_labels() -> None:
    assert a_labels("MÜNCHEN.example.") == "xn--mnchen-3ya.example"
    assert a_labels("_DMARC.Example.org") == "_dmarc.example.org"
    assert a_labels("-.xn--.") == "-.xn--"
    assert a_labels("ü" * 70) is None
