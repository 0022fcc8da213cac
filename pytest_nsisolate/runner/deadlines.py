"""Whose time is over, and what is done about it: asked to end, then told to, then killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

from pytest_nsisolate.core import proc
from pytest_nsisolate.core.outcome import Kind, Outcome

from .test_process import Attempt, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .event_loop import Flight

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


def host_pid(attempt: Attempt) -> int:
    """The pid of the test process as seen from here, 0 if it is not known."""
    snapshot = attempt.source.snapshot if attempt.source is not None else None
    if snapshot is None or snapshot.attempt is None or not attempt.pid:
        return attempt.pid
    # Its snapshot told the pid that the process has where the snapshot is.
    return proc.child_by_inner_pid(host_pid(snapshot.attempt), attempt.pid)


class Deadlines:
    """See the module.

    Args:
        flight: what this keeps the time for.
        timeout_signal: what a test process understands as the end of its time.
        stack_signal: what it understands as the wish to know where it is.
    """

    def __init__(self, flight: Flight, timeout_signal: int, stack_signal: int) -> None:
        self._flight = flight
        self._timeout_signal = timeout_signal
        self._stack_signal = stack_signal

    def moments(self) -> list[float]:
        """When there is something to do, by the monotonic clock."""
        found = []
        for attempt in self._flight.attempts.values():
            if attempt.deadline is not None:
                found.append(attempt.deadline)
            if attempt.stop_deadline is not None:
                found.append(attempt.stop_deadline)
            if attempt.budget is not None:
                found.append(attempt.budget.next_look)
        return found

    def check(self, now: float) -> None:
        """See whose time is over, and which limits have been reached."""
        for attempt in list(self._flight.attempts.values()):
            if attempt.overdue(now):
                self._flight.drain(attempt)
                # It may have ended, and the next one may be on.
                if attempt.state is State.RUNNING and attempt.overdue(now):
                    self._out_of_time(attempt, now)
            if attempt.stop_deadline is not None and now >= attempt.stop_deadline:
                self._flight.finish(attempt, Outcome(Kind.STOPPED, attempt.stopped_by))
            if attempt.budget is not None and now >= attempt.budget.next_look:
                exceeded = attempt.budget.look(now)
                if exceeded is not None:
                    self._flight.drain(attempt)
                if exceeded is not None and attempt.state is not State.ENDED:
                    self._flight.finish(attempt, exceeded)
                elif attempt.budget.nearly and not attempt.timed_out:
                    attempt.mark_trace()
                    self._signal(attempt, self._stack_signal)

    def _out_of_time(self, attempt: Attempt, now: float) -> None:
        if attempt.ending is not None:
            self._flight.finish(attempt, attempt.ending)
            return
        if self._runs_away(attempt):
            attempt.runaway = True
            outcome = Outcome(Kind.TIMED_OUT, timeout=attempt.spec.timeout, asked=False)
            self._flight.finish(attempt, outcome)
            return
        if attempt.terminated or (attempt.timed_out and self._flight.keeps(attempt)):
            self._flight.finish(attempt, Outcome(Kind.TIMED_OUT, timeout=attempt.spec.timeout))
        elif attempt.timed_out:
            # It did not react, or its fixtures take too long: all inside are asked to end.
            attempt.terminated = True
            attempt.deadline = now + TERM_GRACE
            if attempt.sandbox is not None:
                attempt.sandbox.terminate()
            else:
                self._signal(attempt, signal.SIGTERM)
        else:
            attempt.timed_out = True
            attempt.turn.running = self._running(attempt)
            attempt.deadline = time.monotonic() + GRACE
            attempt.mark_trace()
            self._signal(attempt, self._timeout_signal)

    def _runs_away(self, attempt: Attempt) -> bool:
        """Whether it has so many processes that to ask it to end would take too long."""
        crowd = proc.runnable()
        # In a crowd there is no time to count more; and of few it is not made.
        crowded = crowd >= _CROWD * (os.cpu_count() or 1)
        many = _SEVERAL if crowded else _MANY
        if proc.tasks(self._roots(attempt), many) < many:
            return False
        # Let whoever is to end them run first.
        proc.run_last(host_pid(attempt))
        line = f"{many} processes and threads or more"
        if crowded:
            line += f"; {crowd} of the whole machine were running or waiting for a CPU"
        attempt.turn.running = [line]
        return True

    def _running(self, attempt: Attempt) -> list[str]:
        """The processes of a test, a line each."""
        roots = self._roots(attempt)
        several = proc.tasks(roots, _SEVERAL) >= _SEVERAL
        with self._still(attempt, several=several) as still:
            return proc.tree(roots, commands=still or not several)

    @contextlib.contextmanager
    def _still(self, attempt: Attempt, *, several: bool) -> Iterator[bool]:
        """Hold the processes of a test still, if there are several; whether they are held.

        A process that forks, or gets memory, lets nobody read its command line meanwhile. Where
        each of many does so, and there are more every moment, reading them would take minutes.
        """
        if attempt.budget is not None:
            with attempt.budget.frozen() as frozen:
                yield frozen
        elif several and attempt.sandbox is not None:
            # The template tells of the test process, which goes on at once.
            attempt.held = True
            stopped = attempt.sandbox.stop(_STOP_PATIENCE)
            try:
                yield stopped
            finally:
                attempt.sandbox.go_on()
        else:
            yield False

    def _roots(self, attempt: Attempt) -> list[int]:
        """The test process and the orphans of its sandbox; all others are below these."""
        pid = host_pid(attempt)
        roots = [pid] if pid else []
        init = attempt.sandbox.init_pid() if attempt.sandbox is not None else None
        return roots if init is None else [*roots, *proc.children(init)]

    def _signal(self, attempt: Attempt, number: int) -> None:
        with contextlib.suppress(OSError):
            if attempt.sandbox is not None and attempt.source is not None:
                attempt.source.template.kill(attempt.number, number)
            elif attempt.pid:
                # Its guard reaps it; the template knows only the guard.
                os.kill(attempt.pid, number)
