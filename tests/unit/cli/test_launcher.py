"""The channel between a run and its launcher."""

from __future__ import annotations

import socket

from pytest_nsisolate.cli import launcher
from pytest_nsisolate.core import wire


def test_last_message_of_one_that_left_a_signal_unread() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            ours.send(wire.encode("signal", 15))
            theirs.send(wire.encode("stopped", 19))
            theirs.send(wire.encode("ended", [0, 0.0, 0.0, 0]))
        assert launcher.receive(ours) == ("stopped", 19)
        assert launcher.receive(ours) == ("ended", [0, 0.0, 0.0, 0])
        assert launcher.receive(ours) == ("gone", None)
