"""The frames' way out of a test process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core import wire

from . import forked

if TYPE_CHECKING:
    from collections.abc import Callable

# Bound now: a test may patch these names in their modules, and its reports are
# sent while the patch is on.
_fstat, _getpid, _write, _exit = os.fstat, os.getpid, os.write, os._exit

_MAX_WAITING = 1 << 16
#: What is told at once of a text that is only to be shown, in characters.
AT_ONCE = wire.LONG - 1


class Stream:
    """The frames' way out. Bound to one process: a fork of the test sends nothing.

    Attributes:
        sending: whether texts are on their way, amid which nothing else may be raised.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.encoder = wire.Encoder()
        self.sending = False
        self._pid = _getpid()
        self._identity = self._stat()
        self._waiting = b""

    def _stat(self) -> tuple[int, int] | None:
        try:
            status = _fstat(self.fd)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    @property
    def mine(self) -> bool:
        """Whether this is the process the stream was made for."""
        return self._pid == _getpid()

    def send(
        self, kind: str, payload: object, *, more: bool = False, most: int = wire.MAX_HELD
    ) -> None:
        """Send one frame; with *more* it may wait for the next.

        A test that has closed the stream, or has something else at its number,
        can't report any more: the process ends, and the runner says so.

        Args:
            most: what all frames of the test may weigh together then.

        Raises:
            wire.FrameTooLong: they would weigh more; nothing has been sent.
        """
        frame, texts = self.encoder.encode(kind, payload, most)
        data = self._waiting + frame
        if more and not texts and len(data) < _MAX_WAITING:
            self._waiting = data
            return
        if texts:
            self._send_texts(texts)
            data = frame
        self._waiting = b""
        self._write(data)

    def _send_texts(self, texts: list[str]) -> None:
        self.sending = True
        try:
            if self._waiting:
                self._write(self._waiting)
            for text in texts:
                for part in wire.parts(text):
                    self._write(part)
        finally:
            self.sending = False

    def _write(self, data: bytes) -> None:
        if not self.mine:
            # A fork of the test that came back here instead of exiting.
            _exit(0)
        if self._identity is None or self._stat() != self._identity:
            _exit(forked.EXIT_UNREPORTED)
        view = memoryview(data)
        try:
            while view:
                view = view[_write(self.fd, view) :]
        except OSError:
            _exit(forked.EXIT_UNREPORTED)


class TerminalFile:
    """What stands in for the terminal's file: writes become frames."""

    encoding = "utf-8"

    def __init__(self, send: Callable[[str, object], None], original: Any) -> None:
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
            for at in range(0, len(text), AT_ONCE):
                self._send("write", text[at : at + AT_ONCE])
