"""Start the keeper's process with as few imports as possible.

A session does so before it imports the rest: on another core, the keeper comes up meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys

from pytest_nsisolate.core import bare_process
from pytest_nsisolate.core.errors import StageError

#: The module that the keeper runs; the command line of a keeper, and of each PID 1, names it.
KEEPER = "pytest_nsisolate.sandbox.keeper"


class KeeperProcess:
    """The process, not yet spoken with, and the runner's end of the socket to it.

    Raises:
        StageError: it can't be started.
    """

    def __init__(self) -> None:
        try:
            self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise StageError.of("start the keeper", error) from None
        fd = theirs.fileno()
        try:
            self._process = bare_process.start(KEEPER, fd, os.getpid(), pass_fds=[fd])
        except OSError as error:
            self.socket.close()
            raise StageError.of("start the keeper", error, sys.executable) from None
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Its pid, that of the outer one of the keeper's two processes."""
        return self._process.pid

    def wait(self) -> int:
        """Wait for its end; return its exit code, or the negative number of a signal."""
        return self._process.wait()

    def close(self) -> None:
        """End it, and with it every sandbox that is left; again is no error."""
        self.socket.close()
        with contextlib.suppress(OSError):  # the end of the socket is its end as well
            self._process.kill()
        self._process.wait()

    def let_go(self) -> None:
        """Leave it to the other process that has its socket."""
        self.socket.close()
        self._process.returncode = 0  # its end is not waited for, and that is no oversight


def start_ahead(stack: contextlib.ExitStack) -> KeeperProcess | None:
    """Start the process and have *stack* end it; return None if it can't be started.

    The error is reported when the keeper is needed and started then.
    """
    if sys.platform != "linux":
        return None
    try:
        process = KeeperProcess()
    except StageError:
        return None
    stack.callback(process.close)
    return process
