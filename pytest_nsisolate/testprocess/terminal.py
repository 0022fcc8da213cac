"""Send what pytest writes to the terminal to the runner, and lend the terminal to a debugger."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from .frame_stream import TerminalFile
from .output_files import has_descriptor

if TYPE_CHECKING:
    import pytest

    from .frame_stream import Sender

# Bound now: a test may patch these names in their modules.
_fstat, _sleep = os.fstat, time.sleep

#: How often to check for the runner's acknowledgement while a debugger runs, in seconds.
_CHECK_EVERY = 0.005


class Terminal:
    """The terminal as a test process sees it. Made in the template.

    Args:
        trace: descriptor of the file by whose permission bits the runner acknowledges
            a frame (`Flight.heard`).
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
