"""Connect a test process to the user: output as frames, pytest's debugger, standard input.

`Terminal` sends what pytest writes to the runner, and lends the terminal to a debugger.
`announce` and `share_input` are called once, in the template; a test without a dialogue
runs no line of them.

Relies on private names of pytest: `pytestPDB._init_pdb`, by which each of its debuggers
begins, and `CaptureManager._global_capturing`. Its hook ``pytest_enter_pdb`` comes after the
first words on the terminal. `tests/unit/testprocess/test_terminal.py` holds them.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

from _pytest.debugging import pytestPDB

from .frame_stream import AT_ONCE
from .output_files import has_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from .frame_stream import Sender

# Bound now: a test may patch these names in their modules.
_fstat, _sleep = os.fstat, time.sleep

#: How often to check for the runner's acknowledgement while a debugger runs, in seconds.
_CHECK_EVERY = 0.005
#: Values of PYTHONBREAKPOINT that call no debugger but pytest's.
_USUAL = ("", "0", "pdb.set_trace")


class TerminalFile:
    """A file in place of the terminal's: what is written to it becomes frames."""

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


class Terminal:
    """The terminal as a test process sees it. Made in the template.

    Args:
        trace: descriptor of the file by whose permission bits the runner acknowledges
            a frame (`TestProcess.heard`).
        direct: whether tests write to the terminal themselves.

    Attributes:
        debugging: whether a debugger has the terminal now.
    """

    def __init__(self, config: pytest.Config, sender: Sender, trace: int, *, direct: bool) -> None:
        self._sender = sender
        self._trace = trace
        # Capture is suspended between tests: these lie below it.
        self._streams = (sys.stdout, sys.stderr)
        self._file: TerminalFile | None = None
        self.debugging = False
        terminal: Any = config.pluginmanager.getplugin("terminalreporter")
        # Where pytest runs in a test, its terminal may be memory, which the fork loses.
        if terminal is not None and not (direct and has_descriptor(terminal._tw._file)):
            self._writer, self._screen = terminal._tw, terminal._tw._file
            self._file = self._writer._file = TerminalFile(sender.send, self._screen)

    def flush(self) -> None:
        """Write out what was written so far. It then appears before the next report."""
        for stream in self._streams:
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                continue
        if self._file is not None:
            self._file.flush()

    def lend(self, method: str) -> None:
        """Wait until the runner frees the terminal for a debugger; then write to it directly."""
        self.flush()
        self.send_and_wait("debugger", method)
        self.debugging = True
        if self._file is not None:
            self._writer._file = self._screen

    def take_back(self) -> None:
        """Send what pytest writes to the runner again, after a debugger has ended."""
        if self.debugging and self._file is not None:
            self.flush()
            self._writer._file = self._file
        self.debugging = False

    def send_and_wait(self, kind: str, payload: object) -> None:
        """Send a frame, and wait until the runner acknowledges it."""
        before = _fstat(self._trace)
        self._sender.send(kind, payload)
        now = before
        with contextlib.suppress(OSError):  # the test has closed it
            while now.st_mode == before.st_mode and now.st_ino == before.st_ino:
                _sleep(_CHECK_EVERY)
                now = _fstat(self._trace)


def announce(ask: Callable[[str], None]) -> None:
    """Make each debugger call *ask* with the name of its method before its first output."""
    method: Any = pytestPDB.__dict__["_init_pdb"].__func__
    # If pytest runs in an isolated test, the outer pytest has replaced the method already.
    original = getattr(method, "nsisolate_original", method)

    def _init_pdb(cls: Any, /, method: str, *args: object, **kwargs: object) -> Any:
        ask(method)
        return original(cls, method, *args, **kwargs)

    _init_pdb.nsisolate_original = original  # type: ignore[attr-defined]
    pytestPDB._init_pdb = classmethod(_init_pdb)  # type: ignore[assignment]
    if os.environ.get("PYTHONBREAKPOINT", "") not in _USUAL:
        # A debugger that pytest doesn't know. A function in the place of sys.breakpointhook
        # would be the frame that it stops in.
        def heed(event: str, arguments: object) -> None:
            if event == "builtins.breakpoint":
                ask("breakpoint")

        sys.addaudithook(heed)


def share_input(config: pytest.Config) -> None:
    """Make each test process read no more of standard input than it asks for.

    A terminal gives one line at a time. Of a pipe or a file, the first process that reads a
    line would take all there is.
    """
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    capture: Any = getattr(getattr(manager, "_global_capturing", None), "in_", None)
    if capture is None:
        sys.stdin = _frugal(sys.stdin, 0)
        return
    below = getattr(capture, "syscapture", capture)
    # With --capture=fd this is where standard input is while it is captured.
    below._old = _frugal(below._old, getattr(capture, "targetfd_save", 0))


def _frugal(stream: Any, place: int) -> Any:
    """Wrap *stream*, which reads descriptor 0, so that it reads no more than requested."""
    try:
        mode = os.fstat(place).st_mode
        if stream.fileno() != 0 or not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
            return stream
    except (OSError, AttributeError, ValueError):  # none, not a file, or closed
        return stream
    return io.TextIOWrapper(
        _Frugal(0, closefd=False), encoding=stream.encoding, errors=stream.errors
    )


class _Frugal(io.FileIO):
    """A raw stream that gives one byte at a time, which is decoded at once."""

    def read1(self, size: int = -1) -> bytes:
        return self.read(1) or b""
