"""Forward ports of the host's loopback to sandboxes: control the relay, and set up the inside.

The sockets are made in the sandbox by its test process, while it is parked, and handed to the
relay (`relay`) through a channel that every fork of the template has, and closes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from pytest_nsisolate.core import bare_process
from pytest_nsisolate.core.errors import StageError

from .relay import END, OFFER

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from pytest_nsisolate.spec.parsing import Forward

#: The module that the relay runs.
RELAY = "pytest_nsisolate.network.uplink.relay"
#: How long the relay may take to answer, in seconds.
_LIMIT = 10


def _pair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise StageError("start the relay", error.errno or errno.EIO) from None


class Relay:
    """Starts the relay, and again if it has been killed.

    Raises:
        StageError: it can't be started.
    """

    def __init__(self) -> None:
        # The relay's end is held here too: what was offered while there is none waits.
        self.channel, self._offers = _pair()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except StageError:
            self.close()
            raise

    def start(self) -> None:
        """Start it if it does not run."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._control is not None:
            self._control.close()
        self._control, theirs = _pair()
        fds = theirs.fileno(), self._offers.fileno()
        try:
            self._process = bare_process.start(RELAY, *fds, os.getpid(), pass_fds=fds)
        except OSError as error:
            raise StageError("start the relay", error.errno or errno.EIO, sys.executable) from None
        finally:
            theirs.close()

    def end(self, number: int) -> None:
        """End the ports and connections of the sandbox with the attempt of that number."""
        if self._control is not None:
            with contextlib.suppress(OSError):  # killed: they have ended
                self._control.send(END.pack(number))

    def descriptors(self) -> list[int]:
        """Return the descriptors that no test may have, without the channel."""
        own = [self._offers.fileno()]
        return own + ([self._control.fileno()] if self._control is not None else [])

    def close(self) -> None:
        """End it."""
        for one in (self._control, self.channel, self._offers):
            if one is not None:
                one.close()
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


def offer(channel: int, number: int, forwards: Sequence[Forward]) -> None:
    """Make the ports, inside a sandbox, and have the relay serve them; they are ready then.

    Raises:
        StageError: which could not be made.
    """
    found: list[tuple[int, socket.socket]] = []
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        for one in forwards:
            for family, loopback in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                sock = _bound(family, loopback, one.inside)
                if sock is not None:
                    found.append((one.outside, sock))
        ports = b"".join(port.to_bytes(2, sys.byteorder) for port, _ in found)
        message = OFFER.pack(number, len(found)) + ports
        fds = [*(sock.fileno() for _, sock in found), theirs.fileno()]
        with socket.socket(fileno=os.dup(channel)) as offers:
            socket.send_fds(offers, [message], fds)
        theirs.close()
        mine.settimeout(_LIMIT)
        if not mine.recv(1):
            raise OSError(errno.EPIPE, "")  # noqa: TRY301 -- as if it had been said by the system
    except OSError as error:
        raise StageError("have the relay serve a port", error.errno or errno.ETIMEDOUT) from None
    finally:
        for sock in (mine, theirs, *(sock for _, sock in found)):
            sock.close()


def _bound(family: socket.AddressFamily, loopback: str, port: int) -> socket.socket | None:
    """Bind a socket, which refuses connections until it listens; return None without IPv6."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((loopback, port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL and family == socket.AF_INET6:
            return None
        where = f"{loopback} port {port}"
        raise StageError("open a forwarded port", error.errno or errno.EIO, where) from None
    return sock
