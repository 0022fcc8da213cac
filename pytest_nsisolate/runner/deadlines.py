"""Whose time is over, and what is done about it: asked to end, then told to, then killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

from pytest_nsisolate.core import proc
from pytest_nsisolate.core.outcome import Kind, Outcome

from .test_process import TestProcess, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .event_loop import EventLoop

#: How long a test that ran out of time may take to tear its fixtures down, in seconds.
GRACE = 1.0
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


def host_pid(process: TestProcess) -> int:
    """The pid of the test process as seen from here, 0 if it is not known."""
    snapshot = process.source.snapshot if process.source is not None else None
    if snapshot is None or snapshot.process is None or not process.pid:
        return process.pid
    # Its snapshot told the pid that the process has where the snapshot is.
    return proc.child_by_inner_pid(host_pid(snapshot.process), process.pid)


class Deadlines:
    """See the module.

    Args:
        loop: what this keeps the time for.
        timeout_signal: what a test process understands as the end of its time.
        stack_signal: what it understands as the wish to know where it is.
    """

    def __init__(self, loop: EventLoop, timeout_signal: int, stack_signal: int) -> None:
        self._loop = loop
        self._timeout_signal = timeout_signal
        self._stack_signal = stack_signal

    def moments(self) -> list[float]:
        """When there is something to do, by the monotonic clock."""
        found = []
        for process in self._loop.processes.values():
            if process.deadline is not None:
                found.append(process.deadline)
            if process.stop_deadline is not None:
                found.append(process.stop_deadline)
            if process.budget is not None:
                found.append(process.budget.next_look)
        return found

    def check(self, now: float) -> None:
        """See whose time is over, and which limits have been reached."""
        for process in list(self._loop.processes.values()):
            if process.overdue(now):
                self._loop.drain(process)
                # It may have ended, and the next one may be on.
                if process.state is State.RUNNING and process.overdue(now):
                    self._out_of_time(process, now)
            if process.stop_deadline is not None and now >= process.stop_deadline:
                self._loop.finish(process, Outcome(Kind.STOPPED, process.stopped_by))
            if process.budget is not None and now >= process.budget.next_look:
                exceeded = process.budget.look(now)
                if exceeded is not None:
                    self._loop.drain(process)
                if exceeded is not None and process.state is not State.ENDED:
                    self._loop.finish(process, exceeded)
                elif process.budget.nearly and not process.timed_out:
                    process.mark_trace()
                    self._signal(process, self._stack_signal)

    def _out_of_time(self, process: TestProcess, now: float) -> None:
        if process.ending is not None:
            self._loop.finish(process, process.ending)
            return
        if self._runs_away(process):
            process.runaway = True
            outcome = Outcome(Kind.TIMED_OUT, timeout=process.spec.timeout, asked=False)
            self._loop.finish(process, outcome)
            return
        if process.terminated or (process.timed_out and self._loop.keeps(process)):
            self._loop.finish(process, Outcome(Kind.TIMED_OUT, timeout=process.spec.timeout))
        elif process.timed_out:
            # It did not react, or its fixtures take too long: all inside are asked to end.
            process.terminated = True
            process.deadline = now + TERM_GRACE
            if process.sandbox is not None:
                process.sandbox.terminate()
            else:
                self._signal(process, signal.SIGTERM)
        else:
            process.timed_out = True
            process.test.running = self._running(process)
            process.deadline = time.monotonic() + GRACE
            process.mark_trace()
            self._signal(process, self._timeout_signal)

    def _runs_away(self, process: TestProcess) -> bool:
        """Whether it has so many processes that to ask it to end would take too long."""
        crowd = proc.runnable()
        # In a crowd there is no time to count more; and of few it is not made.
        crowded = crowd >= _CROWD * (os.cpu_count() or 1)
        many = _SEVERAL if crowded else _MANY
        if proc.tasks(self._roots(process), many) < many:
            return False
        # Let whoever is to end them run first.
        proc.run_last(host_pid(process))
        line = f"{many} processes and threads or more"
        if crowded:
            line += f"; {crowd} of the whole machine were running or waiting for a CPU"
        process.test.running = [line]
        return True

    def _running(self, process: TestProcess) -> list[str]:
        """The processes of a test, a line each."""
        roots = self._roots(process)
        several = proc.tasks(roots, _SEVERAL) >= _SEVERAL
        with self._still(process, several=several) as still:
            return proc.tree(roots, commands=still or not several)

    @contextlib.contextmanager
    def _still(self, process: TestProcess, *, several: bool) -> Iterator[bool]:
        """Hold the processes of a test still, if there are several; whether they are held.

        A process that forks, or gets memory, lets nobody read its command line meanwhile. Where
        each of many does so, and there are more every moment, reading them would take minutes.
        """
        if process.budget is not None:
            with process.budget.frozen() as frozen:
                yield frozen
        elif several and process.sandbox is not None:
            # The template tells of the test process, which goes on at once.
            process.held = True
            stopped = process.sandbox.stop(_STOP_PATIENCE)
            try:
                yield stopped
            finally:
                process.sandbox.go_on()
        else:
            yield False

    def _roots(self, process: TestProcess) -> list[int]:
        """The test process and the orphans of its sandbox; all others are below these."""
        pid = host_pid(process)
        roots = [pid] if pid else []
        init = process.sandbox.init_pid() if process.sandbox is not None else None
        return roots if init is None else [*roots, *proc.children(init)]

    def _signal(self, process: TestProcess, number: int) -> None:
        with contextlib.suppress(OSError):
            if process.sandbox is not None and process.source is not None:
                process.source.template.kill(process.number, number)
            elif process.pid:
                # Its guard reaps it; the template knows only the guard.
                os.kill(process.pid, number)
