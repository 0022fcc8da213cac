"""Tests that write more output than can be kept: seen while they run, and ended.

What a test and its processes write to standard output and standard error goes straight to files
in memory, which outlive a crash. Nobody stands between: so the runner, which waits anyway, looks
now and then how large they have become. Tests that are over before the first look cost nothing.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.core.syscalls import LINUX

from .test_process import LOOK_EVERY, Attempt, State

with contextlib.suppress(ImportError):  # Windows has none, and forks nothing
    import fcntl

if TYPE_CHECKING:
    from .event_loop import Flight

#: What a test process may keep of its output, in bytes of memory. Pytest itself needs a multiple
#: of that to take it in; much more would be the end of other processes on most machines.
MAX_OUTPUT = 1 << 30
#: Of `struct stat`: what it counts blocks in, in bytes.
_BLOCK = 512


class Floods:
    """See the module.

    Args:
        flight: whose attempts this watches.
    """

    def __init__(self, flight: Flight) -> None:
        self._flight = flight

    def moments(self) -> list[float]:
        """When there is something to look at, by the monotonic clock."""
        attempts = self._flight.attempts.values()
        return [one.next_look for one in attempts if one.state is State.RUNNING]

    def check(self, now: float) -> None:
        """End those that have written too much."""
        for attempt in list(self._flight.attempts.values()):
            if attempt.state is State.RUNNING and now >= attempt.next_look:
                attempt.next_look = now + LOOK_EVERY
                if _kept(attempt) > MAX_OUTPUT:
                    self._end(attempt)

    def _end(self, attempt: Attempt) -> None:
        for file in attempt.files[1:]:  # nor does what is left of it, where a sandbox is kept
            if LINUX:
                with contextlib.suppress(OSError):  # the test has sealed it
                    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        self._flight.drain(attempt)
        if attempt.state is State.RUNNING:
            self._flight.finish(attempt, Outcome(Kind.TOO_MUCH_OUTPUT, limit=MAX_OUTPUT))


def _kept(attempt: Attempt) -> int:
    """What its files take of the memory, in bytes."""
    return sum(os.fstat(file).st_blocks for file in attempt.files) * _BLOCK
