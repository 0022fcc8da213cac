"""Choose how many tests run in parallel with ``--ns-jobs auto``.

Counted are the CPUs that this process may run on, the CPU time and the memory that its
control groups leave it (cgroup v1 and v2, up to the root of what is visible), and the
memory that the host has free. What can't be read doesn't count.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.cgroups import layout as cgroup_layout
from pytest_nsisolate.core.linux import kernel_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_nsisolate.cgroups.layout import Layout

#: Bytes that a test in flight is taken to need where no limit says what it may have: its
#: copies of the runner's pages, and as much again for what it does.
PER_TEST = 64 << 20


class Capacity(NamedTuple):
    """How many tests run in parallel, and what decided it."""

    jobs: int
    reason: str


def choose(*, workers: int = 1, largest: int | None = None) -> Capacity:
    """Choose how many tests run in parallel in one of *workers* processes that share this host.

    Args:
        workers: processes of pytest-xdist, or 1.
        largest: the largest memory limit that a test has, in bytes.
    """
    layout = cgroup_layout.find()
    return weigh(cpus(layout), memory(layout), workers, largest)


def weigh(
    cpus: float, memory: int | None, workers: int = 1, largest: int | None = None
) -> Capacity:
    """Decide from these facts how many tests run in parallel; *memory* is in bytes."""
    by_cpus = max(1, int(cpus) // workers)
    reason = f"{cpus:g} CPU{'s' if cpus != 1 else ''}"
    each = max(PER_TEST, largest or 0)
    by_memory = by_cpus if memory is None else max(1, memory // workers // each)
    if by_memory < by_cpus:
        reason = f"{memory_text(memory)} of memory for {memory_text(each)} each"
    if workers > 1:
        reason += f", {workers} workers"
    return Capacity(min(by_cpus, by_memory), reason)


def memory_text(number: int | None) -> str:
    """Format bytes in mebibytes."""
    return f"{(number or 0) >> 20} MiB"


def cpus(layout: Layout) -> float:
    """Return how many CPUs this process may use, as a number with a fraction."""
    usable = hasattr(os, "sched_getaffinity")
    found = float(len(os.sched_getaffinity(0)) if usable else os.cpu_count() or 1)
    for version, directory in _above(layout, "cpu"):
        if version == 2:
            quota, _, period = (kernel_files.read(directory + "/cpu.max") or "").partition(" ")
        else:
            quota = kernel_files.read(directory + "/cpu.cfs_quota_us") or ""
            period = kernel_files.read(directory + "/cpu.cfs_period_us") or ""
        if quota.strip().isdigit() and period.strip().isdigit() and int(period):
            found = min(found, int(quota) / int(period))
    return found


def memory(layout: Layout) -> int | None:
    """Return the bytes that are free for this process and its children; None if unknown."""
    found = []
    for line in (kernel_files.read("/proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            found.append(int(value.split()[0]) << 10)
    for version, directory in _above(layout, "memory"):
        files = ("memory.max", "memory.current", "inactive_file")
        if version == 1:
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit = kernel_files.read_number(f"{directory}/{files[0]}")
        used = kernel_files.read_number(f"{directory}/{files[1]}")
        if limit is not None and used is not None:
            # Files that nobody has used for long go first when memory is short.
            cache = kernel_files.read_table(directory + "/memory.stat").get(files[2], 0)
            found.append(max(0, limit - max(0, used - cache)))
    return min(found, default=None)


def _above(layout: Layout, controller: str) -> Iterator[tuple[int, str]]:
    """Yield the own cgroup of *controller* and those above it, with the version of cgroups."""
    place = layout.where(controller)
    if place is None:
        return
    directory = place.own
    while directory.startswith(place.mount):
        yield place.version, directory
        directory = os.path.dirname(directory)
