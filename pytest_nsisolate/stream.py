"""The frames' way out of a test process."""

import os
from typing import TYPE_CHECKING, Any

from . import child, wire

if TYPE_CHECKING:
    from collections.abc import Callable

# Bound now: a test may patch these names in their modules, and its reports are
# sent while the patch is on.
_fstat, _getpid, _write, _exit = os.fstat, os.getpid, os.write, os._exit

_MAX_WAITING = 1 << 16


class Stream:
    """The frames' way out. Bound to one process: a fork of the test sends nothing."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._pid = _getpid()
        self._identity = self._stat()
        self._waiting = b""

    def _stat(self) -> "tuple[int, int] | None":
        try:
            status = _fstat(self.fd)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    @property
    def mine(self) -> bool:
        """Whether this is the process the stream was made for."""
        return self._pid == _getpid()

    def send(self, kind: str, payload: object, *, more: bool = False) -> None:
        """Send one frame; with *more* it may wait for the next.

        A test that has closed the stream, or has something else at its number,
        can't report any more: the process ends, and the runner says so.
        """
        data = self._waiting + wire.encode(kind, payload)
        if more and len(data) < _MAX_WAITING:
            self._waiting = data
            return
        self._waiting = b""
        if not self.mine:
            # A fork of the test that came back here instead of exiting.
            _exit(0)
        if self._identity is None or self._stat() != self._identity:
            _exit(child.EXIT_UNREPORTED)
        view = memoryview(data)
        try:
            while view:
                view = view[_write(self.fd, view) :]
        except OSError:
            _exit(child.EXIT_UNREPORTED)


class TerminalFile:
    """What stands in for the terminal's file: writes become frames."""

    encoding = "utf-8"

    def __init__(self, send: "Callable[[str, object], None]", original: Any) -> None:
        self._send = send
        self._parts: list[str] = []
        self.isatty = getattr(original, "isatty", lambda: False)
        self.encoding = getattr(original, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        self._parts.append(text)
        return len(text)

    def flush(self) -> None:
        if self._parts:
            text = "".join(self._parts)
            self._parts.clear()
            self._send("write", text)
