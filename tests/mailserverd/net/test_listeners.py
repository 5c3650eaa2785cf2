"""Sockets to listen on, or the reason why not."""

from __future__ import annotations

import resource
import socket

import pytest

from mailserverd.net.listeners import ListenError, sockets


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_a_socket_accepts(address: str) -> None:
    (sock,) = sockets(address)
    with sock, socket.create_connection(sock.getsockname()[:2], 5):
        pass


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenError, match=f"{address}: Address already in use"):
            sockets(address)


def test_a_socket_that_cannot_be_made_is_no_other_error() -> None:
    """As where the kernel has no IPv6: a reload has to refuse, not to fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(ListenError, match=r":0: Too many open files"):
            sockets("127.0.0.1:0")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
