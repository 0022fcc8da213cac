"""Counters of the kernel's perf events for one process and all that it starts, or one cgroup.

Software events (page faults, context switches, migrations) are there wherever the
kernel lets this user count at all; instructions and cycles where the processor shows
them, which few virtual machines do. kernel.perf_event_paranoid decides what a user
may count: from 2 on nothing in the kernel, and context switches happen there.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, final

from pytest_nsisolate.core.kernel_files import read
from pytest_nsisolate.core.syscalls import StageError, perf_event_open
from pytest_nsisolate.spec.bounds import parse_cpus

if TYPE_CHECKING:
    from types import TracebackType

_HARDWARE, _SOFTWARE = 0, 1
# linux/perf_event.h: type and config
EVENTS = {
    "page_faults": (_SOFTWARE, 2),
    "context_switches": (_SOFTWARE, 3),
    "cpu_migrations": (_SOFTWARE, 4),
    "instructions": (_HARDWARE, 1),
    "cycles": (_HARDWARE, 0),
}
#: Counted where they happen, which is in the kernel: without it they would be a false 0.
_IN_KERNEL = frozenset({"context_switches", "cpu_migrations"})
#: struct perf_event_attr as of its first version.
_ATTR = struct.Struct("=IIQQQQQIIQ")
_READ = struct.Struct("=QQQ")
_TIMES = 0x1 | 0x2  # PERF_FORMAT_TOTAL_TIME_ENABLED | _RUNNING
_INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 1, 1 << 5, 1 << 6
_PID_CGROUP, _CLOEXEC = 1 << 2, 1 << 3


@final
class Counters:
    """What is counted from now on; a context manager that closes it.

    Args:
        pid: a process, 0 for this one; what it starts from now on is counted as well.
        cgroup: a directory of v2 (or v1's perf_event) instead: all that is in it.

    Attributes:
        errors: the events that can't be counted here, with the reason.
    """

    def __init__(self, pid: int = 0, *, cgroup: str | None = None) -> None:
        self.errors: dict[str, StageError] = {}
        self._fds: dict[str, list[int]] = {}
        place = -1
        if cgroup is not None:
            try:
                place = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                number = error.errno or errno.EIO
                self.errors = {name: StageError(_stage(name), number, cgroup) for name in EVENTS}
                return
        try:
            for name in EVENTS:
                self._open(name, pid, place)
        finally:
            if place >= 0:
                os.close(place)

    def __enter__(self) -> Counters:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, name: str, pid: int, place: int) -> None:
        options = (
            [_EXCLUDE_HV] if name in _IN_KERNEL else [_EXCLUDE_HV, _EXCLUDE_HV | _EXCLUDE_KERNEL]
        )
        kind, config = EVENTS[name]
        for option in options:
            fds: list[int] = []
            try:
                if place < 0:
                    attributes = _attributes(kind, config, option | _INHERIT)
                    fds.append(perf_event_open(attributes, pid, -1, _CLOEXEC))
                else:
                    # A cgroup is counted on each CPU by itself.
                    for cpu in _online():
                        attributes = _attributes(kind, config, option)
                        flags = _CLOEXEC | _PID_CGROUP
                        fds.append(perf_event_open(attributes, place, cpu, flags))
            except OSError as error:
                for fd in fds:
                    os.close(fd)
                self.errors[name] = StageError(_stage(name), error.errno or errno.EIO)
            else:
                self._fds[name] = fds
                self.errors.pop(name, None)
                return

    def values(self) -> dict[str, int]:
        """The counts so far, of what can be counted."""
        found = {}
        for name, fds in self._fds.items():
            total = 0
            for fd in fds:
                value, enabled, running = _READ.unpack(os.read(fd, _READ.size))
                # A processor has few counters, and lets more events than that take turns.
                total += value * enabled // running if 0 < running < enabled else value
            found[name] = total
        return found

    def close(self) -> None:
        """Stop counting."""
        while self._fds:
            for fd in self._fds.popitem()[1]:
                os.close(fd)


def _stage(name: str) -> str:
    return "count " + name.replace("_", " ")


def _attributes(kind: int, config: int, options: int) -> bytes:
    return _ATTR.pack(kind, _ATTR.size, config, 0, 0, _TIMES, options, 0, 0, 0)


def _online() -> list[int]:
    return sorted(parse_cpus(read("/sys/devices/system/cpu/online") or "0"))
