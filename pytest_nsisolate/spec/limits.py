"""Limits as values: what a test may use, and what can't be held.

Pure: nothing here looks at the host. A limit that a host can't enforce is a
`LimitError`, a fact with controller, backend, path and errno; `explain` has
its meaning and the fix.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.errors import StageError

from .keys import KEYS

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Which controller enforces which key, in the names of cgroup v2.
CONTROLLERS: Mapping[str, str] = {
    key.name: key.controller for key in KEYS.values() if key.controller
}
#: The period that a new group has, in microseconds.
DEFAULT_PERIOD = 100_000


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one test may use; None is no limit.

    Attributes:
        memory: bytes, swap included: there is none.
        cpus: CPU seconds a second.
        pids: processes and threads at a time.
        cpuset: numbers of CPUs as the kernel writes them: ``0-1,3``.
        io: any of `IO_KEYS`, for the device of the root file system.
        cpu_weight, io_weight: priority against other sandboxes, 1 to 10000; 100 is even.
        devices: paths of the device nodes that may be opened; all others may not.
    """

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    cpuset: str | None = None
    io: Mapping[str, int] | None = None
    cpu_weight: int | None = None
    io_weight: int | None = None
    devices: tuple[str, ...] | None = None

    def controllers(self) -> frozenset[str]:
        """Return the controllers that the limits take, in the names of v2 (see `CONTROLLERS`)."""
        return frozenset(
            controller for key, controller in CONTROLLERS.items() if getattr(self, key) is not None
        )

    def __bool__(self) -> bool:
        return bool(self.controllers())


class LimitError(StageError):
    """A limit that this host can't enforce.

    Attributes:
        controller: in the names of v2.
        backend: "v1", "v2", or "none" where no cgroup file system is mounted.
    """

    def __init__(self, controller: str, backend: str, errno_: int, path: str = "") -> None:
        super().__init__(f"limit {controller} by cgroup {backend}", errno_, path)
        self.controller = controller
        self.backend = backend


class Setting(NamedTuple):
    """One value to be written into a group.

    Attributes:
        controller: whose it is.
        choices: files with what is to be written; the first file that exists is taken.
        needed: whether it is an error if none does.
    """

    controller: str
    choices: tuple[tuple[str, str], ...]
    needed: bool = True


def setting(controller: str, file: str, value: object, *, needed: bool = True) -> Setting:
    """Make a `Setting` with one choice."""
    return Setting(controller, ((file, str(value)),), needed)


def quota(cpus: float) -> tuple[int, int]:
    """Return the quota and period, in microseconds, that give *cpus*.

    The kernel takes no quota below 1 ms, and no period above 1 s.

    Raises:
        ValueError: *cpus* is below `MIN_CPUS`.
    """
    for period in (DEFAULT_PERIOD, 10 * DEFAULT_PERIOD):
        share = round(cpus * period)
        if share >= 1_000:
            return share, period
    raise ValueError(cpus)
