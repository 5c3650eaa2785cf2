"""A ``SearchIndex`` in memory: the contract at its plainest."""

from __future__ import annotations

import contextlib
from array import array

from mailserverd.core.errors import Kind, MailError
from storage.search.whoosh.wire import check_query
from storage.text import Hits, Text, fields_of, unpack


class MemoryIndex:
    """Keeps each account's words; ``fails`` is raised by every call when set."""

    def __init__(self):
        self.kept = {}
        self.marks = {}
        self.updates = []
        self.fails = None

    def _check(self):
        if self.fails is not None:
            raise self.fails

    async def search(self, account, query):
        self._check()
        check_query(query)
        kept = self.kept.get(account, {})
        found = sorted(key for key, text in kept.items() if text.matches(query))
        return Hits(array("Q", found), self.marks.get(account, 0))

    async def update(self, account, documents, removed, since, watermark):
        self._check()
        if since != self.marks.get(account, 0):
            raise MailError(Kind.CONFLICT)
        self.updates.append((account, len(documents), tuple(removed), watermark))
        kept = self.kept.setdefault(account, {})
        for key, packed in documents:
            with contextlib.suppress(ValueError):  # what cannot be read has no words
                kept[key] = Text(fields_of(*unpack(packed)))
        for key in removed:
            kept.pop(key, None)
        self.marks[account] = watermark

    async def watermark(self, account):
        self._check()
        return self.marks.get(account, 0)

    async def drop(self, account):
        self._check()
        self.kept.pop(account, None)
        self.marks.pop(account, None)

    async def close(self):
        pass
