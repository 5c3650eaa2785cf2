"""What must hold for every parsed message, whatever its octets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mailserverd.mail import mime
from mailserverd.mail.jmap_body import split_bodies
from tests.lib import imap_syntax

if TYPE_CHECKING:
    from mailserverd.mail.model import ParsedMessage

LIST_PROPERTIES = {
    "messageId",
    "inReplyTo",
    "references",
    "sender",
    "from",
    "to",
    "cc",
    "bcc",
    "replyTo",
    "subject",
    "sentAt",
    "hasAttachment",
    "preview",
}


def check_parsed(raw: bytes) -> ParsedMessage:
    """Parse; assert the syntax of the wire values and the consistency of the rest."""
    parsed = mime.parse(raw)
    envelope = imap_syntax.envelope(parsed.envelope)
    tree = imap_syntax.bodystructure(parsed.bodystructure)
    imap_syntax.bodystructure(mime.render_body(parsed.parts), extended=False)
    assert mime.load_parts(parsed.part_table) == parsed.parts
    assert parsed.size == len(raw)
    assert parsed.header_size == parsed.parts[0].body_start
    _check_offsets(parsed)
    _check_tree(parsed, 0, tree)
    _check_summary(parsed)
    assert (envelope[1] is None) == (json.loads(parsed.list_json)["subject"] is None)
    assert all(len(key) == 12 for key in parsed.thread_keys)
    for text in (parsed.search_text, parsed.search_headers, parsed.base_subject):
        text.encode()  # no lone surrogates
    assert len(parsed.search_text) <= 1 << 20
    return parsed


def _check_offsets(parsed: ParsedMessage) -> None:
    sections = set()
    for index, part in enumerate(parsed.parts):
        assert 0 <= part.header_start <= part.body_start <= part.body_end
        assert part.body_end <= parsed.size
        assert part.lines >= 0
        assert part.parent < index
        if index:
            parent = parsed.parts[part.parent]
            assert parent.body_start <= part.header_start
            assert part.body_end <= parent.body_end
        if not (part.nested and part.type == "multipart"):
            assert part.section not in sections, part.section
            sections.add(part.section)
            assert mime.find_part(parsed.parts, part.section) is part


def _check_tree(parsed: ParsedMessage, index: int, tree: list[object]) -> None:
    """BODYSTRUCTURE is the part table in another form."""
    part = parsed.parts[index]
    inside = [i for i, p in enumerate(parsed.parts) if p.parent == index and i != index]
    if part.type == "multipart":
        children = tree[0]
        assert isinstance(children, list)
        assert len(children) == len(inside)
        for child, subtree in zip(inside, children, strict=True):
            _check_tree(parsed, child, subtree)
        return
    assert tree[0] == part.type.encode()
    assert tree[6] == part.size
    if inside:
        assert part.type == "message"
        assert parsed.parts[inside[0]].nested
        body = tree[8]
        assert isinstance(body, list)
        _check_tree(parsed, inside[0], body)


def _check_summary(parsed: ParsedMessage) -> None:
    summary = json.loads(parsed.list_json)
    assert summary.keys() == LIST_PROPERTIES
    assert len(summary["preview"]) <= 256
    assert summary["hasAttachment"] == parsed.has_attachment
    bodies = split_bodies(parsed.parts)
    shown = {*bodies.text, *bodies.html, *bodies.attachments}
    for index, part in enumerate(parsed.parts):
        if not _enclosed(parsed, index) and part.type != "multipart":
            assert index in shown, part.section
        else:
            assert index not in shown, part.section


def _enclosed(parsed: ParsedMessage, index: int) -> bool:
    while index >= 0:
        if parsed.parts[index].nested:
            return True
        index = parsed.parts[index].parent
    return False
