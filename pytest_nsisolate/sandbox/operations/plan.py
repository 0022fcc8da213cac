"""The plan of a sandbox: every operation that builds it, as values, in order.

A plan is made in the runner from a spec and the facts of the host (`build_operations`), is
printed by ``--ns-debug`` (`describe`), travels to the keeper (`to_wire`,
`from_wire`), is worked out there into steps (`work_out`), and the PID 1 of each
sandbox runs these.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pytest_nsisolate.core.linux.syscalls import CLONE_NEWTIME

from . import clock, loopback, mounts, namespaces, overlay_layers
from .namespaces import IdRange

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .steps import Step

#: Directories that every sandbox has for itself.
PRIVATE = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 -- these are the mount points meant

#: Where the keeper's own mount namespace has files that sandboxes bind.
STORE = "/dev/shm"  # noqa: S108 -- covered by a tmpfs of its own in there


class Operation(Protocol):
    """One thing to do in a sandbox that is being built."""

    def describe(self) -> str:
        """Describe the operation in half a line."""
        ...

    def steps(self) -> list[Step]:
        """Return the steps that the operation takes, ready to run."""
        ...


_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        clock.Clock,
        overlay_layers.Descend,
        overlay_layers.Layer,
        overlay_layers.LayerStage,
        mounts.Attach,
        mounts.BindFile,
        mounts.Cgroup2,
        mounts.Devices,
        mounts.Filesystem,
        mounts.Hold,
        mounts.MakeDirs,
        mounts.MakeFile,
        mounts.Propagation,
        mounts.Sysfs,
        mounts.Tmpfs,
        mounts.Uncover,
        namespaces.Hostname,
        loopback.Loopback,
        loopback.Sysctl,
    )
}


class Plan(NamedTuple):
    """All that the keeper needs to build one kind of sandbox.

    Attributes:
        ground: operations that run once, in the mount namespace that the sandboxes of this
            plan start with a copy of; none for a copy of the keeper's own.
    """

    flags: int
    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]
    operations: tuple[Operation, ...]
    ground: tuple[Operation, ...] = ()

    def describe(self) -> list[str]:
        names = [name for name, flag in namespaces.FLAGS.items() if self.flags & flag]
        lines = [f"unshare {', '.join(names)}"]
        for kind, ranges in (("uid", self.uids), ("gid", self.gids)):
            lines += [f"map {kind} {a} to {b} ({n} ids)" for a, b, n in ranges]
        ground = [operation.describe() for operation in self.ground]
        return ground + lines + [operation.describe() for operation in self.operations]

    def to_wire(self) -> list[Any]:
        operations, ground = (
            [[type(one).__name__, *one] for one in part]  # type: ignore[misc]
            for part in (self.operations, self.ground)
        )
        return [self.flags, self.uids, self.gids, operations, ground]

    @classmethod
    def from_wire(cls, data: list[Any]) -> Plan:
        flags, uids, gids, operations, ground = data
        return cls(
            flags,
            tuple(IdRange(*one) for one in uids),
            tuple(IdRange(*one) for one in gids),
            tuple(_kind(kind)(*map(_tuples, values)) for kind, *values in operations),
            tuple(_kind(kind)(*map(_tuples, values)) for kind, *values in ground),
        )


def _kind(name: str) -> Any:
    if name in _KINDS:
        return _KINDS[name]
    from . import roots  # noqa: PLC0415 -- only for another view of the host's files

    return getattr(roots, name)


def _tuples(value: Any) -> Any:
    """Turn lists into tuples: JSON has no tuples, and a field of an operation is never a list."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def overlays_of(plan: Plan) -> dict[int, str]:
    """Return the paths of the writable overlays of *plan*, by their numbers."""
    # Their module is loaded only where there are any.
    found: list[Any] = [one for one in plan.operations if type(one).__name__ == "Overlay"]
    return {one.number: one.path for one in found if one.writable}


class View(NamedTuple):
    """What of a plan depends on how a sandbox sees the host's files (`views`).

    Attributes:
        ground: see `Plan`.
        enter, leave: what builds a new root, and what lets go of the old one at the end.
        propagation: "private", or "slave": mounts made on the host flow in.
        sealed: whether the host's files can't be written to.
        proc: what mounts /proc, if not as ever.
        hosts: whether there is an /etc/hosts to bind one on.
    """

    ground: tuple[Operation, ...] = ()
    enter: tuple[Operation, ...] = ()
    leave: tuple[Operation, ...] = ()
    propagation: str = "private"
    sealed: bool = False
    proc: Operation | None = None
    hosts: bool = True


