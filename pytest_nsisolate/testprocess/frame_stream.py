"""Send frames from a test process to the runner."""

from __future__ import annotations

import os

from pytest_nsisolate.core import wire

from . import forked

# Bound now: a test may patch these names in their modules, and its reports are
# sent while the patch is on.
_fstat, _getpid, _write, _exit = os.fstat, os.getpid, os.write, os._exit

_MAX_WAITING = 1 << 16
#: Kinds of frames that are cut where they are too large.
_CUT = frozenset({"report", "warning"})
#: The longest part of a text for the terminal that is sent in one frame, in characters.
AT_ONCE = wire.LONG - 1


class Stream:
    """A pipe for frames, bound to one process: a fork of the test sends nothing.

    Attributes:
        sending: whether texts are being sent: an exception would cut a frame in half.
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
        """Whether this is the process that the stream was made for."""
        return self._pid == _getpid()

    def send(
        self, kind: str, payload: object, *, more: bool = False, most: int = wire.MAX_HELD
    ) -> None:
        """Send one frame; with *more* it may wait for the next.

        If the test has closed the pipe, or has opened another file at its number, the
        process can't report any more. It ends, and the runner reports that.

        Args:
            most: how much all frames of the test may weigh together.

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


class Sender:
    """Sends the frames of one process after the other: of a snapshot, then of its fork.

    Guarantees: a report or warning that is too large is sent as far as it fits.
    """

    def __init__(self) -> None:
        self._stream: Stream | None = None

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent: not in the template."""
        return self._stream is not None

    @property
    def mine(self) -> bool:
        """Whether this is the process whose frames these are, not a fork that a test made."""
        return self._stream is not None and self._stream.mine

    @property
    def sending(self) -> bool:
        """See `Stream.sending`."""
        return self._stream is not None and self._stream.sending

    def open(self, fd: int) -> None:
        """Send by the pipe *fd*, which this owns."""
        self.close()
        self._stream = Stream(fd)

    def close(self) -> None:
        """Close the pipe, if there is one."""
        if self._stream is not None:
            os.close(self._stream.fd)
            self._stream = None

    def send(self, kind: str, payload: object, *, more: bool = False) -> None:
        """Send a frame, see `Stream.send`.

        Raises:
            wire.FrameTooLong: it is too large, and no report or warning.
        """
        assert self._stream is not None
        if kind not in _CUT:
            self._stream.send(kind, payload, more=more)
            return
        try:
            self._stream.send(kind, payload, more=more, most=wire.MAX_REPORTS)
        except wire.FrameTooLong:
            self._send_cut(kind, payload)

    def _send_cut(self, kind: str, payload: object) -> None:
        from pytest_nsisolate.reports import trimming  # noqa: PLC0415 -- only for what is too large

        assert self._stream is not None
        *larger, last = trimming.LIMITS
        for limit in larger:
            try:
                self._stream.send(kind, trimming.cut(payload, limit), most=wire.MAX_REPORTS)
            except wire.FrameTooLong:
                continue
            return
        self._stream.send(kind, trimming.cut(payload, last))

    def send_output(self, name: str, text: str) -> None:
        """Send what was written to the stream *name*. In a fork of the test do nothing."""
        if self.mine:
            for at in range(0, len(text), AT_ONCE):
                self.send("output", [name, text[at : at + AT_ONCE]])

    def end_test(self) -> None:
        """Start to count what the frames of the next test weigh together."""
        assert self._stream is not None
        self._stream.encoder.forget()
