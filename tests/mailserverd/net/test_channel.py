"""Messages with descriptors between two processes."""

from __future__ import annotations

import os
import socket

import pytest

from mailserverd.net.channel import LARGEST, Channel


def test_messages_keep_their_order_and_bring_descriptors() -> None:
    one, other = Channel.pair()
    with socket.socket() as sock:
        assert one.send(("first", 1))
        assert one.send("second", [sock.fileno()])
    assert other.receive() == (("first", 1), [])
    received = other.receive()
    assert received is not None
    message, (descriptor,) = received
    assert message == "second"
    os.close(descriptor)
    with pytest.raises(BlockingIOError):
        other.receive()
    one.close()
    assert other.receive() is None
    assert not other.send("nobody listens")
    other.close()


def test_nothing_waits_for_who_does_not_read() -> None:
    one, other = Channel.pair()
    sent = 0
    while one.send("x" * 10_000):
        sent += 1
        assert sent < 10_000
    assert other.receive() == ("x" * 10_000, [])
    assert not one.send("x" * (LARGEST + 1))
    one.close()
    other.close()
