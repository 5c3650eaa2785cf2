"""Where a message waits: memory within bounds, then a file."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.services import spool as module
from mailserverd.services.spool import MEMORY, Spool
from tests.lib.mailhost import offload

if TYPE_CHECKING:
    import pathlib


def test_small_stays_in_memory() -> None:
    async def main() -> None:
        spool = Spool(offload)
        await spool.write(b"a")
        await spool.write(b"b" * 1000)
        assert spool.in_memory
        assert await spool.content() == b"a" + b"b" * 1000
        spool.close()
        spool.close()

    before = Spool.total
    asyncio.run(main())
    assert Spool.total == before


def test_large_goes_to_a_file_and_can_be_rewritten(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        spool = Spool(offload, str(tmp_path / "made"))
        for _ in range(10):
            await spool.write(b"0123456789" * 10_000)
        assert not spool.in_memory
        assert Spool.total - before <= MEMORY
        content = await spool.content()
        assert len(content) == spool.size == 10**6
        file, view = await spool.rewritten(b"head", 999_990)
        assert view[:] == b"head0123456789"
        file.close()
        spool.close()
        assert list((tmp_path / "made").iterdir()) == []  # unlinked from the start

    before = Spool.total
    asyncio.run(main())
    assert Spool.total == before


def test_many_together_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET", 500_000)

    async def main() -> None:
        spools = [Spool(offload) for _ in range(20)]
        for spool in spools:
            await spool.write(b"x" * 100_000)
        assert Spool.total - before <= 500_000 + 100_000
        for spool in spools:
            assert len(await spool.content()) == 100_000
            spool.close()

    before = Spool.total
    asyncio.run(main())
    assert Spool.total == before


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, Kind.STORAGE_FULL), (errno.EIO, Kind.UNAVAILABLE)],
)
def test_a_full_disk_is_temporary(
    monkeypatch: pytest.MonkeyPatch, number: int, kind: Kind
) -> None:
    def failing(_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(module, "_temporary", failing)

    async def main() -> None:
        spool = Spool(offload)
        with pytest.raises(MailError) as caught:
            await spool.write(b"x" * 300_000)
        assert caught.value.kind is kind
        assert caught.value.temporary
        spool.close()

    asyncio.run(main())
