"""Bodies and attachments as RFC 8621 section 4.1.4 divides them."""

from __future__ import annotations

import json

import pytest

from mailserverd.mail import mime
from mailserverd.mail.jmap_body import split_bodies
from tests.lib.mail_checks import check_parsed

Tree = "str | tuple[str, list[Tree]]"


def entity(tree: str | tuple[str, list[object]], number: list[int]) -> bytes:
    """Write "type[; header]" leaves and (type, children) multiparts as MIME."""
    if isinstance(tree, str):
        kind, _, extra = tree.partition("|")
        lines = [f"Content-Type: {kind}", *filter(None, extra.split("|"))]
        return "\r\n".join(lines).encode() + b"\r\n\r\ntext"
    number[0] += 1
    boundary = f"b{number[0]}"
    parts = [entity(child, number) for child in tree[1]]  # type: ignore[arg-type]
    delimiter = f"\r\n--{boundary}\r\n".encode()
    return (
        f"Content-Type: multipart/{tree[0]}; boundary={boundary}\r\n\r\n".encode()
        + b"".join(delimiter + part for part in parts)
        + f"\r\n--{boundary}--".encode()
    )


def sections(tree: str | tuple[str, list[object]]) -> tuple[list[str], ...]:
    parts = check_parsed(entity(tree, [0])).parts
    bodies = split_bodies(parts)
    return tuple(
        [mime.part_id(parts[i]) for i in found]
        for found in (bodies.text, bodies.html, bodies.attachments)
    )


INLINE = "|Content-Disposition: inline"
ATTACHED = "|Content-Disposition: attachment"


def test_the_example_of_the_rfc() -> None:
    tree = (
        "mixed",
        [
            "text/plain" + INLINE,  # A: 1
            (
                "mixed",
                [
                    (
                        "alternative",
                        [
                            (
                                "mixed",
                                [
                                    "text/plain" + INLINE,  # B: 2.1.1.1
                                    "image/jpeg" + INLINE,  # C: 2.1.1.2
                                    "text/plain" + INLINE,  # D: 2.1.1.3
                                ],
                            ),
                            ("related", ["text/html", "image/jpeg"]),  # E F: 2.1.2.*
                        ],
                    ),
                    "image/jpeg" + ATTACHED,  # G: 2.2
                    "application/x-excel",  # H: 2.3
                    "message/rfc822",  # J: 2.4
                ],
            ),
            "text/plain" + INLINE,  # K: 3
        ],
    )
    a, b, c, d, e, f = "1", "2.1.1.1", "2.1.1.2", "2.1.1.3", "2.1.2.1", "2.1.2.2"
    g, h, j, k = "2.2", "2.3", "2.4", "3"
    assert sections(tree) == ([a, b, c, d, k], [a, e, k], [c, f, g, h, j])


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ("text/plain", (["1"], ["1"], [])),
        ("text/html", (["1"], ["1"], [])),
        ("image/png", (["1"], ["1"], [])),
        ("application/pdf", ([], [], ["1"])),
        ("text/plain" + ATTACHED, ([], [], ["1"])),
        ("text/calendar", ([], [], ["1"])),
        (("alternative", ["text/plain", "text/html"]), (["1"], ["2"], [])),
        (("alternative", ["text/html"]), (["1"], ["1"], [])),
        (("alternative", ["text/plain"]), (["1"], ["1"], [])),
        (
            ("alternative", ["text/plain", "text/html", "text/calendar"]),
            (["1"], ["2"], ["3"]),
        ),
        (("mixed", ["text/plain", "text/plain; name=x"]), (["1"], ["1"], ["2"])),
        (("mixed", ["text/plain; name=x", "text/plain"]), (["1", "2"], ["1", "2"], [])),
        (("mixed", ["text/plain", "image/png"]), (["1", "2"], ["1", "2"], [])),
        (("related", ["text/html", "image/png"]), (["1"], ["1"], ["2"])),
        # The algorithm would lose the second part here.
        (
            ("alternative", [("mixed", ["text/plain", "text/html"])]),
            (["1.1"], ["1.1"], ["1.2"]),
        ),
    ],
)
def test_divisions(
    tree: str | tuple[str, list[object]], expected: tuple[list[str], ...]
) -> None:
    assert sections(tree) == expected


@pytest.mark.parametrize(
    ("tree", "attached"),
    [
        ("text/plain", False),
        (("mixed", ["text/plain", "application/pdf"]), True),
        (("mixed", ["text/plain", "application/pdf" + INLINE]), False),
        (("related", ["text/html", "image/png|Content-ID: <x>"]), False),
        (("related", ["text/html", "image/png"]), True),
        (("related", ["text/html", "image/png|Content-ID: <x>" + ATTACHED]), True),
    ],
)
def test_has_attachment(tree: str | tuple[str, list[object]], attached: bool) -> None:
    parsed = check_parsed(entity(tree, [0]))
    assert parsed.has_attachment is attached
    assert json.loads(parsed.list_json)["hasAttachment"] is attached
