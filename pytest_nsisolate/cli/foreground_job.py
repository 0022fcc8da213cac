"""Attend a command in a sandbox: pass on signals and the terminal, and wait for its end.

For ``nsisolate run`` and ``nsisolate enter``: whoever calls either deals with a process that
reacts to signals, Ctrl-Z and the end of the command as if it were the command.

Guarantees: after `Attended.wait` there is a wait status, or what was in its way.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
import time
from typing import TYPE_CHECKING, Any, final

from pytest_nsisolate.core.linux.syscalls import (
    SIGNALFD_SIGINFO_SIZE,
    StageError,
    block_signals,
    signalfd,
)
from pytest_nsisolate.core.linux.terminal import Terminal

from . import launcher

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable
    from types import FrameType

#: Exit codes of our own, as env(1) has them.
NOT_EXECUTABLE, NOT_FOUND = 126, 127

_SIGINFO = struct.Struct("=I")
_TO_THE_COMMAND = ("SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGTSTP")
_JOB_CONTROL = ("SIGTSTP", "SIGTTIN", "SIGTTOU")


def not_executed(name: str, number: int) -> tuple[int, list[str]]:
    """Return the exit code for a command that could not be executed, and the lines to print."""
    found = number in (errno.ENOENT, errno.ENOTDIR)
    lines = [f"can't run {name!r}: {os.strerror(number)}"]
    if not found and number == errno.ENOEXEC:
        lines.append("a script needs a first line such as #!/bin/sh")
    return NOT_FOUND if found else NOT_EXECUTABLE, lines


def open_standard_streams() -> None:
    """Open /dev/null for each closed standard stream, so that no other file gets its number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one
            os.set_inheritable(fd, True)  # noqa: FBT003 -- takes no keywords


class Interrupted(BaseException):
    """A signal came before the command was started."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@final
class Signals:
    """The signals that are passed on to the command; before it runs they end the set-up."""

    def __init__(self) -> None:
        named = [int(getattr(signal, name)) for name in _TO_THE_COMMAND]
        here = {number: signal.getsignal(number) for number in signal.valid_signals()}
        #: What the caller's caller wants ignored. Python itself ignores two.
        own = {signal.SIGPIPE, signal.SIGXFSZ}
        self.ignored = frozenset(
            int(number)
            for number, handler in here.items()
            if handler is signal.SIG_IGN and number not in own
        )
        self.numbers = [number for number in named if number not in self.ignored]
        self._pending = False
        for number in self.numbers:
            if number != signal.SIGTSTP:
                signal.signal(number, self._interrupt)
        #: For the command.
        self.mask = block_signals([])

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        # Once: the second one would break into the clean-up.
        if not self._pending:
            self._pending = True
            raise Interrupted(number)

    def wait_for(self) -> int:
        """Receive the signals through a descriptor from now on."""
        fd = signalfd(self.numbers)
        block_signals([*self.numbers, int(signal.SIGTTOU)])
        return fd


@final
class Attended:
    """One command, from its start to its end; the clean-up is on the stack.

    Args:
        start: what, and where.
        signals: what is passed on to it.
        close: descriptors that the launcher may not hold open.

    Attributes:
        terminal: lent to the command.
        started: when it was let go, by the monotonic clock.
        wall: how long it has run, in seconds.
        status: wait status, CPU seconds (user, system) and bytes of the largest process.
        exec_error: why it could not be executed.
        error: why it could not be started.
    """

    def __init__(
        self,
        start: launcher.Start,
        signals: Signals,
        stack: contextlib.ExitStack,
        close: list[int],
    ) -> None:
        self.terminal = Terminal()
        stack.callback(self.terminal.close)
        self._signals = signals.wait_for()
        stack.callback(os.close, self._signals)
        self._launcher = launcher.Launcher(start, [*close, self._signals])
        stack.callback(self._launcher.close)
        self._pid = 0
        self.started: float | None = None
        self.wall = 0.0
        self.status: list[Any] | None = None
        self.exec_error: int | None = None
        self.error: StageError | None = None

    def wait(
        self,
        pause: Callable[[], float | None] = lambda: None,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until the command has ended, or could not be started.

        Args:
            pause: how long to wait at most, in milliseconds.
            look: what to do then, and whenever something happens.
        """
        poll = select.poll()
        control, gate = self._launcher.control, self._launcher.gate
        for fd in (self._signals, control.fileno(), gate.fileno()):
            poll.register(fd, select.POLLIN)
        while self.status is None and self.error is None:
            for fd, _ in poll.poll(pause()):
                if fd == self._signals:
                    self._pass_on(_SIGINFO.unpack_from(os.read(fd, SIGNALFD_SIGINFO_SIZE))[0])
                elif fd == gate.fileno():
                    if not self._from_command():
                        poll.unregister(fd)
                else:
                    self._from_launcher(*launcher.receive(control))
            look()

    def terminate(self) -> None:
        """Ask it to end."""
        self._launcher.signal(signal.SIGTERM)
        self._launcher.signal(signal.SIGCONT)

    def _pass_on(self, number: int) -> None:
        self._launcher.signal(number)
        if number != signal.SIGTSTP:
            # One that is stopped would not see it.
            self._launcher.signal(signal.SIGCONT)

    def _from_command(self) -> bool:
        """Handle a message about the command that is to start; return whether more may come."""
        kind, value = launcher.receive(self._launcher.gate)
        if kind == "ready":
            if self.terminal.is_for_command():
                self.terminal.lend(self._pid)
            self.started = time.monotonic()
            self._launcher.gate.send(b"go")
        elif kind == "failed":
            self.error = StageError(*value)
        elif kind == "exec":
            self.exec_error = value
        return kind != "gone"

    def _from_launcher(self, kind: str, value: Any) -> None:
        if kind == "pid":
            self._pid = value
        elif kind == "failed":
            self.error = StageError(*value)
        elif kind == "stopped":
            self._stopped(value)
        elif kind == "ended":
            self.status = value
            self.wall = time.monotonic() - self.started if self.started is not None else 0.0
            # Said before it ended, and perhaps not read yet.
            while select.select([self._launcher.gate], [], [], 0)[0] and self._from_command():
                pass
        else:
            self.error = StageError("start the command", errno.EPIPE)

    def _stopped(self, number: int) -> None:
        """Stop this process as the command has stopped, until the shell continues it.

        A command that stopped for the terminal gets the terminal instead, where possible.
        """
        if not self.terminal.there:
            return
        wants = number in (signal.SIGTTIN, signal.SIGTTOU)
        if not (wants and self.terminal.lend(self._pid)):
            self.terminal.take_back()
            names = {int(getattr(signal, name)) for name in _JOB_CONTROL}
            stop = number if number in names else int(signal.SIGTSTP)
            # The whole job, as the terminal does it; where no shell would continue it
            # (an orphaned process group) the kernel takes no notice of these signals.
            before = signal.signal(stop, signal.SIG_DFL)
            os.killpg(0, stop)
            mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [stop])  # and here it stands
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signal.signal(stop, before)
            if self.terminal.is_for_command() or wants:
                self.terminal.lend(self._pid)
        self._launcher.signal(signal.SIGCONT)
