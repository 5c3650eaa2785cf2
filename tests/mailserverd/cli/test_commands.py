"""Every command, beside a running daemon and on the data itself.

They run in this process, which is what makes them many; ``tests/blackbox`` calls the
installed command and looks at the effects over the wire.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

from mailserverd.cli import common, main, storage_cmd
from tests.lib import daemon
from tests.lib.clients import Smtp

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from click.testing import Result

pytestmark = pytest.mark.timeout(120)
ALICE, CAROL = "alice@example.test", "carol@second.test"
SECRET = "a secret that nobody logs"
BESIDE, ALONE = "beside a daemon", "without a daemon"
# in this order; {id} is a message that waits in the queue
SCENARIO = (
    ("config", "check"),
    ("config", "diff"),
    ("config", "example"),
    ("domain", "add", "second.test"),
    ("domain", "list"),
    ("domain", "dns", "second.test"),
    ("account", "add", f"{CAROL}:{SECRET}", "--name", "Carol", "--quota", "5 MB"),
    ("account", "list"),
    ("account", "list", "--domain", "second.test"),
    ("account", "passwd", f"{CAROL}:{SECRET}2"),
    ("account", "app-password", CAROL, "phone"),
    ("account", "app-password", CAROL, "phone", "--remove"),
    ("account", "quota", CAROL),
    ("account", "quota", CAROL, "0"),
    ("account", "quota", CAROL, "unlimited"),
    ("account", "enable", CAROL, "--off"),
    ("account", "enable", CAROL),
    ("domain", "postmaster", "second.test", CAROL),
    ("alias", "add", "sales@second.test", CAROL, "x@remote.test"),
    ("alias", "list"),
    ("queue", "list"),
    ("queue", "show", "{id}"),
    ("queue", "hold", "{id}"),
    ("queue", "release", "{id}"),
    ("queue", "retry", "all"),
    ("queue", "hold", "--domain", "remote.test"),
    ("storage", "status"),
    ("storage", "check"),
    ("storage", "check", "--repair"),
    ("storage", "blobs", "verify"),
    ("storage", "blobs", "stats"),
    ("storage", "blobs", "compact"),
    ("storage", "migrate"),
    ("queue", "cancel", "{id}"),
    ("alias", "remove", "sales@second.test"),
    ("account", "remove", CAROL),
    ("domain", "remove", "second.test"),
)
CHANGES = frozenset(
    {
        ("domain", "add"),
        ("domain", "remove"),
        ("account", "add"),
        ("account", "passwd"),
        ("account", "app-password"),
        ("account", "quota"),
        ("account", "enable"),
        ("account", "remove"),
        ("domain", "postmaster"),
        ("alias", "add"),
        ("alias", "remove"),
        ("queue", "hold"),
        ("queue", "release"),
        ("queue", "retry"),
        ("queue", "cancel"),
        ("storage", "migrate"),
        ("storage", "check"),
        ("storage", "blobs", "compact"),
    }
)


class World:
    """An instance with one message in its queue; ``run`` calls a command."""

    def __init__(self, ours: daemon.Daemon, where: str) -> None:
        self.ours = ours
        self.where = where
        self.id = ""

    def run(self, *args: str, stdin: str = "") -> Result:
        arguments = [arg.format(id=self.id) if arg == "{id}" else arg for arg in args]
        return CliRunner().invoke(
            main, [*arguments, "--config", self.ours.config], input=stdin
        )

    def ok(self, *args: str, stdin: str = "") -> Any:
        done = self.run(*args, "--json", stdin=stdin)
        assert done.exit_code == 0, (args, done.output, done.exception)
        return json.loads(done.stdout)

    def state(self) -> list[Any]:
        """Return all that commands may change, as far as they show it."""
        lists = [("domain",), ("account",), ("alias",)]
        return [self.ok(*name, "list") for name in lists] + [self.queue()]

    def queue(self) -> Any:
        rows = self.ok("queue", "list")
        for row in rows:
            for to in row["recipients"]:  # attempts go on beside us
                held = to["state"] == "held"
                to |= {"state": held, "attempts": 0, "next_attempt": 0, "reply": ""}
                to |= {"status": "", "mta": ""}
        return rows

    def dump(self) -> str:
        """Return the whole content of the databases."""
        lines: list[str] = []
        for path in sorted((self.ours.home / "data").glob("*.db")):
            with contextlib.closing(sqlite3.connect(path)) as database:
                lines += database.iterdump()
        return "\n".join(lines)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A stopped instance, with a message for nobody that can be reached."""
    ours = daemon.make(
        tmp_path_factory.mktemp("commands") / "ours", f"{ALICE}:{SECRET}"
    )
    ours.override('[dns]\nservers = ["127.0.0.1:9"]\ntimeout = "200ms"\n')
    world = World(ours, ALONE)
    with daemon.running(ours):
        with Smtp(ours.port(587)) as smtp:
            smtp.secure()
            assert smtp.login(ALICE, SECRET)[0] == 235
            raw = f"From: {ALICE}\r\nSubject: away\r\n\r\n".encode()
            code, text = smtp.message(raw, "x@remote.test", sender=ALICE)
            assert code == 250, text
        until = time.monotonic() + 20
        while not attempted(world):
            assert time.monotonic() < until, world.ok("queue", "list")
            time.sleep(0.05)
    return world


