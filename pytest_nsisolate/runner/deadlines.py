"""Enforce deadlines and limits: interrupt a test, then terminate it, then kill it.

`due` looks at the test processes and returns what is to be done; the event loop does it. A test
that is out of time is interrupted, so that its failure shows where it was; what does not react is
terminated, and what is left is killed by the end of its sandbox. A test with so many processes
that this would take too long is killed without being asked.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.linux import proc
from pytest_nsisolate.core.outcome import Kind, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .kept.policy import Keeping
    from .test_process import TestProcess

#: How long a test that ran out of time may take to tear its fixtures down, in seconds.
GRACE = 1.0
#: How long a test process may stay stopped, in seconds.
STOP_LIMIT = 1.0
#: So many processes and threads of a test that is out of time are killed without being asked to
#: end: they would take the CPU time that it takes to ask.
_MANY = 256
#: So many processes and threads are held still while they are listed, for so long at most until
#: they are, in seconds.
_SEVERAL, _STOP_PATIENCE = 16, 0.5
#: So many that wait for each CPU are a crowd, in which whoever waits does so for seconds.
_CROWD = 128
#: How long what is left then may take to react to SIGTERM, in seconds.
TERM_GRACE = 0.3


class End(NamedTuple):
    """End the process with this outcome."""

    process: TestProcess
    outcome: Outcome


class Interrupt(NamedTuple):
    """Interrupt the test: its time is over. *running* are its processes, a line each."""

    process: TestProcess
    running: list[str]


class Terminate(NamedTuple):
    """Send SIGTERM to all processes of the test, which did not react to the interrupt."""

    process: TestProcess


class ShowStacks(NamedTuple):
    """Have the test write where it is: it has nearly reached its limit of memory."""

    process: TestProcess


Action = End | Interrupt | Terminate | ShowStacks


def host_pid(process: TestProcess) -> int:
    """Return the pid of a test process as the runner sees it, 0 if it is not known."""
    if process.forker is None or not process.pid:
        return process.pid
    # Its snapshot told the pid that the process has where the snapshot is.
    return proc.child_by_inner_pid(host_pid(process.forker), process.pid)


def moments(processes: Iterable[TestProcess]) -> Iterator[float]:
    """Yield the moments when there is something to do, by the monotonic clock."""
    for process in processes:
        if process.deadline is not None:
            yield process.deadline
        if process.stop_deadline is not None:
            yield process.stop_deadline
        if process.budget is not None:
            yield process.budget.next_look


def due(process: TestProcess, now: float, keeping: Keeping | None) -> Iterator[Action]:
    """Yield the actions that are due for a process, after all of its frames have been read.

    Args:
        keeping: says which sandboxes outlive the session, if any do.
    """
    if process.running and process.overdue(now):
        yield _out_of_time(process, keeping)
    if process.stop_deadline is not None and now >= process.stop_deadline:
        yield End(process, Outcome(Kind.STOPPED, process.stopped_by))
    if process.budget is not None and not process.ended and now >= process.budget.next_look:
        exceeded = process.budget.look(now)
        if exceeded is not None:
            yield End(process, exceeded)
        elif process.budget.nearly and not process.timed_out:
            yield ShowStacks(process)


def _out_of_time(process: TestProcess, keeping: Keeping | None) -> Action:
    if process.ending is not None:
        return End(process, process.ending)
    crowd = _run_away(process)
    if crowd:
        process.run_away([crowd])
        outcome = Outcome(Kind.TIMED_OUT, timeout=process.spec.timeout, asked=False)
        return End(process, outcome)
    kept = keeping is not None and keeping.wants(process, failed=True)
    if process.terminated or (process.timed_out and kept):
        return End(process, Outcome(Kind.TIMED_OUT, timeout=process.spec.timeout))
    if process.timed_out:
        return Terminate(process)
    return Interrupt(process, _running(process))


def _run_away(process: TestProcess) -> str:
    """Describe the processes of a test if they are too many to ask it to end, else ""."""
    crowd = proc.runnable()
    # In a crowd there is no time to count more; and of few it is not made.
    crowded = crowd >= _CROWD * (os.cpu_count() or 1)
    many = _SEVERAL if crowded else _MANY
    if proc.tasks(_roots(process), many) < many:
        return ""
    # Let whoever is to end them run first.
    proc.run_last(host_pid(process))
    line = f"{many} processes and threads or more"
    if crowded:
        line += f"; {crowd} of the whole machine were running or waiting for a CPU"
    return line


def _running(process: TestProcess) -> list[str]:
    """Describe the processes of a test, one line each."""
    roots = _roots(process)
    several = proc.tasks(roots, _SEVERAL) >= _SEVERAL
    with _still(process, several=several) as still:
        return proc.tree(roots, commands=still or not several)


@contextlib.contextmanager
def _still(process: TestProcess, *, several: bool) -> Iterator[bool]:
    """Hold the processes of a test still, if there are several; yield whether they are held.

    The command line of a process that forks, or gets memory, can't be read meanwhile. Where
    each of many does so, and there are more every moment, reading them would take minutes.
    """
    if process.budget is not None:
        with process.budget.frozen() as frozen:
            yield frozen
    elif several and process.sandbox is not None:
        # The template tells of the test process, which goes on at once.
        process.hold()
        stopped = process.sandbox.stop(_STOP_PATIENCE)
        try:
            yield stopped
        finally:
            process.sandbox.go_on()
    else:
        yield False


def _roots(process: TestProcess) -> list[int]:
    """Return the test process and the orphans of its sandbox; all others are below these."""
    pid = host_pid(process)
    roots = [pid] if pid else []
    init = process.sandbox.init_pid() if process.sandbox is not None else None
    return roots if init is None else [*roots, *proc.children(init)]


def interrupted(process: TestProcess, running: list[str]) -> None:
    """Note that a test is interrupted, and how long it may take to tear down."""
    process.time_out(running, time.monotonic() + GRACE)
    process.mark_trace()
