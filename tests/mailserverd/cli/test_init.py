"""``mailserverd init`` says what is wrong, and leaves nothing behind then."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from mailserverd.cli import main

if TYPE_CHECKING:
    import pathlib


def test_without_a_name_it_asks_for_one(tmp_path: pathlib.Path) -> None:
    done = CliRunner().invoke(main, ["init", str(tmp_path / "new")])
    assert done.exit_code == os.EX_USAGE, (done.output, done.exception)
    assert "--hostname" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/mailserverd"])
def test_a_place_that_cannot_be_written_is_named(
    place: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").touch()
    path = str(tmp_path / place)
    done = CliRunner().invoke(main, ["init", path, "--hostname", "mail.example.org"])
    assert done.exit_code in {os.EX_CANTCREAT, os.EX_NOPERM}, done.exception
    assert path in done.stderr, done.output
    assert (tmp_path / "file").is_file()


def test_a_dry_run_writes_nothing_and_speaks_json(tmp_path: pathlib.Path) -> None:
    new = tmp_path / "new"
    call = ["init", str(new), "--domain", "example.org", "--dry-run"]
    plain = CliRunner().invoke(main, call)
    as_json = CliRunner().invoke(main, [*call, "--json"])
    assert json.loads(as_json.stdout)["text"] == plain.stdout
    assert 'hostname = "mail.example.org"' in plain.stdout
    assert not new.exists()