def attempted(world: World) -> bool:
    (row,) = world.ok("queue", "list")
    world.id = row["id"]
    return bool(row["recipients"][0]["attempts"])


@pytest.fixture(params=[BESIDE, ALONE])
def world(
    request: pytest.FixtureRequest, template: World, tmp_path: pathlib.Path
) -> Iterator[World]:
    shutil.copytree(
        template.ours.home, tmp_path / "ours", ignore=shutil.ignore_patterns("*.sock")
    )
    made = World(daemon.Daemon(tmp_path / "ours", template.ours.base), request.param)
    made.id = template.id
    if made.where == ALONE:
        yield made
        return
    with daemon.running(made.ours):
        yield made
    log = made.ours.log()
    assert SECRET not in log
    assert "Traceback" not in log, log


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[Any]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


def test_the_scenario_calls_every_command() -> None:
    known = {path for path, _ in leaves(main)} - {("init",), ("run",)}
    called = {path for path in known for step in SCENARIO if step[: len(path)] == path}
    assert called == known


def test_every_command_has_the_common_options() -> None:
    for path, command in leaves(main):
        options = {option for p in command.params for option in p.opts}
        assert "--json" in options, path
        assert "--config" in options or path == ("init",), path
        assert ("--dry-run" in options) is (path in CHANGES or path == ("init",)), path
        assert command.help or path[0] == "queue", path


def test_every_command_answers_in_json(world: World) -> None:
    before = world.state()
    for step in SCENARIO:
        done = world.run(*step, "--json")
        if step == ("storage", "migrate") and world.where == BESIDE:
            assert done.exit_code == os.EX_TEMPFAIL
            assert json.loads(done.stdout)["error"]["kind"] == "UNAVAILABLE"
            continue
        assert done.exit_code == 0, (step, done.output, done.exception)
        assert done.stderr == "", step
        json.loads(done.stdout)
    after = world.state()
    assert after[:3] == before[:3]
    assert (len(before[3]), after[3]) == (1, [])


def test_every_command_speaks_plainly(world: World) -> None:
    """Tables and sentences; secrets only where one was made."""
    for step in SCENARIO:
        if step == ("storage", "migrate") and world.where == BESIDE:
            continue
        done = world.run(*step)
        assert done.exit_code == 0, (step, done.output, done.exception)
        assert done.stdout, step
        assert SECRET not in done.output, step
        assert not done.stdout.startswith(("{", "[")) or step[1] == "example", step


def test_the_status_counts_accounts(world: World) -> None:
    rows = {row["name"]: row for row in world.ok("storage", "status")}
    assert rows["shard-0"]["accounts"] == len(world.ok("account", "list")) > 0


def test_the_status_shows_what_cannot_be_opened(world: World) -> None:
    if world.where == BESIDE:
        return
    (world.ours.home / "data/queue.db").unlink()
    done = world.run("storage", "status", "--json")
    assert done.exit_code == 1
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert "migrate" in rows["queue"]["problem"]
    assert rows["shard-0"]["accounts"] > 0
    assert [name for name, row in rows.items() if row["problem"]] == ["queue"]


def test_a_dry_run_changes_nothing(world: World) -> None:
    before = world.state() if world.where == BESIDE else world.dump()
    steps = [
        ("domain", "add", "second.test"),
        ("domain", "remove", "example.test", "--force"),
        ("account", "add", f"carol@example.test:{SECRET}"),
        ("account", "passwd", f"{ALICE}:other"),
        ("account", "app-password", ALICE, "phone"),
        ("account", "quota", ALICE, "1 MB"),
        ("account", "enable", ALICE, "--off"),
        ("domain", "postmaster", "example.test", ALICE),
        ("account", "remove", ALICE),
        ("alias", "add", "sales@example.test", ALICE),
        ("queue", "hold", "{id}"),
        ("queue", "release", "{id}"),
        ("queue", "retry", "all"),
        ("queue", "cancel", "--domain", "remote.test"),
        ("storage", "migrate"),
    ]
    for step in steps:
        if step == ("storage", "migrate") and world.where == BESIDE:
            continue
        done = world.run(*step, "--dry-run", "--json")
        assert done.exit_code == 0, (step, done.output, done.exception)
        told = json.loads(done.stdout)
        if step[:2] == ("account", "quota"):
            assert told["quota"] == 1000000
        plain = world.run(*step, "--dry-run")
        assert plain.exit_code == 0, (step, plain.output, plain.exception)
        assert plain.stdout.startswith("dry run, nothing is changed"), step
        if step[:2] == ("account", "quota"):
            assert "of 1000000" in plain.stdout
    assert (world.state() if world.where == BESIDE else world.dump()) == before


