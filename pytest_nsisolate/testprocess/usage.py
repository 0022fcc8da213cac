"""What the test of this process has used so far."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.proc import descendants

with contextlib.suppress(ImportError):  # Windows has none, and forks nothing
    import resource

if TYPE_CHECKING:
    from pytest_nsisolate.cgroups.group import Group


#: The unit of getrusage(2) for I/O, in bytes.
BLOCK = 512


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


def peak_bytes(maxrss: int) -> int:
    """What getrusage(2) and wait4(2) call ``ru_maxrss``, in bytes: macOS counts it in these."""
    return maxrss if sys.platform == "darwin" else maxrss * 1024


def rusage() -> dict[str, float]:
    """What this process and the children it waited for took, in seconds and bytes."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "user": own.ru_utime + children.ru_utime,
        "system": own.ru_stime + children.ru_stime,
        "peak memory": peak_bytes(max(own.ru_maxrss, children.ru_maxrss)),
        "read": (own.ru_inblock + children.ru_inblock) * BLOCK,
        "written": (own.ru_oublock + children.ru_oublock) * BLOCK,
    }


def measure(group: Group | None) -> Usage:
    """The usage of the test that is in *group*, if it is in one."""
    used = rusage()
    if os.getppid() == 0:  # as in a pid namespace of its own
        pids = sum(1 for name in os.listdir("/proc") if name.isdigit()) - 1  # but for PID 1
    else:
        pids = 1 + len(descendants(os.getpid()))
    cpu = used["user"] + used["system"]
    measured = group.usage() if group is not None else None
    # A fresh cgroup2 file system shows nothing above the sandbox's own cgroup.
    if measured is None or measured.memory_peak is None or measured.cpu_user is None:
        return Usage(int(used["peak memory"]), cpu, pids, "wait4")
    seconds = measured.cpu_user + (measured.cpu_system or 0.0)
    return Usage(measured.memory_peak, seconds, pids, "cgroup")
