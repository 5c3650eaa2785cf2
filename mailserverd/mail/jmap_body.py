"""How JMAP divides a message into bodies and attachments (RFC 8621 section 4.1.4)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mailserverd.mail.imap_wire import children_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.mail.model import Part

_MEDIA = frozenset({"image", "audio", "video"})
_BODY_TEXT = frozenset({"plain", "html"})


@dataclasses.dataclass(frozen=True, slots=True)
class Bodies:
    """Indexes into the part table; no multipart and nothing of enclosed messages."""

    text: tuple[int, ...]
    html: tuple[int, ...]
    attachments: tuple[int, ...]


def split_bodies(parts: Sequence[Part]) -> Bodies:
    """Divide the parts as the algorithm of RFC 8621 section 4.1.4 does."""
    if len(parts) == 1 and parts[0].type == "text" and _is_body(parts[0]):
        return _ONE_TEXT
    splitter = _Splitter(parts)
    splitter.walk([0], "mixed", False, splitter.text, splitter.html)
    return Bodies(
        tuple(splitter.text), tuple(splitter.html), tuple(splitter.attachments)
    )


_ONE_TEXT = Bodies((0,), (0,), ())


def has_attachment(parts: Sequence[Part], bodies: Bodies) -> bool:
    """Whether a client should show the message as having attachments.

    True when an attachment is not ``Content-Disposition: inline``; a part with a
    Content-ID inside multipart/related is an embedded image and does not count.
    """
    return any(
        parts[index].disposition != "inline" and not _embedded(parts, parts[index])
        for index in bodies.attachments
    )


def _embedded(parts: Sequence[Part], part: Part) -> bool:
    return (
        part.type == "image"
        and part.content_id != ""
        and part.disposition == ""
        and part.parent >= 0
        and parts[part.parent].subtype == "related"
    )


def _is_body(part: Part) -> bool:
    """Whether the part can be shown in a body: its type and disposition allow it."""
    return part.disposition != "attachment" and (
        part.type in _MEDIA or (part.type == "text" and part.subtype in _BODY_TEXT)
    )


class _Splitter:
    """``parseStructure`` of RFC 8621; a list that is None takes nothing more."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._children = children_of(parts)
        self.text: list[int] = []
        self.html: list[int] = []
        self.attachments: list[int] = []

    def walk(
        self,
        indexes: list[int],
        multipart: str,
        in_alternative: bool,
        text: list[int] | None,
        html: list[int] | None,
    ) -> None:
        """Sort the parts of one multipart into the lists."""
        text_length = -1 if text is None else len(text)
        html_length = -1 if html is None else len(html)
        for position, index in enumerate(indexes):
            part = self._parts[index]
            if part.type == "multipart":
                inside = in_alternative or part.subtype == "alternative"
                self.walk(self._children[index], part.subtype, inside, text, html)
            elif not self._is_inline(part, position, multipart):
                self.attachments.append(index)
            elif multipart == "alternative":
                self._alternative(index, part, text, html)
            else:
                if in_alternative and part.type == "text":
                    text, html = (
                        (text, None) if part.subtype == "plain" else (None, html)
                    )
                self._show(index, part, text, html)
        if multipart == "alternative" and text is not None and html is not None:
            _fill_in(text, text_length, html, html_length)

    @staticmethod
    def _is_inline(part: Part, position: int, multipart: str) -> bool:
        if not _is_body(part):
            return False
        return position == 0 or (
            multipart != "related" and (part.type in _MEDIA or not part.filename)
        )

    def _alternative(
        self, index: int, part: Part, text: list[int] | None, html: list[int] | None
    ) -> None:
        lists = {"text/plain": text, "text/html": html}
        wanted = lists.get(f"{part.type}/{part.subtype}")
        if wanted is None:  # media, or a list that takes nothing more
            self.attachments.append(index)
        else:
            wanted.append(index)

    def _show(
        self, index: int, part: Part, text: list[int] | None, html: list[int] | None
    ) -> None:
        if text is not None:
            text.append(index)
        if html is not None:
            html.append(index)
        hidden = text is None and html is None  # the algorithm would lose it
        if hidden or (part.type in _MEDIA and (text is None or html is None)):
            self.attachments.append(index)


def _fill_in(
    text: list[int], text_length: int, html: list[int], html_length: int
) -> None:
    """An alternative in one form only is shown in both lists."""
    if text_length == len(text) and html_length != len(html):
        text.extend(html[html_length:])
    elif html_length == len(html) and text_length != len(text):
        html.extend(text[text_length:])
