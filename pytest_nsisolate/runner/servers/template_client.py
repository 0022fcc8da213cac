"""The runner's end of a template: request test processes, signal them, end the template."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.messages import END, KILL, MESSAGE, TEXT_LIMIT, pack_fork
from pytest_nsisolate.core.wire import last_words

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How long a template may take to end by itself, in seconds. It kills the processes of a
#: fork bomb first if the test had no namespaces.
_END_LIMIT = 20


class Template(NamedTuple):
    """A template's pid and the socket to it.

    A snapshot has one too: it is a child of another template, and its pid is not used.
    """

    pid: int
    socket: socket.socket

    def fork(self, number: int, item: int, flags: int, fds: list[int]) -> None:
        """Request a test process. The parameters are those of `messages.Order`."""
        self._post(pack_fork(number, item, flags), fds)

    def kill(self, number: int, signum: int) -> None:
        """Request a signal to a test process or its group; ignored once the process has ended."""
        self._post(MESSAGE.pack(KILL, number, signum))

    def tear_down(self, item: int) -> None:
        """Request that a snapshot tears down and ends."""
        self._post(MESSAGE.pack(END, 0, item))

    def _post(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message. If that fails, `receive` reports that the template is gone."""
        try:
            socket.send_fds(self.socket, [message], fds)
        except OSError:
            # Somebody waits for the answer to a lost message, so let both sides see an end.
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def receive(self) -> tuple[int, int, int, bytes]:
        """Receive a message: kind, number, value and text.

        Raises:
            EOFError: the template is gone.
        """
        try:
            data = last_words(lambda: self.socket.recv(MESSAGE.size + TEXT_LIMIT))
        except OSError:
            data = b""
        if len(data) < MESSAGE.size:
            raise EOFError
        return *MESSAGE.unpack_from(data), data[MESSAGE.size :]

    def end(self) -> None:
        """Close the socket, which ends the template, and reap it.

        The template reaps the test processes first: their sandboxes can't end before.
        """
        self.socket.close()
        deadline = time.monotonic() + _END_LIMIT
        while True:
            try:
                pid, _ = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                return
            if pid:
                return
            if time.monotonic() > deadline:
                with contextlib.suppress(OSError):
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                return
            time.sleep(0.001)