def with_shared(
    paths: Iterable[str], host: Host, view: View, hosts: str | None
) -> tuple[Host, View]:
    """Change *host* and *view* for a plan with *paths*, some of which may lie in `STORE`.

    Its ground then begins with the host's directory. The file *hosts* of the store is bound
    before; but no overlay is to find a mount in its /etc.
    """
    if not any(is_below(path, STORE) for path in paths):
        return host, view
    ground: list[Operation] = [mounts.Uncover(STORE)]
    if (
        hosts is not None
        and os.path.isdir(STORE)
        and host.hosts_file
        and view.hosts
        and not view.enter
    ):
        ground.insert(0, mounts.BindFile(f"{STORE}/{hosts}", "/etc/hosts"))
    return host._replace(store=False), view._replace(ground=(*ground, *view.ground))


class Host(NamedTuple):
    """What the plan has to know of the host; read once per session by `probe_host`."""

    directories: frozenset[str]
    cgroup2: bool
    hosts_file: bool
    store: bool

    def with_root(self) -> Host:
        """Return the facts with another root, in which all private directories exist."""
        return self._replace(directories=self.directories | set(PRIVATE), hosts_file=True)


def is_below(path: str, top: str) -> bool:
    """Return whether *path* is *top* or lies in it."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def topmost(paths: list[str]) -> list[str]:
    """Return *paths* without those that lie below another of them."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(is_below(path, one) for one in kept):
            kept.append(path)
    return kept


def build_operations(
    *,
    share: tuple[str, ...],
    hostname: str,
    tmpfs: int,
    groups: IdRange,
    host: Host,
    needed: list[str],
    basetemp: str | None,
    temporary: tuple[tuple[str, bool], ...] = (),
    devices: tuple[str, ...] | None = None,
    offset: float | None = None,
    view: View = View(),  # noqa: B008 -- a frozen value
    hosts: str | None = None,
    level: int = 0,
    snapshot: bool = False,
    alone: bool = True,
    pid_max: int = 0,
) -> tuple[Operation, ...]:
    """Return the operations that build a sandbox, in order.

    Args:
        share: names of the namespaces that stay the host's.
        hostname: unless ``uts`` is shared.
        tmpfs: size of the private /tmp in bytes; the other private mounts have it too.
        groups: gids that may open ping sockets.
        host: facts of the host.
        needed: absolute paths that stay visible where a private mount would hide them.
        basetemp: pytest's directory for ``tmp_path``, private and empty in the sandbox.
        temporary: other directories for temporary files, and whether one that no private
            directory hides is private and empty, too.
        devices: the nodes of a private /dev; None leaves the host's.
        offset: of the clocks, in seconds; None leaves the host's.
        view: of the host's files.
        hosts: the file in the store that becomes /etc/hosts; None for the one of *hostname*.
        level: how many snapshots' sandboxes it is inside of.
        snapshot: whether others are to be built inside it.
        alone: whether its own network has no link to the host.
        pid_max: up to which number pids are given out; 0 leaves that to the kernel.
    """
    before: list[Operation] = [mounts.Propagation(view.propagation), *view.enter]
    steps: list[tuple[str, int, Operation]] = []  # by path, so that parents come first
    own = [*temporary, *([(basetemp, True)] if basetemp is not None else [])]
    _private_directories(before, steps, tmpfs, host, needed=needed, own=own)
    _kernel_file_systems(before, steps, share, host, view)
    after: list[Operation] = []
    if "uts" not in share:
        after.append(namespaces.Hostname(hostname))
        hosts = hosts or f"hosts-{hostname}"
    # Inside a snapshot's sandbox it is there already.
    if hosts is not None and host.hosts_file and host.store and view.hosts and level == 0:
        before.append(mounts.BindFile(f"{STORE}/{hosts}", "/etc/hosts"))
    if "net" not in share:
        last = min(groups.inside + groups.size - 1, 2**31)
        after.append(loopback.Loopback(alone))
        after.append(loopback.Sysctl("net.ipv4.ip_unprivileged_port_start", "0"))
        after.append(loopback.Sysctl("net.ipv4.ping_group_range", f"{groups.inside} {last}"))
    if pid_max and view.proc is None:
        after.append(loopback.Sysctl("kernel.pid_max", str(pid_max)))
    if offset is not None:
        after.append(clock.Clock(clock.nanoseconds(offset)))
    if devices is not None and level == 0:
        before.append(mounts.Devices(devices, PRIVATE[0]))  # covers `STORE`
    steps.sort(key=lambda step: step[:2])
    built = [operation for _, _, operation in steps]
    if level or snapshot:
        private = sum(isinstance(one, mounts.Tmpfs) for one in built)
        built = _in_layers(built, level)
        if snapshot and level and private:
            after.append(overlay_layers.Descend(level, private))
    return (*before, *built, *after, *view.leave)


