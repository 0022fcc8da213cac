"""The files of cgroup v2, by controller: settings to write and measures to read.

From Documentation/admin-guide/cgroup-v2. The functions are those of `v1`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux.kernel_files import read, read_number, read_table
from pytest_nsisolate.spec.limits import Setting, quota, setting

from .layout import processes, write
from .v1 import bfq_weight

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsisolate.spec.limits import Limits


def settings(
    limits: Limits, controllers: Iterable[str], device: str | None, nodes: Iterable[str]
) -> list[Setting]:
    """Return the settings for *limits*, as far as *controllers* have them; see `v1.settings`.

    ``devices`` has no file here: the sandbox's own /dev holds it.
    """
    found: list[Setting] = []
    if limits.memory is not None:
        found += [
            setting("memory", "memory.max", limits.memory),
            setting("memory", "memory.swap.max", 0, needed=False),
            # All of it goes or nothing: a test whose database is killed would wait for it.
            setting("memory", "memory.oom.group", 1, needed=False),
        ]
    if limits.cpus is not None:
        share, period = quota(limits.cpus)
        found.append(setting("cpu", "cpu.max", f"{share} {period}"))
    if limits.cpu_weight is not None:
        found.append(setting("cpu", "cpu.weight", limits.cpu_weight))
    if limits.pids is not None:
        found.append(setting("pids", "pids.max", limits.pids))
    if limits.cpuset is not None:
        found.append(setting("cpuset", "cpuset.cpus", limits.cpuset))
    if limits.io:
        pairs = " ".join(f"{key}={value}" for key, value in limits.io.items())
        found.append(setting("io", "io.max", f"{device} {pairs}"))
    if limits.io_weight is not None:
        # io.weight is of iocost, io.bfq.weight of BFQ: which one is at work is up to the disk.
        bfq = ("io.bfq.weight", f"default {bfq_weight(limits.io_weight)}")
        found += [
            Setting("io", (("io.weight", f"default {limits.io_weight}"), bfq)),
            Setting("io", (bfq,), needed=False),
        ]
    wanted = set(controllers)
    return [one for one in found if one.controller in wanted]


def prepare(directory: str, parent: str) -> list[Setting]:
    """Return nothing: an empty cpuset takes the parent's."""
    return []


def cpus(directory: str) -> str | None:
    """Return the CPUs that processes in *directory* may use."""
    return read(directory + "/cpuset.cpus.effective")


def memory_peak(directory: str) -> int | None:
    """Return the most bytes that were charged (Linux 5.19)."""
    return read_number(directory + "/memory.peak")


def memory_now(directory: str) -> int | None:
    """Return the bytes charged at this moment."""
    return read_number(directory + "/memory.current")


def cpu_seconds(directory: str) -> tuple[float, float] | None:
    """Return user and system time, which need no controller."""
    table = read_table(directory + "/cpu.stat")
    if "usage_usec" not in table:
        return None
    return table.get("user_usec", 0) / 1e6, table.get("system_usec", 0) / 1e6


def io_bytes(directory: str) -> tuple[int, int] | None:
    """Read and written, over all devices."""
    text = read(directory + "/io.stat")
    if text is None:
        return None
    sums = {"rbytes": 0, "wbytes": 0}
    for word in text.split():
        key, equals, value = word.partition("=")
        if equals and key in sums:
            sums[key] += int(value)
    return sums["rbytes"], sums["wbytes"]


def oom_kills(directory: str) -> int | None:
    """Count the processes killed for the group's own limit.

    The kernel also counts those killed for a limit above, or because the host lacked memory.
    Where it kills a whole group (memory.oom.group) it counts the first of it twice.
    """
    events = read_table(directory + "/memory.events")
    if not events.get("max", 1):
        return 0
    kills, groups = events.get("oom_kill"), events.get("oom_group_kill", 0)
    return kills and max(kills - groups, min(kills, groups))


def freeze(directory: str, deadline: float) -> bool:
    """Stop every process of *directory* (Linux 5.2); return whether all stand by *deadline*."""
    write(directory + "/cgroup.freeze", "1")
    while read_table(directory + "/cgroup.events").get("frozen") != 1:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.001)
    return True


def thaw(directory: str) -> None:
    """Continue the processes that `freeze` has stopped; may raise OSError."""
    write(directory + "/cgroup.freeze", "0")


def kill(directory: str, freezer: str | None, deadline: float) -> bool:
    """Kill every process of *directory* and below; see `v1.kill`.

    Frozen processes die here, too.
    """
    while True:
        pids = processes(directory)
        if not pids and read_table(directory + "/cgroup.events").get("populated", 0) == 0:
            return True
        try:
            write(directory + "/cgroup.kill", "1")  # Linux 5.14
        except OSError:
            for pid in pids:
                if pid:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.001)
