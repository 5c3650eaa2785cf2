"""The daemon's life: what happens to it at once."""

from __future__ import annotations

import dataclasses
import re
import signal
import socket
import time
from typing import TYPE_CHECKING

from mailserverd.app.daemon import kept
from mailserverd.settings import read
from tests.lib import daemon

if TYPE_CHECKING:
    import pathlib

    from mailserverd.settings import Settings

MANY = 40


def free_ports(count: int) -> list[int]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def test_a_stop_during_a_reload_drains(tmp_path: pathlib.Path) -> None:
    """Listeners that came and went under the drain made it fail, and cut off mail."""
    ours = daemon.make(tmp_path / "ours", "alice@example.test:pass word")
    config = (ours.home / "mailserverd.toml").read_text()
    own = "".join(re.findall(r"\[\[listener\]\]\n(?:\w.*\n)+", config))
    more = "".join(
        f'[[listener]]\nprotocol = "imap"\naddress = "127.0.0.1:{port}"\n'
        for port in free_ports(MANY)
    )
    ours.override(own + more)
    ours.start()
    ours.override(own)
    assert ours.process is not None
    ours.process.send_signal(signal.SIGHUP)
    assert ours.stop() == 0
    assert "Traceback" not in ours.log()
    closed = [e["address"] for e in ours.events("stopped-listening")]
    assert len(closed) == len(set(closed)) == MANY + len(daemon.OFFSETS)


def test_settings_that_need_a_restart_are_named_until_it_comes(
    tmp_path: pathlib.Path,
) -> None:
    ours = daemon.make(tmp_path / "ours", "alice@example.test:pass word")
    with daemon.running(ours):
        assert ours.process is not None
        for count, (drain, needed) in enumerate(
            (
                (3, None),
                (3, ["limits.password_memory", "server.hostname"]),
                (4, ["limits.password_memory", "server.hostname"]),
                (4, None),
            ),
            start=1,
        ):
            kept = 'hostname = "b.test"\n[limits]\npassword_memory = 9000000\n'
            ours.override(f"[server]\ndrain = {drain}\n{kept if needed else ''}")
            before = len(ours.events("restart-needed"))
            ours.process.send_signal(signal.SIGHUP)
            while len(ours.events("reloaded")) < count:
                assert ours.process.poll() is None
                time.sleep(0.02)
            said = ours.events("restart-needed")[before:]
            assert [sorted(one["settings"]) for one in said] == [needed] * bool(needed)


def test_what_needs_a_restart_is_kept_for_processes_that_start_later(
    tmp_path: pathlib.Path,
) -> None:
    def written(text: str) -> Settings:
        (tmp_path / "mailserverd.toml").write_text(text)
        return read(tmp_path / "mailserverd.toml")

    started = written('[server]\nhostname = "a.test"\nworkers = 2\n')
    fresh = written(
        '[server]\nhostname = "b.test"\nworkers = 4\ndrain = 3\ndata_dir = "d"\n'
        "[dns]\ntimeout = 1\n[limits]\ncommand_rate = 7\npassword_memory = 1000\n"
    )
    settings = kept(started, fresh)
    assert settings.server == dataclasses.replace(started.server, drain=3)
    assert (settings.storage, settings.dns) == (started.storage, started.dns)
    assert settings.limits == dataclasses.replace(started.limits, command_rate=7)
