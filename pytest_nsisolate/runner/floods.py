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

from .test_process import LOOK_EVERY, TestProcess, State

with contextlib.suppress(ImportError):  # Windows has none, and forks nothing
    import fcntl

if TYPE_CHECKING:
    from .event_loop import EventLoop

#: What a test process may keep of its output, in bytes of memory. Pytest itself needs a multiple
#: of that to take it in; much more would be the end of other processes on most machines.
MAX_OUTPUT = 1 << 30
#: Of `struct stat`: what it counts blocks in, in bytes.
_BLOCK = 512


class Floods:
    """See the module.

    Args:
        loop: whose processes this watches.
    """

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop

    def moments(self) -> list[float]:
        """When there is something to look at, by the monotonic clock."""
        processes = self._loop.processes.values()
        return [one.next_look for one in processes if one.state is State.RUNNING]

    def check(self, now: float) -> None:
        """End those that have written too much."""
        for process in list(self._loop.processes.values()):
            if process.state is State.RUNNING and now >= process.next_look:
                process.next_look = now + LOOK_EVERY
                if _kept(process) > MAX_OUTPUT:
                    self._end(process)

    def _end(self, process: TestProcess) -> None:
        for file in process.files[1:]:  # nor does what is left of it, where a sandbox is kept
            if LINUX:
                with contextlib.suppress(OSError):  # the test has sealed it
                    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        self._loop.drain(process)
        if process.state is State.RUNNING:
            self._loop.finish(process, Outcome(Kind.TOO_MUCH_OUTPUT, limit=MAX_OUTPUT))


def _kept(process: TestProcess) -> int:
    """What its files take of the memory, in bytes."""
    return sum(os.fstat(file).st_blocks for file in process.files) * _BLOCK
