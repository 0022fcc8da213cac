"""Write the captured output of each test process to files of its own.

A fork shares the offset of the runner's capture files, so the output of tests
in flight would mix; and what a crashed test had written must outlive it. The
runner makes two files per test. With ``--capture=fd`` they take the place of
pytest's; with ``sys``, ``tee-sys`` and ``no`` what Python code writes is copied
to them as well, since pytest keeps it in memory, or not at all.

Relies on names of pytest that are not public (`CaptureManager._global_capturing`
and the captures' ``tmpfile`` and ``targetfd_save``): pytest offers no other way to
swap the file below a capture. `tests/unit/testprocess/test_output_files.py` holds them.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


#: How much is kept of a copy, and of its beginning if it becomes more, in bytes.
_COPY_LIMIT, _COPY_HEAD = 8 << 20, 1 << 19


class Outputs:
    """The files of standard output and standard error. Made once, in the template."""

    def __init__(self, config: pytest.Config) -> None:
        manager: Any = config.pluginmanager.getplugin("capturemanager")
        capturing = getattr(manager, "_global_capturing", None)
        self._captures: list[Any] = [
            getattr(capturing, "out", None),
            getattr(capturing, "err", None),
        ]
        self._files: list[int | None] = [
            capture.tmpfile.fileno() if hasattr(capture, "targetfd_save") else None
            for capture in self._captures
        ]
        out, err = self._files
        self._plain = (out, err) if out is not None and err is not None else None
        self._copies: list[_Copy] = []
        self._writes: dict[int, Callable[[str], int]] = {}
        self.descriptors: set[int] = set()
        for capture in (getattr(capturing, "in_", None), *self._captures):
            if hasattr(capture, "targetfd_save"):
                self.descriptors |= {capture.targetfd_save, capture.tmpfile.fileno()}

    def adopt(self, out: int, err: int, send: Callable[[str, str], None]) -> None:
        """Send output to the descriptors *out* and *err*, which this owns from now on.

        Args:
            send: takes the name of a stream and text that the runner writes to it. It is
                called if the runner's stream is in memory.
        """
        if self._plain is not None:
            # The usual case, --capture=fd, in as few steps as possible.
            os.dup2(out, self._plain[0], inheritable=False)
            os.dup2(err, self._plain[1], inheritable=False)
            os.close(out)
            os.close(err)
            return
        for index, fd in enumerate((out, err)):
            name = ("stdout", "stderr")[index]
            file, capture = self._files[index], self._captures[index]
            if file is not None:
                os.dup2(fd, file, inheritable=False)
                os.close(fd)
            elif isinstance(getattr(capture, "tmpfile", None), io.TextIOWrapper):
                # CaptureIO and TeeCaptureIO take an attribute of their own.
                # Where a test is a fork of a snapshot, that has done the same before.
                write = self._writes.setdefault(index, capture.tmpfile.write)
                copy = _Copy(fd)
                capture.tmpfile.write = _copying(write, copy)
                self._copies.append(copy)
                if not has_descriptor(capture._old):
                    # Below the capture lies memory of the runner (pytest run in a test).
                    below = _unbuffered(capture._old, _Forward(name, send))
                    setattr(sys, name, below)
                    capture._old = capture.tmpfile._other = below
            else:
                _tee(name, fd, send)

    def forget(self) -> None:
        """Drop the output of a test that has ended: it is in its reports."""
        for copy in self._copies:
            copy.forget()


class _Copy:
    """A copy of output. If that is long, the copy holds its beginning and its end.

    The runner reads it only if the process ends before it has reported.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._size = 0

    def write(self, data: Any) -> None:
        """Add *data*."""
        self._size += len(data)
        if self._size > _COPY_LIMIT:
            self._cut_back(_COPY_HEAD)
            os.write(self.fd, b"\n... what was written next is left out ...\n")
            data = data[-_COPY_HEAD:]
        os.write(self.fd, data)

    def forget(self) -> None:
        """Empty the copy."""
        self._cut_back(0)

    def _cut_back(self, size: int) -> None:
        size = min(size, os.fstat(self.fd).st_size)
        os.ftruncate(self.fd, size)
        os.lseek(self.fd, size, os.SEEK_SET)
        self._size = size


def _tee(name: str, copy: int, send: Callable[[str, str], None]) -> None:
    stream = getattr(sys, name)
    if stream is None or stream.isatty():
        # On a terminal the output has been seen, and a debugger wants the
        # stream as it is.
        os.close(copy)
        return
    if has_descriptor(stream):
        setattr(sys, name, _unbuffered(stream, _Tee(stream.fileno(), copy)))
    else:
        setattr(sys, name, _unbuffered(stream, _Forward(name, send, copy)))


def has_descriptor(stream: Any) -> bool:
    """Return whether *stream* writes to a descriptor, not to memory."""
    try:
        stream.fileno()
    except (OSError, AttributeError):
        return False
    return True


def _unbuffered(like: Any, raw: Any) -> io.TextIOWrapper:
    """Make a text stream as under python -u, so that a crash loses no output."""
    return io.TextIOWrapper(
        raw,
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors=getattr(like, "errors", None) or "backslashreplace",
        write_through=True,
    )


def _copying(write: Callable[[str], int], copy: _Copy) -> Callable[[str], int]:
    def writing(text: str) -> int:
        done = write(text)
        copy.write(text.encode("utf-8", "replace"))
        return done

    return writing


class _Tee(io.FileIO):
    """A raw stream on a descriptor that it doesn't own, with a copy."""

    def __init__(self, fd: int, copy: int) -> None:
        super().__init__(fd, "wb", closefd=False)
        self._copy = _Copy(copy)

    def write(self, data: Any) -> int:
        done = super().write(data) or 0
        self._copy.write(memoryview(data)[:done])
        return done


class _Forward(io.RawIOBase):
    """A raw stream whose text is sent to the runner, with a copy if a descriptor is given."""

    def __init__(self, name: str, send: Callable[[str, str], None], copy: int = -1) -> None:
        super().__init__()
        self._name = name
        self._send = send
        self._copy = _Copy(copy) if copy >= 0 else None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        text = bytes(data)
        if self._copy is not None:
            self._copy.write(text)
        self._send(self._name, text.decode("utf-8", "replace"))
        return len(text)
