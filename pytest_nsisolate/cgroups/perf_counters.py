"""Counters of the kernel's perf events for one process and all that it starts.

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

from pytest_nsisolate.core.linux.syscalls import StageError, perf_event_open

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
_CLOEXEC = 1 << 3


@final
class Counters:
    """What is counted from now on; a context manager that closes it.

    Args:
        pid: a process, 0 for this one; what it starts from now on is counted as well.

    Attributes:
        errors: the events that can't be counted here, with the reason.
    """

    def __init__(self, pid: int = 0) -> None:
        self.errors: dict[str, StageError] = {}
        self._fds: dict[str, int] = {}
        for name in EVENTS:
            self._open(name, pid)

    def __enter__(self) -> Counters:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, name: str, pid: int) -> None:
        options = (
            [_EXCLUDE_HV] if name in _IN_KERNEL else [_EXCLUDE_HV, _EXCLUDE_HV | _EXCLUDE_KERNEL]
        )
        for option in options:
            attributes = _attributes(*EVENTS[name], option | _INHERIT)
            try:
                self._fds[name] = perf_event_open(attributes, pid, -1, _CLOEXEC)
            except OSError as error:
                self.errors[name] = StageError(_stage(name), error.errno or errno.EIO)
            else:
                self.errors.pop(name, None)
                return

    def values(self) -> dict[str, int]:
        """Read the counts so far, of the events that can be counted."""
        found = {}
        for name, fd in self._fds.items():
            value, enabled, running = _READ.unpack(os.read(fd, _READ.size))
            # A processor has few counters, and lets more events than that take turns.
            found[name] = value * enabled // running if 0 < running < enabled else value
        return found

    def close(self) -> None:
        """Stop counting."""
        while self._fds:
            os.close(self._fds.popitem()[1])


def _stage(name: str) -> str:
    return "count " + name.replace("_", " ")


def _attributes(kind: int, config: int, options: int) -> bytes:
    return _ATTR.pack(kind, _ATTR.size, config, 0, 0, _TIMES, options, 0, 0, 0)
