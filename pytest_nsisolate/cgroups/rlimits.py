"""Hold a test without a control group to what resource limits and CPU affinity can hold.

`holds` refuses the other limits before a test gets here.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

with contextlib.suppress(ImportError):  # Windows has none, and forks nothing
    import resource

from pytest_nsisolate.core.linux import proc
from pytest_nsisolate.spec.bounds import parse_cpus

if TYPE_CHECKING:
    from pytest_nsisolate.spec.spec import Spec


def limit_process(spec: Spec) -> None:
    """Hold this process, which has neither sandbox nor group, to what rlimits can hold it to."""
    if spec.memory is not None and hasattr(resource, "RLIMIT_DATA"):
        used = int(proc.status("self").get("VmData", "0 kB").split()[0]) << 10
        _set_rlimit(resource.RLIMIT_DATA, used + spec.memory)
    if spec.cpuset is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, parse_cpus(spec.cpuset))


def tasks_of(uid: int) -> int:
    """Count the processes and threads of a user, as RLIMIT_NPROC does.

    Since Linux 5.14 it counts by user namespace, and with those of its descendants.
    """
    count = 0
    own = os.readlink("/proc/self/ns/user")
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            path = f"/proc/{name}"
            mine = name.isdigit() and os.stat(path).st_uid == uid
            if mine and os.readlink(f"{path}/ns/user") == own:
                count += len(os.listdir(f"{path}/task"))
    return count


def _set_rlimit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(which, (value, hard))
