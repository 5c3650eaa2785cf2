"""The example file and the systemd units are those of this release."""

from __future__ import annotations

import configparser
import pathlib
import re
import shlex
import shutil
import subprocess
import tomllib

import click
import pytest
from click.testing import CliRunner

from mailserverd.cli import main
from mailserverd.cli.init import PUBLIC_PORTS, configuration
from mailserverd.settings import PROTOCOLS

ROOT = pathlib.Path(__file__).parents[3]
UNITS = sorted(
    path
    for path in (ROOT / "systemd").iterdir()
    if path.suffix in {".service", ".socket"}
)


def test_the_example_file_is_generated_from_the_settings() -> None:
    """``mailserverd config example > etc/mailserverd.toml`` makes it anew."""
    printed = CliRunner().invoke(main, ["config", "example"])
    assert printed.exit_code == 0
    assert printed.output == (ROOT / "etc/mailserverd.toml").read_text()


def test_the_example_file_lacks_nothing_but_the_certificate() -> None:
    path = str(ROOT / "etc/mailserverd.toml")
    checked = CliRunner().invoke(main, ["config", "check", "--config", path])
    lines = checked.output.splitlines()
    assert len(lines) == 2, lines
    assert all(
        "/etc/mailserverd/tls/" in line and "not a readable file" in line
        for line in lines
    )


def test_the_example_file_opens_the_ports_that_init_opens() -> None:
    example = tomllib.loads((ROOT / "etc/mailserverd.toml").read_text())
    made = tomllib.loads(configuration("mail.example.org", None))
    assert example["listener"] == made["listener"]
    assert len(made["listener"]) == len(PUBLIC_PORTS)


def test_every_default_in_the_example_file_is_what_it_says(
    tmp_path: pathlib.Path,
) -> None:
    """Switching on the lines that are commented out changes nothing."""
    text = (ROOT / "etc/mailserverd.toml").read_text()
    active = re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    assert active != text
    tomllib.loads(active)
    for name, content in (("plain", text), ("active", active)):
        cut = re.sub(r"\[\[certificate\]\](.|\n)*?(?=\n\[)", "", content)
        without_tls = cut.replace("starttls", "none").replace("implicit", "none")
        (tmp_path / f"{name}.toml").write_text(without_tls)
    found = [
        CliRunner().invoke(
            main, ["config", "diff", "--json", "--config", str(tmp_path / name)]
        )
        for name in ("plain.toml", "active.toml")
    ]
    assert found[0].exit_code == 0, found[0].output
    assert found[0].output == found[1].output


# --- systemd -------------------------------------------------------------------------


def unit(path: pathlib.Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
def test_systemd_finds_nothing_wrong_with_the_units() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, UNITS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    ours = [line for line in done.stderr.splitlines() if "mailserverd" in line]
    assert ours == []


def test_units_call_commands_and_options_that_exist() -> None:
    service = unit(ROOT / "systemd/mailserverd.service")["Service"]
    for key in ("ExecStartPre", "ExecStart"):
        words = shlex.split(service[key])
        arguments = words[words.index("mailserverd") + 1 :]
        command: click.Command = main
        context = click.Context(main)
        while isinstance(command, click.Group):
            found = command.get_command(context, arguments.pop(0))
            assert found is not None, service[key]
            command = found
        command.make_context("test", arguments)  # UsageError for what does not exist
    assert service["Type"] == "notify"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_the_stop_time_of_the_unit_is_longer_than_the_drain() -> None:
    service = unit(ROOT / "systemd/mailserverd.service")["Service"]
    example = (ROOT / "etc/mailserverd.toml").read_text()
    drain = re.search(r"^# drain = (\d+)$", example, re.MULTILINE)
    assert drain is not None
    assert int(service["TimeoutStopSec"].removesuffix("s")) > 2 * int(drain[1])


def test_sockets_are_named_as_the_documentation_says() -> None:
    """``address = "systemd:NAME"``: NAME is the part of the file name."""
    names = set()
    for path in UNITS:
        if path.suffix != ".socket":
            continue
        socket = unit(path)["Socket"]
        name = path.stem.removeprefix("mailserverd-")
        assert socket["FileDescriptorName"] == name
        assert socket["Service"] == "mailserverd.service"
        names.add(name)
    singular = {name.removesuffix("s") if name != "https" else "http" for name in names}
    assert singular <= set(PROTOCOLS)
