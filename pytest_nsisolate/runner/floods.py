"""Find tests that write more output than can be kept, while they run.

What a test and its processes write to standard output and standard error goes straight to files
in memory, which outlive a crash. No process stands between: so the runner, which waits anyway,
looks at times how large they have become. Tests that are over before the first look cost nothing.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux.syscalls import LINUX
from pytest_nsisolate.core.outcome import Kind, Outcome

with contextlib.suppress(ImportError):  # Windows has none, and forks nothing
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .test_process import TestProcess

#: What a test process may keep of its output, in bytes of memory. Pytest itself needs a multiple
#: of that to take it in; much more would be the end of other processes on most machines.
MAX_OUTPUT = 1 << 30
#: Of `struct stat`: what it counts blocks in, in bytes.
_BLOCK = 512


def moments(processes: Iterable[TestProcess]) -> Iterator[float]:
    """Return the moments when there is something to look at, by the monotonic clock."""
    return (one.next_look for one in processes if one.running)


def found(process: TestProcess, now: float) -> Outcome | None:
    """Check the output of a process, if that is due; return its outcome if it is too much.

    The files of one that wrote too much grow no more.
    """
    if not process.running or now < process.next_look:
        return None
    process.looked(now)
    if sum(os.fstat(file).st_blocks for file in process.files) * _BLOCK <= MAX_OUTPUT:
        return None
    for file in process.files[1:]:  # nor does what is left of it, where a sandbox is kept
        if LINUX:
            with contextlib.suppress(OSError):  # the test has sealed it
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return Outcome(Kind.TOO_MUCH_OUTPUT, limit=MAX_OUTPUT)