def _in_layers(built: list[Operation], level: int) -> list[Operation]:
    """Replace each private tmpfs in *built* by a layer."""
    private = [one for one in built if isinstance(one, mounts.Tmpfs)]
    if not private:
        return built
    size = max(one.size for one in private)
    result: list[Operation] = [
        overlay_layers.LayerStage(private[0].path, level, len(private), size)
    ]
    for one in built:
        if isinstance(one, mounts.Tmpfs):
            number = private.index(one)
            one = overlay_layers.Layer(one.path, level, number, one.size, one.mode)  # noqa: PLW2901
        result.append(one)
    return result


def _private_directories(
    before: list[Operation],
    steps: list[tuple[str, int, Operation]],
    tmpfs: int,
    host: Host,
    *,
    needed: list[str],
    own: list[tuple[str, bool]],
) -> None:
    # A needed path that is a private directory itself (a suite that lives
    # right in /tmp) leaves that directory the host's.
    private = [path for path in PRIVATE if path in host.directories and path not in needed]
    backs = topmost([path for path in needed if any(is_below(path, top) for top in private)])
    steps += [(path, 0, mounts.Tmpfs(path, tmpfs, 0o1777)) for path in private]
    for path in backs:
        before.append(mounts.Hold(path))
        top = next(top for top in private if is_below(path, top))
        if path in host.directories:
            steps.append((path, 1, mounts.MakeDirs(path, 0o755, top)))
        else:
            steps.append((path, 0, mounts.MakeDirs(path.rpartition("/")[0], 0o755, top)))
            steps.append((path, 1, mounts.MakeFile(path)))
        steps.append((path, 2, mounts.Attach(path, readonly=False)))
    for path, mounted in sorted(dict(own).items()):
        around = [top for top in (*private, *backs) if is_below(path, top)]
        inside = max(around, key=len, default="")
        if inside in private and path != inside:
            steps.append((path, 0, mounts.MakeDirs(path, 0o700, inside)))
        elif mounted and path not in private:
            steps.append((path, 3, mounts.Tmpfs(path, tmpfs, 0o700)))
            private.append(path)


def _kernel_file_systems(
    before: list[Operation],
    steps: list[tuple[str, int, Operation]],
    share: tuple[str, ...],
    host: Host,
    view: View,
) -> None:
    proc = view.proc or mounts.Filesystem("proc", "/proc", readonly=False)
    steps.append(("/proc", 0, proc))
    queues = "/dev/mqueue"
    if queues in host.directories and "ipc" not in share:
        steps.append((queues, 0, mounts.Filesystem("mqueue", queues, readonly=False)))
    cgroup = "/sys/fs/cgroup"
    there = cgroup in host.directories
    fresh = there and host.cgroup2 and "cgroup" not in share
    if "net" not in share:
        # sysfs shows the devices of the network namespace it was mounted in.
        before.append(mounts.Sysfs(PRIVATE[0], there and not fresh, view.sealed))
        if fresh:
            steps.append((cgroup, 0, mounts.Filesystem("cgroup2", cgroup, readonly=True)))
    elif fresh:
        before.append(mounts.Cgroup2(cgroup, PRIVATE[0]))


class Program(NamedTuple):
    """A plan worked out, as the keeper keeps it."""

    flags: int
    uids: bytes
    gids: bytes
    steps: tuple[Step, ...]
    #: What the first sandbox does at the end.
    once: tuple[Step, ...] = ()
    #: A descriptor of the mount namespace to start from, -1 for the keeper's.
    ground: int = -1


def work_out(plan: Plan) -> Program:
    """Work out everything that can be done ahead of the sandboxes of *plan*."""
    return Program(
        plan.flags & ~CLONE_NEWTIME,  # see `clock`
        namespaces.map_text(plan.uids),
        namespaces.map_text(plan.gids),
        steps_of(one for one in plan.operations if not hasattr(one, "once")),
        steps_of(one for one in plan.operations if hasattr(one, "once")),
    )


def steps_of(operations: Iterable[Operation]) -> tuple[Step, ...]:
    """Return the steps of *operations*, in order."""
    return tuple(step for operation in operations for step in operation.steps())
