"""Every mistake at once, each with its file, line and what would be right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mailserverd.config.example import example
from mailserverd.config.load import ConfigError, load
from mailserverd.settings import Settings, read

if TYPE_CHECKING:
    import pathlib

GOOD = """
[server]
hostname = "mail.example.org"
data_dir = "data"
[[listener]]
protocol = "smtp"
address = "127.0.0.1:2525"
"""


def problems(path: pathlib.Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(path)
    return [str(p).replace(str(path.parent) + "/", "") for p in caught.value.problems]


def write(tmp_path: pathlib.Path, text: str, name: str = "m.toml") -> pathlib.Path:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_minimal_file_gets_its_defaults(tmp_path: pathlib.Path) -> None:
    settings = read(write(tmp_path, GOOD))
    assert settings.server.data_dir == str(tmp_path / "data")
    assert settings.storage.shards == (f"sqlite:///{tmp_path}/data/shard-0.db",)
    assert settings.inbound.max_message_size == 50_000_000


def test_all_mistakes_are_reported_with_their_lines(tmp_path: pathlib.Path) -> None:
    text = (
        "[server]\n"
        'hostname = "not a name"\n'
        "wrkers = 3\n"
        "[[listener]]\n"
        'protocol = "smtp"\n'
        'address = "0.0.0.0"\n'
        "[outbound]\n"
        'retry_min = "soon"\n'
        "[inbund]\n"
    )
    found = problems(write(tmp_path, text))
    assert [line.split(": ")[:2] for line in found] == [
        ["m.toml:9", "inbund"],
        ["m.toml:3", "server.wrkers"],
        ["m.toml:2", "server.hostname"],
        ["m.toml:6", "listener[1].address"],
        ["m.toml:8", "outbound.retry_min"],
    ]
    assert 'did you mean "inbound"?' in found[0]
    assert 'did you mean "workers"?' in found[1]
    assert '"30s", "5m"' in found[4]


@pytest.mark.parametrize(
    ("key", "url", "why"),
    [
        ("blobs", "s3://", "must name a bucket"),
        ("blobs", "s3://mail?endpoint=s3.example.net", "must be a URL such as https"),
        ("blobs", "s3://mail?wait=1s", 'no option "wait"'),
        ("blobs", "file:", "must name a path"),
        ("queue", "sqlite:///", "must name a file"),
        ("queue", "postgresql+asyncpg://h/d?sslmode=on", "must be one of disable"),
        ("queue", "postgresql+asyncpg://h/d?prepared=0", "must be one of on, off"),
        ("search", "whoosh:", "must name a path"),
    ],
)
def test_a_url_that_cannot_be_meant_is_reported(
    key: str, url: str, why: str, tmp_path: pathlib.Path
) -> None:
    (found,) = problems(write(tmp_path, f'{GOOD}[storage]\n{key} = "{url}"\n'))
    assert found.startswith(f"m.toml:9: storage.{key}: ")
    assert why in found


def test_urls_with_options_are_taken(tmp_path: pathlib.Path) -> None:
    urls = {
        "blobs": "s3://mail/a/b?endpoint=https://s3.example.net&region=eu&window=0.1s",
        "queue": "postgresql+asyncpg://u:p%40@h/d?sslmode=verify-full&prepared=off",
        "directory": "postgresql+asyncpg:///d?host=/run/postgresql&user=mail",
    }
    lines = "".join(f'{key} = "{url}"\n' for key, url in urls.items())
    storage = read(write(tmp_path, f"{GOOD}[storage]\n{lines}")).storage
    assert {key: getattr(storage, key) for key in urls} == urls


def test_drop_ins_override_key_by_key_and_are_blamed_for_their_faults(
    tmp_path: pathlib.Path,
) -> None:
    main = write(tmp_path, GOOD)
    drop = tmp_path / "conf.d/10-more.toml"
    drop.parent.mkdir()
    drop.write_text('[outbound]\nport = 2026\n[server]\nlog_level = "debug"\n')
    settings = read(main)
    assert (settings.outbound.port, settings.server.log_level) == (2026, "debug")
    assert settings.server.hostname == "mail.example.org"
    drop.write_text("\n\n[outbound]\nport = 0\n")
    assert problems(main) == [
        "conf.d/10-more.toml:4: outbound.port: "
        "must be a whole number from 1 to 65535 (it is 0)"
    ]


def test_a_value_may_come_from_a_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "name").write_text("mail.example.net\n")
    text = GOOD.replace('"mail.example.org"', '{ file = "name" }')
    assert read(write(tmp_path, text)).server.hostname == "mail.example.net"
    (tmp_path / "name").unlink()
    assert "cannot read name" in problems(write(tmp_path, text))[0]


def test_broken_toml_names_its_line(tmp_path: pathlib.Path) -> None:
    assert problems(write(tmp_path, "[server]\nhostname = \n"))[0].startswith(
        "m.toml:2:"
    )
    missing = tmp_path / "none.toml"
    assert "cannot be read" in problems(missing)[0]


def test_plaintext_passwords_are_for_loopback_alone(tmp_path: pathlib.Path) -> None:
    text = GOOD.replace("127.0.0.1", "0.0.0.0") + "[limits]\nplaintext_auth = true\n"
    assert "loopback alone" in problems(write(tmp_path, text))[0]


def test_tls_needs_a_certificate_that_exists(tmp_path: pathlib.Path) -> None:
    text = GOOD + 'tls = "starttls"\n'
    assert "needs a [[certificate]]" in problems(write(tmp_path, text))[0]
    text += '[[certificate]]\ncertificate = "no.pem"\nkey = "no.key"\n'
    assert "no.pem is not a readable file" in problems(write(tmp_path, text))[0]


def test_the_example_is_valid_and_shows_every_key(tmp_path: pathlib.Path) -> None:
    text = example(Settings, "intro")
    path = write(tmp_path, text)
    for name in ("fullchain.pem", "privkey.pem"):
        (tmp_path / name).write_text("x")
    text = text.replace("/etc/mailserverd/tls/", f"{tmp_path}/")
    path.write_text(text)
    assert load(Settings, path).server.hostname == "mail.example.org"
    uncommented = "\n".join(
        line[2:]
        if line.startswith("# ") and " = " in line and "(" not in line
        else line
        for line in text.splitlines()
    )
    path.write_text(uncommented.replace('tls = "none"', 'tls = "starttls"'))
    load(Settings, path)
