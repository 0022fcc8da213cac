"""A group: the cgroups, one in each hierarchy, that hold one sandbox to its limits.

The runner makes it, in its own namespaces; the test process joins it by writing to
descriptors that the runner opened (`sandbox.join`), as the first thing it does: memory is
charged to whoever touches it first, and a fork that has touched nothing yet has
nothing to be charged elsewhere. PID 1 of the sandbox stays outside, and survives to
tell.

Guarantees: a limit is written or `LimitError` is raised, and then nothing of the
group is left; `Group.remove` never waits longer than its *patience*.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pytest_nsisolate.core.linux import kernel_files
from pytest_nsisolate.core.linux.syscalls import StageError
from pytest_nsisolate.core.usage import Usage
from pytest_nsisolate.spec.bounds import parse_cpus
from pytest_nsisolate.spec.limits import LimitError

from . import devices, disk, v1, v2
from . import layout as cgroup_layout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsisolate.spec.limits import Limits, Setting


class Backend(Protocol):
    """What `v1` and `v2` both do, each for its own files."""

    def settings(
        self,
        limits: Limits,
        controllers: Iterable[str],
        device: str | None,
        nodes: Iterable[str],
    ) -> list[Setting]: ...
    def prepare(self, directory: str, parent: str) -> list[Setting]: ...
    def cpus(self, directory: str) -> str | None: ...
    def memory_peak(self, directory: str) -> int | None: ...
    def memory_now(self, directory: str) -> int | None: ...
    def cpu_seconds(self, directory: str) -> tuple[float, float] | None: ...
    def io_bytes(self, directory: str) -> tuple[int, int] | None: ...
    def oom_kills(self, directory: str) -> int | None: ...
    def freeze(self, directory: str, deadline: float) -> bool: ...
    def thaw(self, directory: str) -> None: ...
    def kill(self, directory: str, freezer: str | None, deadline: float) -> bool: ...


BACKENDS: dict[int, Backend] = {1: v1, 2: v2}


class Part(NamedTuple):
    """One cgroup: its directory in a hierarchy, and the controllers it is there for."""

    version: int
    directory: str
    controllers: frozenset[str]

    @property
    def backend(self) -> Backend:
        return BACKENDS[self.version]

    def fact(self, controller: str, error: OSError, path: str) -> LimitError:
        """Make *error* the fact that *controller* can't be used."""
        return LimitError(controller, f"v{self.version}", error.errno or errno.EIO, path)

    def set(self, setting: Setting) -> None:
        """Write *setting*, or raise `LimitError`."""
        path = ""
        for name, text in setting.choices:
            path = f"{self.directory}/{name}"
            try:
                cgroup_layout.write(path, text)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self.fact(setting.controller, error, path) from None
            return
        if setting.needed or not os.path.isdir(self.directory):
            raise LimitError(setting.controller, f"v{self.version}", errno.ENOENT, path)


class Plan(NamedTuple):
    """All that it takes to make groups with some limits, worked out once.

    Attributes:
        limits: what for.
        parts: the session's directories, with the controllers that are of use.
        settings: for each part, what is to be written.
    """

    limits: Limits
    parts: tuple[Part, ...]
    settings: tuple[tuple[Setting, ...], ...]

    def describe(self) -> list[str]:
        """Describe each value in a line, as --ns-debug prints it."""
        lines = []
        for part, settings in zip(self.parts, self.settings, strict=True):
            names = ", ".join(sorted(part.controllers))
            lines.append(f"cgroup v{part.version} in {part.directory}: {names}")
            lines += [f"set {one.choices[0][0]} to {one.choices[0][1]}" for one in settings]
        return lines


def plan(parts: Iterable[Part], limits: Limits, accounting: frozenset[str]) -> Plan:
    """Plan groups with *limits* below *parts*.

    Raises:
        LimitError: what *limits* names isn't there: a device, a CPU, a disk for ``io``.
    """
    wanted = limits.controllers() | accounting
    kept = tuple(
        part._replace(controllers=part.controllers & wanted)
        for part in parts
        if part.controllers & wanted
    )
    where = {controller: part for part in kept for controller in part.controllers}
    nodes = [_node(where["devices"], path) for path in limits.devices or ()]
    device = _disk(where["io"], limits) if "io" in limits.controllers() else None
    if limits.cpuset is not None:
        _check_cpus(where["cpuset"], limits.cpuset)
    texts = [str(node) for node in nodes]
    settings = []
    for part in kept:
        first: list[Setting] = []
        if "cpuset" in part.controllers:
            first = part.backend.prepare(part.directory, part.directory)
        more = part.backend.settings(limits, part.controllers, device, texts)
        settings.append((*first, *more))
    return Plan(limits, kept, tuple(settings))


