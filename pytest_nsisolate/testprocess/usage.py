"""Measure what the test of this process has used so far."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.proc import descendants
from pytest_nsisolate.core.usage import of_this_process

if TYPE_CHECKING:
    from pytest_nsisolate.cgroups.group import Group


class Usage(NamedTuple):
    """What a test has used so far.

    Attributes:
        peak_memory: bytes. With a limit, of all its processes and files in memory; else
            of the largest process, with what pytest had when the test began.
        cpu: seconds, of the test and of its children; without a limit, of those that
            have been waited for.
        pids: processes that run now, the test's own included.
        source: "cgroup" if the test has a limit, else "wait4".
    """

    peak_memory: int
    cpu: float
    pids: int
    source: str


def measure(group: Group | None) -> Usage:
    """Measure the usage of the test that is in *group*, if it is in one."""
    used = of_this_process()
    if os.getppid() == 0:  # as in a pid namespace of its own
        pids = sum(1 for name in os.listdir("/proc") if name.isdigit()) - 1  # but for PID 1
    else:
        pids = 1 + len(descendants(os.getpid()))
    measured = group.usage() if group is not None else None
    # A fresh cgroup2 file system shows nothing above the sandbox's own cgroup.
    if measured is None or measured.peak_memory is None or measured.cpu is None:
        return Usage(used.peak_memory or 0, used.cpu or 0.0, pids, "wait4")
    return Usage(measured.peak_memory, measured.cpu, pids, "cgroup")
