"""The files of cgroup v1, by controller: settings to write and measures to read.

From Documentation/admin-guide/cgroup-v1. A controller's files may be in any of the
group's directories, so everything here takes the directory of the controller asked for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux.kernel_files import read, read_number, read_table
from pytest_nsisolate.spec.limits import DEFAULT_PERIOD, Setting, quota, setting

from .layout import processes, write

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsisolate.spec.limits import Limits

_MIN_SHARES, _EVEN_SHARES, _MAX_SHARES = 2, 1024, 262_144
#: How long, in seconds, a freeze may take before what stands still is killed.
_FREEZE_LIMIT = 0.05
_IO_FILES = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}
#: How far below its limit a group may still be refused memory: the kernel charges in
#: batches of 64 pages, one for each CPU at a time.
_CHARGED_AHEAD = 4 << 20


def settings(
    limits: Limits, controllers: Iterable[str], device: str | None, nodes: Iterable[str]
) -> list[Setting]:
    """Return the settings for *limits*, in order, as far as *controllers* have them.

    Args:
        device: ``major:minor`` of the disk that ``io`` is for.
        nodes: what ``devices`` allows, as ``c 1:3``.
    """
    found: list[Setting] = []
    if limits.memory is not None:
        found += [
            setting("memory", "memory.limit_in_bytes", limits.memory),
            # Of memory and swap together: it is there if the kernel accounts swap, and
            # can't be lower than that of memory, so it comes after it.
            Setting(
                "memory",
                (
                    ("memory.memsw.limit_in_bytes", str(limits.memory)),
                    ("memory.swappiness", "0"),
                ),
                needed=False,
            ),
        ]
    if limits.cpus is not None:
        share, period = quota(limits.cpus)
        if period != DEFAULT_PERIOD:
            found.append(setting("cpu", "cpu.cfs_period_us", period))
        found.append(setting("cpu", "cpu.cfs_quota_us", share))
    if limits.cpu_weight is not None:
        found.append(setting("cpu", "cpu.shares", shares(limits.cpu_weight)))
    if limits.pids is not None:
        found.append(setting("pids", "pids.max", limits.pids))
    if limits.cpuset is not None:
        found.append(setting("cpuset", "cpuset.cpus", limits.cpuset))
    for key, value in (limits.io or {}).items():
        found.append(setting("io", _IO_FILES[key], f"{device} {value}"))
    if limits.io_weight is not None:
        text = str(bfq_weight(limits.io_weight))
        found.append(Setting("io", (("blkio.bfq.weight", text), ("blkio.weight", text))))
    if limits.devices is not None:
        found.append(setting("devices", "devices.deny", "a"))
        found += [setting("devices", "devices.allow", f"{node} rw") for node in nodes]
    wanted = set(controllers)
    return [one for one in found if one.controller in wanted]


def shares(weight: int) -> int:
    """Return ``cpu.shares`` for a weight; even is 1024 there, and 100 here."""
    return min(max(round(weight * _EVEN_SHARES / 100), _MIN_SHARES), _MAX_SHARES)


def bfq_weight(weight: int) -> int:
    """Map a weight of at most 10000 to one of BFQ, which ends at 1000, as systemd does."""
    return weight if weight <= 100 else 100 + (weight - 100) * 900 // 9900


def prepare(directory: str, parent: str) -> list[Setting]:
    """Return the settings of *parent* that a cpuset needs before it takes a process."""
    names = ("cpuset.mems", "cpuset.cpus")
    texts = {name: (read(f"{parent}/{name}") or "").strip() for name in names}
    return [setting("cpuset", name, text) for name, text in texts.items() if text]


def cpus(directory: str) -> str | None:
    """Return the CPUs that processes in *directory* may use."""
    return read(directory + "/cpuset.effective_cpus") or read(directory + "/cpuset.cpus")


def memory_peak(directory: str) -> int | None:
    """Return the most bytes that were charged."""
    return read_number(directory + "/memory.max_usage_in_bytes")


def memory_now(directory: str) -> int | None:
    """Return the bytes charged at this moment."""
    return read_number(directory + "/memory.usage_in_bytes")


def cpu_seconds(directory: str) -> tuple[float, float] | None:
    """Return user and system time; their sum is exact, the split is by the kernel's ticks."""
    total = read_number(directory + "/cpuacct.usage")
    if total is None:
        return None
    ticks = read_table(directory + "/cpuacct.stat")
    user, system = ticks.get("user", 0), ticks.get("system", 0)
    part = user / (user + system) if user + system else 1.0
    return total / 1e9 * part, total / 1e9 * (1 - part)


def io_bytes(directory: str) -> tuple[int, int] | None:
    """Read and written, over all devices."""
    text = read(directory + "/blkio.throttle.io_service_bytes_recursive")
    if text is None:
        text = read(directory + "/blkio.throttle.io_service_bytes")
    if text is None:
        return None
    sums = {"Read": 0, "Write": 0}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in sums:
            sums[words[1]] += int(words[2])
    return sums["Read"], sums["Write"]


def oom_kills(directory: str) -> int | None:
    """Count the processes killed for the group's own limit (Linux 4.13).

    The kernel also counts those killed for a limit above, or because the host lacked memory.
    """
    killed = read_table(directory + "/memory.oom_control").get("oom_kill")
    if killed:
        limit, peak = read_number(directory + "/memory.limit_in_bytes"), memory_peak(directory)
        if limit is not None and peak is not None and peak + _CHARGED_AHEAD < limit:
            return 0
    return killed


def freeze(directory: str, deadline: float) -> bool:
    """Stop every process of the freezer's *directory*; return whether all stand by *deadline*."""
    path = directory + "/freezer.state"
    while True:
        # Written again: a task that was just being forked may have been missed.
        write(path, "FROZEN")
        if (read(path) or "").strip() == "FROZEN":
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.001)


def thaw(directory: str) -> None:
    """Continue the processes that `freeze` has stopped; may raise OSError."""
    write(directory + "/freezer.state", "THAWED")


def kill(directory: str, freezer: str | None, deadline: float) -> bool:
    """Kill every process of *directory*, also one that forks as fast as it can.

    Args:
        freezer: the freezer's directory of the same group: what is frozen can't fork,
            and dies only once it is thawed.

    Returns:
        whether all are gone by *deadline* (monotonic).
    """
    while True:
        pids = set(processes(directory))
        if freezer is not None and os.path.exists(freezer + "/freezer.state"):
            with contextlib.suppress(OSError):
                freeze(freezer, min(deadline, time.monotonic() + _FREEZE_LIMIT))
            pids.update(processes(directory), processes(freezer))
        for pid in pids - {0}:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if freezer is not None:
            with contextlib.suppress(OSError):
                thaw(freezer)
        if not pids:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.001)