def _node(part: Part, path: str) -> devices.Node:
    try:
        return devices.node(path)
    except OSError as error:
        raise part.fact("devices", error, path) from None


def _disk(part: Part, limits: Limits) -> str:
    try:
        device = disk.of_root()
        if limits.io_weight is not None:
            disk.check_weights(device, part.version)
    except OSError as error:
        raise part.fact("io", error, error.filename or "/") from None
    return device


def _check_cpus(part: Part, wanted: str) -> None:
    """Check that the CPUs *wanted* exist: v2 takes others too, and then holds to none."""
    there = part.backend.cpus(part.directory)
    try:
        fits = not there or parse_cpus(wanted) <= parse_cpus(there)
    except ValueError:
        fits = False
    if not fits:
        raise LimitError("cpuset", f"v{part.version}", errno.EINVAL, wanted)


class Group:
    """The cgroups of one sandbox. `session.Session.group` makes it.

    Args:
        plan: how.
        name: of its directory, below those of the plan.
        existing: whether another process has made it, and this one only looks.

    Raises:
        LimitError: a limit was refused.
    """

    def __init__(self, plan: Plan, name: str, *, existing: bool = False) -> None:
        self.limits = plan.limits
        self._parts: list[Part] = []
        self._where: dict[str, Part] = {}
        self._fds: list[int] = []
        self._highest = {"memory": 0, "pids": 0}
        if existing:
            self._parts = [
                part._replace(directory=f"{part.directory}/{name}") for part in plan.parts
            ]
            self._where = {one: part for part in self._parts for one in part.controllers}
            return
        required = plan.limits.controllers()
        try:
            for part, settings in zip(plan.parts, plan.settings, strict=True):
                try:
                    self._make(
                        Part(part.version, f"{part.directory}/{name}", part.controllers), settings
                    )
                except LimitError:
                    # What only accounts is no reason to fail a test.
                    if part.controllers & required:
                        raise
        except BaseException:
            self.remove()
            raise

    # making it

    def _make(self, part: Part, settings: tuple[Setting, ...]) -> None:
        controllers = part.controllers & self.limits.controllers() or part.controllers
        path = part.directory
        try:
            cgroup_layout.make(path)
            self._parts.append(part)
            for one in settings:
                part.set(one)
            path += "/cgroup.procs"
            self._fds.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            raise part.fact(min(controllers), error, path) from None
        for controller in part.controllers:
            self._where[controller] = part

    # processes

    @property
    def directories(self) -> list[str]:
        return [part.directory for part in self._parts]

    def join_fds(self) -> list[int]:
        """Return the descriptors to join by, still owned by the group: see `close`."""
        return list(self._fds)

    def close(self) -> None:
        """Close the descriptors for joining: nothing more comes in by them."""
        while self._fds:
            os.close(self._fds.pop())

    def add(self, pid: int) -> None:
        """Take a process in from here, where it can't join by itself.

        Raises:
            StageError: it can't.
        """
        for part in self._parts:
            path = part.directory + "/cgroup.procs"
            try:
                cgroup_layout.write(path, str(pid))
            except OSError as error:
                raise StageError("join the cgroup", error.errno or errno.EIO, path) from None

    def processes(self) -> list[int]:
        """Return the processes in the group, by their pids in this process's namespace."""
        return sorted(
            {pid for part in self._parts for pid in cgroup_layout.processes(part.directory)}
        )

    def freeze(self, patience: float = 1.0) -> bool:
        """Stop all processes; return whether they stood still within *patience* seconds.

        False as well where there is no freezer.
        """
        part = self._where.get("freezer")
        if part is None:
            return False
        with contextlib.suppress(OSError):
            return part.backend.freeze(part.directory, time.monotonic() + patience)
        return False

    def thaw(self) -> None:
        """Continue the processes that `freeze` has stopped."""
        part = self._where.get("freezer")
        if part is not None:
            with contextlib.suppress(OSError):
                part.backend.thaw(part.directory)

    def kill(self, patience: float = 2.0) -> bool:
        """Kill all processes, frozen or not; return whether they end within *patience* seconds."""
        deadline = time.monotonic() + patience
        freezer = self._where.get("freezer")
        results = [
            part.backend.kill(part.directory, freezer and freezer.directory, deadline)
            for part in self._parts
        ]
        return all(results)

    # measures

    def sample(self) -> None:
        """Look at what is used now, where the kernel keeps no peak of it; cheap elsewhere."""
        self._memory_peak()
        self._pids_peak()

    def _memory_peak(self) -> tuple[int | None, bool]:
        """Return the most bytes that were charged, and whether it is only the most seen."""
        part = self._where.get("memory")
        if part is None:
            return None, False
        peak = part.backend.memory_peak(part.directory)
        return (peak, False) if peak is not None else self._seen("memory", self.memory_now())

    def _pids_peak(self) -> tuple[int | None, bool]:
        """Return the most processes at a time, and whether it is only the most seen."""
        part = self._where.get("pids")
        if part is None:
            return None, False
        peak = kernel_files.read_number(part.directory + "/pids.peak")  # Linux 6.1
        if peak is not None:
            return peak, False
        return self._seen("pids", kernel_files.read_number(part.directory + "/pids.current") or 0)

    def _seen(self, what: str, now: int) -> tuple[int | None, bool]:
        highest = self._highest[what] = max(self._highest[what], now)
        return highest or None, highest > 0

    def memory_now(self) -> int:
        """Return the memory in use at the moment, in bytes; 0 if it is unknown."""
        part = self._where.get("memory")
        return (part.backend.memory_now(part.directory) or 0) if part is not None else 0

    def usage(self) -> Usage:
        """Return what was used so far; call it before `remove`."""
        cpu = io = None
        memory, memory_sampled = self._memory_peak()
        pids, pids_sampled = self._pids_peak()
        sampled = {
            name
            for name, only_seen in (("peak_memory", memory_sampled), ("pids_peak", pids_sampled))
            if only_seen
        }
        if (part := self._where.get("cpuacct")) is not None:
            cpu = part.backend.cpu_seconds(part.directory)
        if (part := self._where.get("io")) is not None:
            io = part.backend.io_bytes(part.directory)
        return Usage(
            peak_memory=memory,
            cpu_user=cpu[0] if cpu else None,
            cpu_system=cpu[1] if cpu else None,
            pids_peak=pids,
            io_read=io[0] if io else None,
            io_written=io[1] if io else None,
            sampled=frozenset(sampled),
        )

    def oom_kills(self) -> int:
        """Count the processes that the kernel killed for the memory limit; 0 also if unknown."""
        part = self._where.get("memory")
        return (part.backend.oom_kills(part.directory) or 0) if part is not None else 0

    def pids_denied(self) -> int:
        """Count the forks that the limit of processes refused."""
        part = self._where.get("pids")
        if part is None:
            return 0
        # Older kernels count a refusal by a limit above here as well.
        peak = kernel_files.read_number(part.directory + "/pids.peak")
        if peak is not None and self.limits.pids is not None and peak < self.limits.pids:
            return 0
        return kernel_files.read_table(part.directory + "/pids.events").get("max", 0)

    # the end

    def try_remove(self) -> bool:
        """Remove it if nothing is in it any more; return whether it is gone."""
        self.close()
        self._parts = [part for part in self._parts if not cgroup_layout.remove(part.directory, 0)]
        return not self._parts

    def remove(self, patience: float = 0.0) -> bool:
        """Kill what is left in it and remove it; return whether it goes within *patience* seconds.

        Processes that have just been killed keep a group for some time, so one that is
        not gone yet is to be asked again; a group that another process removed is gone.
        """
        self.close()
        deadline = time.monotonic() + patience
        left = []
        for part in self._parts:
            gone = cgroup_layout.remove(part.directory, 0)
            if not gone:
                self.kill(max(0.0, deadline - time.monotonic()))
                gone = cgroup_layout.remove(part.directory, deadline)
            if not gone:
                left.append(part)
        self._parts = left
        return not left
