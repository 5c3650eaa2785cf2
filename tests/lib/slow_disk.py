"""A daemon on a disk whose syncs take longer, and how many syncs it made.

strace holds a thread up at the exit of fsync and fdatasync alone (a filter in the
kernel lets everything else pass), as a slow device would.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tests.lib.trace import ended

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

    from tests.lib.daemon import Daemon

SYNCS = "fsync,fdatasync"


@contextlib.contextmanager
def slow(
    daemon: Daemon, delay: float, output: pathlib.Path
) -> Iterator[Callable[[], int]]:
    """Run a daemon with ``delay`` seconds more per sync; yields a function that
    returns how many syncs there were so far."""
    inject = ()
    if delay:
        inject = ("-e", f"inject={SYNCS}:delay_exit={round(delay * 1e6)}")
    wrapper = ("strace", "-D", "-f", "--seccomp-bpf", "-e", "signal=none")
    daemon.start(wrapper=(*wrapper, "-e", f"trace={SYNCS}", *inject, "-o", str(output)))

    def count() -> int:
        with output.open("rb") as file:  # the exit of a call that others interrupted
            return sum(b"sync(" in line for line in file)

    with ended(daemon):
        yield count
