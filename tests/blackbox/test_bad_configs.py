"""A folder per mistake: ``run`` names file, line and remedy, exits 78, starts nothing.

``expected.txt`` is what standard error says, with ``DIR`` for the folder.  Beside each
file lie ``good.pem`` with ``good.key``, and ``other.key`` of another certificate.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from mailserverd.cli.selfsigned import self_signed
from tests.lib.daemon import COMMAND, ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDERS = sorted(
    path for path in (pathlib.Path(__file__).parent / "bad_configs").iterdir()
)
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
) -> Mapping[str, subprocess.CompletedProcess[str]]:
    """Run all of them, two at once."""
    base = tmp_path_factory.mktemp("bad_configs")
    certificate, key = self_signed("mail.example.test")
    _, other = self_signed("mail.example.test")

    def run(folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
        home = base / folder.name
        shutil.copytree(folder, home)
        for name, data in (
            ("good.pem", certificate),
            ("good.key", key),
            ("other.key", other),
        ):
            (home / name).write_bytes(data)
        before = set(home.rglob("*"))
        done = subprocess.run(
            [*COMMAND, "run", "--config", str(home / "mailserverd.toml")],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert set(home.rglob("*")) == before, "something was written"
        done.stderr = done.stderr.replace(str(home), "DIR")
        return done

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = pool.map(run, FOLDERS)
        return {f.name: o for f, o in zip(FOLDERS, done, strict=True)}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_mistake_is_named_and_nothing_starts(
    outcomes: Mapping[str, subprocess.CompletedProcess[str]], folder: pathlib.Path
) -> None:
    done = outcomes[folder.name]
    assert done.stderr == (folder / "expected.txt").read_text()
    assert done.returncode == os.EX_CONFIG
    assert not done.stdout
