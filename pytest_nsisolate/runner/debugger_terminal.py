"""Lend the user's terminal to a test in a debugger: its keys are signals for the test.

A test process has a session of its own and no controlling terminal. It may read and write
the terminal, but the signals of Ctrl-C, Ctrl-Z and a new size of the window go to the group in
the foreground, the runner's. This module passes them on to the group of the test.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any, final

from pytest_nsisolate.core.linux.terminal import Terminal

from .test_process import State, TestProcess

if TYPE_CHECKING:
    from collections.abc import Callable


@final
class DebuggerTerminal:
    """See the module. It opens the terminal when it is first needed.

    Args:
        send: sends a signal to the process group of a test.

    Attributes:
        process: whose the keys are, if they are not the runner's.
    """

    def __init__(self, send: Callable[[TestProcess, int], None]) -> None:
        self._send = send
        self.process: TestProcess | None = None
        self._terminal: Terminal | None = None
        self._handlers: dict[int, Any] = {}

    def watch(self) -> None:
        """Note the terminal's modes before a test can change them."""
        if self._terminal is None:
            self._terminal = Terminal()

    def lend(self, process: TestProcess) -> None:
        """Give the keys to *process* from here on."""
        self.watch()
        self.process = process
        if self._handlers:
            return
        for name, handler in (
            ("SIGINT", self._interrupt),
            ("SIGTSTP", self._stop),
            ("SIGWINCH", self._pass_on),
        ):
            number = getattr(signal, name, None)
            if number is None or signal.getsignal(number) is signal.SIG_IGN:
                continue
            with contextlib.suppress(ValueError):  # not in the main thread, which has them
                self._handlers[number] = signal.signal(number, handler) or signal.SIG_DFL

    def take_back(self, *, broken: bool = False) -> None:
        """Take the keys back for the runner; this is no error without `lend` before.

        Args:
            broken: the test did not end by itself, and left the terminal's modes as they were.
        """
        self.process = None
        while self._handlers:
            signal.signal(*self._handlers.popitem())
        if broken and self._terminal is not None:
            self._terminal.set_modes()

    def close(self) -> None:
        """Release the terminal."""
        self.take_back()
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None

    @property
    def _runs(self) -> TestProcess | None:
        """The test that there is to send signals to."""
        process = self.process
        return process if process is not None and process.state is State.RUNNING else None

    def _interrupt(self, number: int, frame: object) -> None:
        process, before = self._runs, self._handlers.get(number)
        if process is not None:
            self._send(process, number)
        elif callable(before):
            before(number, frame)
        else:
            raise KeyboardInterrupt

    def _pass_on(self, number: int, frame: object) -> None:
        process = self._runs
        if process is not None:
            self._send(process, number)

    def _stop(self, number: int, frame: object) -> None:
        """Stop the test, and this process as well; both go on together."""
        process, terminal = self._runs, self._terminal
        modes = terminal.modes() if terminal is not None else None
        if process is not None:
            # Of SIGTSTP the kernel takes no notice where no shell is in the session.
            process.hold()
            self._send(process, signal.SIGSTOP)
        if terminal is not None:
            terminal.set_modes()
        handler = signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, handler)
        if terminal is not None and modes is not None:
            terminal.set_modes(modes)
        if process is not None:
            self._send(process, signal.SIGCONT)
