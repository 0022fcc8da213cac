"""What keeper and template said before they ended is heard, also if they left something unread."""

from __future__ import annotations

import errno
import socket

import pytest

from pytest_nsisolate.core import wire
from pytest_nsisolate.core.linux.syscalls import LINUX
from pytest_nsisolate.core.messages import FAILED, MESSAGE, PACKETS
from pytest_nsisolate.runner.servers.template_client import Template
from pytest_nsisolate.sandbox.client import KeeperGone, Maker

pytestmark = pytest.mark.skipif(not LINUX, reason="Linux only")


@pytest.mark.parametrize("unread", [0, 1])
def test_of_the_template(unread: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, PACKETS)
    template = Template(0, ours)
    if unread:
        template.kill(1, 9)
    theirs.send(MESSAGE.pack(FAILED, 0, errno.EMFILE) + b"start the template")
    theirs.close()
    assert template.receive() == (FAILED, 0, errno.EMFILE, b"start the template")
    with pytest.raises(EOFError):
        template.receive()
    ours.close()


@pytest.mark.parametrize("unread", [0, 1])
def test_of_the_keeper(unread: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    maker = Maker(ours)
    if unread:
        maker.ask(1, 0)
    theirs.send(wire.encode("failed", [-1, "mount", errno.EPERM, "/proc"]))
    theirs.close()
    assert maker.receive() == ("failed", [-1, "mount", errno.EPERM, "/proc"], [])
    with pytest.raises(KeeperGone):
        maker.receive()
    ours.close()
