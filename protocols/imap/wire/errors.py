"""The grammar's own errors: the only ones that any input can cause."""

from __future__ import annotations


class WireError(Exception):
    """The peer broke the grammar: answered with tagged BAD and this text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
