"""Engines that fail: always, by chance, slowly, or after the work was done.

Callers are run on them to see that a failure becomes a temporary error of the right
kind, that nothing is answered which was not stored, and nothing is done twice.
"""

from __future__ import annotations

import asyncio
import random

from mailserverd.core.errors import Kind, MailError

MODES = ("always", "sometimes", "slowly", "after")
DELAY = 0.01  # seconds


class Failing:
    """Wraps an engine; its calls fail, or (``only``) those of the named methods.

    ``mode`` "always" fails before anything is done, "sometimes" by chance, "slowly"
    does the work after a while and answers after another, "after" does the work and
    then fails, as when an answer is lost.  "never" is the engine as it is.
    """

    def __init__(self, inner, mode="never", kind=Kind.UNAVAILABLE, seed=1):
        self._inner = inner
        self.mode = mode
        self.kind = kind
        self.delay = DELAY
        self.only = ()
        self.failed = 0  # calls that raised, or took their time
        self._rng = random.Random(seed)

    def _mode(self, name):
        return self.mode if not self.only or name in self.only else "never"

    def _chance(self):
        return self._rng.random() < 0.5

    def _fail(self):
        self.failed += 1
        raise MailError(self.kind, "made to fail")

    async def _before(self, mode):
        if mode == "always" or (mode == "sometimes" and self._chance()):
            self._fail()
        await self._take_time(mode)

    async def _after(self, mode):
        if mode == "after":
            self._fail()
        await self._take_time(mode)

    async def _take_time(self, mode):
        if mode == "slowly":
            self.failed += 1
            await asyncio.sleep(self._rng.uniform(0, self.delay))

    async def _call(self, name, *args):
        mode = self._mode(name)
        await self._before(mode)
        result = await getattr(self._inner, name)(*args)
        await self._after(mode)
        return result

    async def close(self):
        """Close what is wrapped: that always works."""
        await self._inner.close()


class FailingDatabase(Failing):
    """A ``Database`` that fails; a ``MailQueue`` on it is a queue that does."""

    def __init__(self, inner, *args, **how):
        super().__init__(inner, *args, **how)
        self.name, self.uuid = inner.name, inner.uuid

    async def write(self, work, account, args):
        return await self._call("write", work, account, args)

    async def read(self, work, account, args):
        return await self._call("read", work, account, args)

    def stuck_for(self):
        return self._inner.stuck_for()


class FailingStore(Failing):
    """A ``MetadataStore`` that fails."""

    async def write(self, access, work, args):
        return await self._call("write", access, work, args)

    async def read(self, access, work, args):
        return await self._call("read", access, work, args)

    def shard_of(self, account):
        return self._inner.shard_of(account)


class FailingBlobStore(Failing):
    """A ``SegmentStore`` that fails."""

    async def put(self, data):
        return await self._call("put", data)

    async def put_file(self, file, size):
        return await self._call("put_file", file, size)

    async def read(self, ref, start=0, end=None):
        return await self._call("read", ref, start, end)

    async def stream(self, ref, start=0, end=None):
        """Fail before the first chunk, between chunks, or after the last."""
        mode = self._mode("stream")
        await self._before(mode)
        async for chunk in self._inner.stream(ref, start, end):
            yield chunk
            await self._before(mode)
        await self._after(mode)

    def expect(self, change):
        self._inner.expect(change)

    async def segments(self):
        return await self._call("segments")

    async def list_blobs(self, segment):
        return await self._call("list_blobs", segment)

    async def rewrite(self, refs, rate=0):
        return await self._call("rewrite", refs, rate)

    async def remove_segment(self, segment):
        await self._call("remove_segment", segment)

    async def verify_segment(self, segment):
        return await self._call("verify_segment", segment)

    def stats(self):
        return self._inner.stats()


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


class FailingBus(Failing):
    """A ``Bus`` whose hints are lost (always, sometimes), late, or come twice (after).

    None of its methods ever raises: that is a bus's promise.
    """

    def publish(self, account, modseq):
        self._hint(self._inner.publish, account, modseq)

    def echo(self, account, modseq):
        self._hint(self._inner.echo, account, modseq)

    def _hint(self, tell, account, modseq):
        mode = self._mode("publish")
        if mode == "always" or (mode == "sometimes" and self._chance()):
            self.failed += 1
            return
        if mode in {"slowly", "after"}:
            self.failed += 1
            late = self._rng.uniform(0, self.delay)
            asyncio.get_running_loop().call_later(late, tell, account, modseq)
        if mode != "slowly":
            tell(account, modseq)

    def subscribe(self, account, callback):
        return self._inner.subscribe(account, callback)

    def watched(self):
        return self._inner.watched()

    def on_gap(self, callback):
        self._inner.on_gap(callback)

    @property
    def whole(self):
        return self._inner.whole


class FailingCache(Failing):
    """A ``Cache`` that forgets: at once, by chance, or what it had just taken."""

    def get(self, key):
        mode = self._mode("get")
        if mode == "always" or (mode == "sometimes" and self._chance()):
            self.failed += 1
            return None
        return self._inner.get(key)

    def put(self, key, value):
        if self._mode("put") == "after":
            self.failed += 1
            return
        self._inner.put(key, value)


WRAPPERS = {"blobs": FailingBlobStore, "bus": FailingBus}  # others are databases


class Faults:
    """The engines under a mail host: each may be made to fail, and to work again.

    ``faults[role]`` with roles "shard-0" ..., "queue", "directory", "blobs", "bus".
    """

    def __init__(self, seed=1):
        self._seed = seed
        self._engines = {}

    def wrap(self, role, engine):
        """Return an engine in whose place the host uses the one that may fail."""
        made = WRAPPERS.get(role, FailingDatabase)(engine, seed=self._seed)
        self._engines[role] = made
        return made

    def __getitem__(self, role):
        return self._engines[role]

    def set(self, mode, *roles, kind=Kind.UNAVAILABLE, only=()):
        """Let some (or all) engines fail in a way."""
        for role in roles or self._engines:
            engine = self._engines[role]
            engine.mode, engine.kind, engine.only = mode, kind, only

    def mend(self):
        """Let everything work."""
        self.set("never")

    @property
    def failed(self):
        """How many calls failed."""
        return sum(engine.failed for engine in self._engines.values())
