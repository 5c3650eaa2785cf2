"""How much an account may upload, and what that costs when it is too much."""

from __future__ import annotations

import asyncio

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.metadata import blobs
from tests.lib.office import ME, OTHER, mail, office


def test_a_refused_upload_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(blobs, "MAX_UPLOAD_OCTETS", 1000)

    async def run():
        async with office(tmp_path) as it:
            await it.messages.upload(ME, b"x" * 900, "text/plain")
            before = sum(f.stat().st_size for f in (tmp_path / "blobs").iterdir())
            for _ in range(3):
                with pytest.raises(MailError) as caught:
                    await it.messages.upload(ME, b"y" * 101, "text/plain")
                assert caught.value.kind is Kind.LIMIT
            after = sum(f.stat().st_size for f in (tmp_path / "blobs").iterdir())
            assert after == before
            await it.messages.upload(ME, b"z" * 100, "text/plain")
            await it.messages.upload(OTHER, b"y" * 101, "text/plain")

    asyncio.run(run())


def test_what_became_an_email_is_no_longer_counted(tmp_path, monkeypatch):
    """Else nobody could move more than a thousand messages here in a day."""
    monkeypatch.setattr(blobs, "MAX_UPLOADS", 3)

    async def run():
        async with office(tmp_path) as it:
            for number in range(10):
                raw = mail(f"message {number}")
                blob = await it.messages.upload(ME, raw, "message/rfc822")
                await it.add(raw, OTHER)
                await it.add(raw, ME)
                assert await it.messages.find_blob(ME, blob.hash)
            kept = [mail(f"draft {n}") for n in range(4)]
            for raw in kept[:3]:
                await it.messages.upload(ME, raw, "message/rfc822")
                await it.add(raw, OTHER)
            with pytest.raises(MailError):
                await it.messages.upload(ME, kept[3], "message/rfc822")

    asyncio.run(run())
