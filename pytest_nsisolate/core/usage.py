"""What a test or a command used, and when it ran.

The figures come from a cgroup, or from getrusage(2) and wait4(2). Those count the CPU time
and the I/O of a process and of the children that it waited for, and the resident memory of
the largest single process. A test process is a fork of pytest, so its memory begins with
what pytest had.

Moments are seconds since the epoch, as in pytest's reports.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys

with contextlib.suppress(ImportError):  # Windows has none, and forks nothing
    import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeGuard

#: The unit of ``ru_inblock`` and ``ru_oublock``, in bytes (getrusage(2)).
_BLOCK = 512
#: How many figures `Usage.to_wire` gives.
_FIGURES = 5


@dataclasses.dataclass(frozen=True)
class Usage:
    """CPU time, memory, processes and I/O; None where nothing measured it.

    Attributes:
        peak_memory: bytes. A cgroup counts all processes, the page cache and files in
            memory; getrusage(2) counts the largest process.
        cpu_user, cpu_system: seconds.
        pids_peak: the most processes and threads that existed at the same time.
        io_read, io_written: bytes that reached a device.
        sampled: fields that hold the highest value seen, because the kernel records no peak.
    """

    peak_memory: int | None = None
    cpu_user: float | None = None
    cpu_system: float | None = None
    pids_peak: int | None = None
    io_read: int | None = None
    io_written: int | None = None
    sampled: frozenset[str] = frozenset()

    @classmethod
    def of_rusage(cls, *figures: resource.struct_rusage) -> Usage:
        """Add up what getrusage(2) or wait4(2) gave; of the memory take the largest."""
        return cls(
            peak_memory=peak_bytes(max(one.ru_maxrss for one in figures)),
            cpu_user=sum(one.ru_utime for one in figures),
            cpu_system=sum(one.ru_stime for one in figures),
            io_read=sum(one.ru_inblock for one in figures) * _BLOCK,
            io_written=sum(one.ru_oublock for one in figures) * _BLOCK,
        )

    @classmethod
    def of_wire(cls, figures: object) -> Usage:
        """Take what `to_wire` gave; nothing of it, if one figure makes no sense.

        The figures are untrusted: a test process can send any value.
        """
        if not isinstance(figures, (list, tuple)) or len(figures) != _FIGURES:
            return cls()
        if not all(is_amount(one) for one in figures):
            return cls()
        user, system, peak, read, written = figures
        return cls(int(peak), float(user), float(system), None, int(read), int(written))

    def to_wire(self) -> tuple[float, ...]:
        """Return the figures that `of_rusage` measures, in a form that JSON can hold."""
        user, system = self.cpu_user or 0.0, self.cpu_system or 0.0
        return user, system, self.peak_memory or 0, self.io_read or 0, self.io_written or 0

    @property
    def cpu(self) -> float | None:
        """CPU seconds, user and system together."""
        if self.cpu_user is None or self.cpu_system is None:
            return None
        return self.cpu_user + self.cpu_system

    def since(self, before: Usage) -> Usage:
        """Return what the same process has used since *before*; the peak stays."""
        return dataclasses.replace(
            self,
            cpu_user=(self.cpu_user or 0.0) - (before.cpu_user or 0.0),
            cpu_system=(self.cpu_system or 0.0) - (before.cpu_system or 0.0),
            io_read=(self.io_read or 0) - (before.io_read or 0),
            io_written=(self.io_written or 0) - (before.io_written or 0),
        )

    def without_cpu(self, user: float, system: float) -> Usage:
        """Subtract the CPU seconds that earlier tests used in the same process."""
        if self.cpu_user is None or self.cpu_system is None:
            return self
        return dataclasses.replace(
            self,
            cpu_user=max(0.0, self.cpu_user - user),
            cpu_system=max(0.0, self.cpu_system - system),
        )

    def memory_and_pids(self) -> Usage:
        """Return only the figures that are peaks."""
        return Usage(self.peak_memory, pids_peak=self.pids_peak, sampled=self.sampled)

    def missing(self, other: Usage) -> frozenset[str]:
        """Return the names of the figures that *other* has and this lacks."""
        return frozenset(
            name
            for name in self.figures()
            if getattr(self, name) is None and getattr(other, name) is not None
        )

    def filled(self, other: Usage) -> Usage:
        """Return a copy in which the figures of *other* replace those that are missing."""
        missing = self.missing(other)
        return dataclasses.replace(self, **{name: getattr(other, name) for name in missing})

    def figures(self) -> dict[str, float | None]:
        """Return all figures by name, in the order of the reports."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "sampled"]
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """How a sandbox was built.

    Attributes:
        asked: when the runner requested it.
        begin: when the keeper had built the one before, and could begin with it.
        made: when the runner heard that it is ready.
        slot: the lowest number that no other sandbox had at that time.
    """

    asked: float
    begin: float
    made: float
    slot: int


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """When and where one attempt of one isolated test ran.

    Attributes:
        begin: when the test began; None if it never did.
        wall: seconds from then to its end, by the monotonic clock.
        lane: the lowest number that no other running test had; None if it never ran.
        sandbox: `sandbox.id` of the fixture.
        built: its sandbox; None if it had none.
        spec: what the test asked for, a `spec.spec.Spec`.
    """

    begin: float | None
    wall: float
    lane: int | None
    sandbox: str
    built: Built | None
    spec: object


def of_this_process() -> Usage:
    """Measure this process and the children that it waited for (getrusage(2))."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return Usage.of_rusage(own, resource.getrusage(resource.RUSAGE_CHILDREN))


def peak_bytes(maxrss: int) -> int:
    """Convert ``ru_maxrss`` to bytes: Linux counts it in KiB, macOS in bytes."""
    return maxrss if sys.platform == "darwin" else maxrss * 1024


def is_amount(value: object) -> TypeGuard[int | float]:
    """Return whether *value* is a number of seconds or bytes, neither NaN nor infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 <= value < 1 << 63
