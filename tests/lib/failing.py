"""Engines that fail: always, by chance, or after the work was done.

Callers are run on them to see that a failure becomes a temporary error of the right
kind, that nothing is answered which was not stored, and nothing is done twice.
"""

from __future__ import annotations

import random

from mailserverd.core.errors import Kind, MailError

MODES = ("always", "sometimes", "after")


class Failing:
    """Wraps an engine; calls of the named coroutine methods fail.

    ``mode`` "always" fails before anything is done, "sometimes" by chance, "after"
    does the work and then fails, as when an answer is lost.
    """

    def __init__(self, inner, mode, kind=Kind.UNAVAILABLE, seed=1):
        self._inner = inner
        self.mode = mode
        self.kind = kind
        self.failed = 0
        self._rng = random.Random(seed)

    def _fail(self):
        self.failed += 1
        raise MailError(self.kind, "made to fail")

    async def _call(self, name, *args):
        if self.mode == "always" or (
            self.mode == "sometimes" and self._rng.random() < 0.5
        ):
            self._fail()
        result = await getattr(self._inner, name)(*args)
        if self.mode == "after":
            self._fail()
        return result

    async def close(self):
        """Close what is wrapped: that always works."""
        await self._inner.close()


class FailingBlobStore(Failing):
    """A ``BlobStore`` that fails."""

    async def put(self, data):
        return await self._call("put", data)

    async def put_file(self, file, size):
        return await self._call("put_file", file, size)

    async def read(self, ref, start=0, end=None):
        return await self._call("read", ref, start, end)

    async def stream(self, ref, start=0, end=None):
        chunks = [chunk async for chunk in self._inner.stream(ref, start, end)]
        for chunk in chunks:
            if self.mode != "after" or chunk is chunks[-1]:
                await self._call("read", ref, 0, 0)
            yield chunk

    def expect(self, change):
        self._inner.expect(change)


class FailingSearchIndex(Failing):
    """A ``SearchIndex`` that fails."""

    async def search(self, account, query):
        return await self._call("search", account, query)

    async def update(self, account, documents, removed, since, watermark):
        await self._call("update", account, documents, removed, since, watermark)

    async def watermark(self, account):
        return await self._call("watermark", account)

    async def drop(self, account):
        return await self._call("drop", account)