REFUSALS = (
    (("account", "add", f"x@nowhere.test:{SECRET}"), os.EX_NOUSER),
    (("account", "add", f"{ALICE}:{SECRET}"), os.EX_CANTCREAT),
    (("account", "add", f"no address:{SECRET}"), os.EX_USAGE),
    (("account", "add", f"@example.test:{SECRET}"), os.EX_USAGE),
    (("account", "remove", "x@example.test"), os.EX_NOUSER),
    (("account", "passwd", f"x@example.test:{SECRET}"), os.EX_NOUSER),
    (("account", "quota", ALICE, "much"), os.EX_USAGE),
    (("account", "quota", ALICE, "-5"), os.EX_USAGE),
    (("account", "app-password", ALICE, "none", "--remove"), os.EX_NOUSER),
    (("alias", "add", ALICE, "x@remote.test"), os.EX_CANTCREAT),
    (("alias", "add", "x@example.test", "y@example.test"), os.EX_USAGE),
    (("alias", "add", "x@example.test"), os.EX_USAGE),
    (("alias", "add", "*@example.test", ALICE), os.EX_USAGE),
    (("account", "app-password", ALICE, "two\nlines"), os.EX_USAGE),
    (("account", "add", f"x@example.test:{SECRET}", "--name", "\t"), os.EX_USAGE),
    (("domain", "postmaster", "example.test", "x@example.test"), os.EX_USAGE),
    (("alias", "remove", "x@example.test"), os.EX_NOUSER),
    (("domain", "add", "example.test"), os.EX_CANTCREAT),
    (("domain", "add", "not a domain"), os.EX_USAGE),
    (("domain", "remove", "nowhere.test"), os.EX_NOUSER),
    (("domain", "dns", "nowhere.test"), os.EX_NOUSER),
    (("queue", "show", "nosuch"), os.EX_NOUSER),
    (("queue", "cancel", "nosuch"), os.EX_NOUSER),
    (("queue", "hold"), os.EX_USAGE),
    (("queue", "hold", "all", "--domain", "x.test"), os.EX_USAGE),
    (("account", "frobnicate"), os.EX_USAGE),
    (("frobnicate",), os.EX_USAGE),
)


def test_refusals_have_sysexits_codes(world: World) -> None:
    before = world.state()
    for step, code in REFUSALS:
        plain, as_json = world.run(*step), world.run(*step, "--json")
        assert (plain.exit_code, as_json.exit_code) == (code, code), (
            step,
            plain.output,
            as_json.output,
            plain.exception,
        )
        assert plain.stderr.strip(), step
        assert plain.stdout == "", step
        assert SECRET not in plain.output + as_json.output, step
        if as_json.stdout:
            assert json.loads(as_json.stdout)["error"]["text"], step
    assert world.state() == before


def test_a_domain_with_accounts_is_removed_only_by_force(world: World) -> None:
    done = world.run("domain", "remove", "example.test")
    assert done.exit_code == os.EX_DATAERR
    assert "--force" in done.stderr, done.stderr
    assert len(world.ok("account", "list")) == 1
    world.ok("domain", "remove", "example.test", "--force")
    assert world.ok("account", "list") == []
    assert world.ok("domain", "list") == []


def test_passwords_come_from_files_and_standard_input(
    world: World, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "password"
    file.write_text(f"{SECRET} from a file\nanother line\n")
    given = [
        world.ok("account", "add", "f@example.test", "--password-file", str(file)),
        world.ok("account", "add", "i@example.test", stdin=f"{SECRET} from input\n"),
    ]
    assert all("password" not in result for result in given)
    made = world.ok("account", "add", "g@example.test")
    assert len(made["password"]) >= 16
    shown = world.run("account", "passwd", "g@example.test")
    assert shown.stdout.startswith("g@example.test  password ")


@pytest.mark.parametrize("content", [b"", b"\nsecond line\n", b"\xff\xfe\n"])
def test_a_password_file_without_a_password_is_refused(
    content: bytes, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    done = CliRunner().invoke(
        main, ["account", "add", "f@example.test", "--password-file", str(file)]
    )
    assert done.exit_code == os.EX_USAGE, (done.output, done.exception)
    assert "--password-file" in done.stderr
    assert str(file) in done.stderr.replace("\n", "")


def test_times_are_shown_as_times(world: World) -> None:
    shown = world.run("queue", "show", "{id}").stdout
    for key in ("created", "expires"):
        assert re.search(rf"^{key} +\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\dZ$", shown, re.M)


def test_tables_show_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets and colons are text, whoever wrote them."""
    cells = ("[mx.example.org] :smile:", "no tag [/x] opens")
    common.table(("NAME", "REPLY"), [cells])
    shown = capsys.readouterr().out
    assert all(cell in shown for cell in cells), shown


def test_a_database_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    for problem in ("no answer in time", "blobs: no answer in time"):
        storage_cmd._complain({"name": "blobs", "problem": problem})
    assert capsys.readouterr().err == "blobs: no answer in time\n" * 2


def test_a_wrong_configuration_has_its_own_code(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mailserverd.toml"
    for step in SCENARIO:
        if step == ("config", "example"):
            continue
        done = CliRunner().invoke(main, [*step, "--config", str(path)])
        assert done.exit_code == os.EX_CONFIG, (step, done.output)
        assert f"{path}: (file): cannot be read" in done.stderr, step
