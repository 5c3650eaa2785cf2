"""Starts a program as systemd would: bound sockets from descriptor 3 on.

    python activation.py smtp=127.0.0.1:2525 imap=127.0.0.1:1143 -- program arguments

``exec`` keeps the process id that LISTEN_PID names.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys

FIRST = 3


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    names, held = [], []
    for argument in arguments[:split]:
        name, _, address = argument.partition("=")
        host, _, port = address.rpartition(":")
        sock = socket.create_server((host, int(port)))
        held.append(fcntl.fcntl(sock.detach(), fcntl.F_DUPFD, 100))  # out of the way
        names.append(name)
    for index, descriptor in enumerate(held):
        os.dup2(descriptor, FIRST + index, inheritable=True)
        os.close(descriptor)
    os.environ |= {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(len(names)),
        "LISTEN_FDNAMES": ":".join(names),
    }
    program = arguments[split + 1 :]
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
