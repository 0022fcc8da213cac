"""The guard: takes the place of PID 1 of a sandbox where there are no namespaces.

It is the parent of the test process. Every orphan of the test becomes the guard's child
(PR_SET_CHILD_SUBREAPER), so that the guard finds and kills leaked processes.

Guarantees: the guard kills everything below it and then ends with the status of the test
process. It does so too when its own parent has ended (SIGTERM). It stops processes before it
kills them, so that a fork bomb can't outrun it.

Assumes: a fork of the template that has run no after-fork handler, see `raw_fork`; SIGCHLD and
SIGTERM are blocked in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, NamedTuple, NoReturn

with contextlib.suppress(ImportError):  # Windows has none, and forks nothing
    import resource

from pytest_nsisolate.core.linux import proc, raw_fork
from pytest_nsisolate.core.linux.proc import NAMED, command_line, left_by_a_test, line_of
from pytest_nsisolate.core.linux.syscalls import (
    LINUX,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    prctl,
    restore_mask,
)

if TYPE_CHECKING:
    from collections.abc import Callable

#: With more processes than this, their command lines are not read: for a fork bomb that takes
#: minutes.
_FEW = 64
#: The status of a test process that other code has already waited for.
_UNKNOWN = 0x7F00


class Reports(NamedTuple):
    """How the guard reports to the runner.

    Attributes:
        forked: takes the pid of the test process.
        changed: takes the wait status of a test process that was stopped or continued.
        left: takes a line for each process that the test left running.
    """

    forked: Callable[[int], None]
    changed: Callable[[int], None]
    left: Callable[[list[str]], None]


def guard(reports: Reports, close: Callable[[], None], mask: bytes) -> None:
    """Fork the test process and return in it. The parent becomes the guard.

    Args:
        close: closes what only the test process needs.
        mask: the signal mask of the runner.
    """
    if LINUX:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    parent = os.getppid()
    test = raw_fork.fork()
    if test == 0:
        return
    status = _UNKNOWN
    try:
        if os.getppid() != parent:
            os.kill(test, signal.SIGKILL)
        reports.forked(test)
        close()
        status = _wait_for(test, reports)
        left = _kill_descendants(test)
        if left:
            reports.left(left)
    finally:
        _end_as(status, mask)


def _wait_for(test: int, reports: Reports) -> int:
    """Wait for the end of the test process; return its wait status."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WUNTRACED | os.WCONTINUED | (os.WNOHANG * LINUX))
        except ChildProcessError:
            return _UNKNOWN
        if pid == 0:
            if signal.sigwaitinfo({signal.SIGCHLD, signal.SIGTERM}).si_signo == signal.SIGTERM:
                os.kill(test, signal.SIGKILL)  # not reaped yet, so the pid is still its own
        elif pid == test:
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                return status
            with contextlib.suppress(OSError):
                reports.changed(status)


def _end_as(status: int, mask: bytes) -> NoReturn:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        if LINUX:
            restore_mask(mask)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)


def kill_children() -> None:
    """Kill the children of this process, and the orphans that then become its children.

    Processes in sandboxes stay: a sandbox may outlive the session.
    """
    while LINUX:  # elsewhere no orphan becomes a child
        for pid in proc.children(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _kill_descendants(group: int) -> list[str]:
    """Kill all processes below the guard; return a line for each that the test left running.

    Args:
        group: the process group of the test process, which is killed too.
    """
    # Signal the group in one call, which no fork escapes. At the lowest priority, processes
    # that have not stopped yet leave this one the CPU.
    proc.run_last(group)
    _signal_group(group, signal.SIGSTOP)
    if LINUX and proc.tasks([os.getpid()], _FEW) >= _FEW:
        _signal_group(group, signal.SIGKILL)
    found = _stop_descendants() if LINUX else []
    lines = _names(found)
    _signal_group(group, signal.SIGKILL)
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    while LINUX:  # elsewhere they are not its children
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    return lines


def _stop_descendants() -> list[int]:
    """Stop processes until no new one appears: else they fork while they are being killed."""
    found: list[int] = []
    while True:
        known = set(found)
        new = [pid for pid in proc.descendants(os.getpid()) if pid not in known]
        if not new:
            return found
        for pid in new:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
        found += new


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _names(pids: list[int]) -> list[str]:
    """Write a line for each of these processes, or their number if they are many."""
    if len(pids) > _FEW:
        return [f"{len(pids)} processes"]
    lines = [line_of(pid, one) for pid in pids if left_by_a_test(one := command_line(pid))]
    more = len(lines) - NAMED
    return [*lines[:NAMED], f"{more} more"] if more > 0 else lines
