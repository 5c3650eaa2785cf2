"""systemd: inherited sockets (sd_listen_fds) and notifications (sd_notify)."""

from __future__ import annotations

import os
import socket

FIRST_DESCRIPTOR = 3


def inherited() -> dict[str, list[int]]:
    """Return the descriptors that systemd passed, by FileDescriptorName=."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    for index in range(count):
        name = names[index] if index < len(names) and names[index] else "unknown"
        found.setdefault(name, []).append(FIRST_DESCRIPTOR + index)
    return found


def notify(state: str) -> None:
    """Tell the service manager ("READY=1", "STOPPING=1", "WATCHDOG=1"), if any."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
        try:
            to.connect(address)
            to.sendall(state.encode())
        except OSError:
            return  # the manager is gone: nothing to tell it


def watchdog_interval() -> float:
    """Return the seconds between WATCHDOG=1 messages; 0 when none are wanted."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(os.environ.get("WATCHDOG_USEC", "0")) / 2_000_000
