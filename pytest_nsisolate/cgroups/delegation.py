"""Claim a part of the cgroup v2 hierarchy for the session: its own, or one from systemd.

v2 lets a cgroup with processes enable no controllers ("no internal processes"), so
whoever builds below its own cgroup moves its processes into a leaf first. Only the
root of the hierarchy is free of that.

Order: the own cgroup if it was delegated, or if there is no systemd to be asked; else a
transient scope, from the user's systemd (root: the system's), which the runner moves
to; else the own cgroup after all, if all in it is this user's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import subprocess
import time
from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux import kernel_files
from pytest_nsisolate.spec.limits import LimitError

from . import layout as cgroup_layout
from .layout import CORE_OF_V2, Hierarchy

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The cgroup that the processes of a shared cgroup are moved to.
LEAF = "nsisolate-runner"
#: How long systemd may take for a scope, and another session for its claim, in seconds.
PATIENCE = 5.0
_UNIT = re.compile(r"/([^/]+)\.(scope|service)(?=/|$)")
_USERS = "/user@"
#: How often to move processes that are there again: forked in between.
_ROUNDS = 20


@dataclasses.dataclass
class Claim:
    """What was got.

    Attributes:
        base: the directory below which groups can be made.
        errors: the controllers that they can't have, with the reason.
        leaf: where the runner was moved to, if it was, by this session or one before it.
        enabled: controllers enabled by this claim, or by others that share the leaf.
        whole: whether all processes of the base may be moved.
    """

    base: str
    errors: dict[str, LimitError] = dataclasses.field(default_factory=dict)
    leaf: str | None = None
    enabled: list[str] = dataclasses.field(default_factory=list)
    whole: bool = False

    def hand_on(self, directory: str, controller: str) -> None:
        """Enable *controller* for what is below *directory*, a child of the base, or raise OSError.

        A session that ended since the claim may have taken the controller with it.
        """
        path = directory + "/cgroup.subtree_control"
        try:
            cgroup_layout.write(path, f"+{controller}")
        except FileNotFoundError:
            with _locked(self.base):
                _enable(self, frozenset({controller}))
                cgroup_layout.write(path, f"+{controller}")

    def give_back(self) -> None:
        """Undo it, unless another session builds on it, too. After the groups are removed."""
        if self.leaf is None and not self.enabled:
            return
        with contextlib.suppress(OSError), _locked(self.base):
            for controller in self.enabled:
                # EBUSY: a session that still runs has it enabled below.
                cgroup_layout.write(self.base + "/cgroup.subtree_control", f"-{controller}")
            if self.leaf is not None:
                _move(self.leaf, self.base)
                cgroup_layout.unmake(self.leaf)


class _locked(contextlib.ExitStack):  # noqa: N801 -- reads as a word at `with`
    """The lock on a cgroup's directory that claims of several sessions take turns by."""

    def __init__(self, directory: str) -> None:
        super().__init__()
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.callback(os.close, fd)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= deadline:
                    self.close()
                    raise
                time.sleep(0.005)
            else:
                return


def claim(unified: Hierarchy, wanted: frozenset[str], companions: Sequence[int] = ()) -> Claim:
    """Claim a place for groups with the controllers *wanted*; its errors name missing ones.

    Args:
        companions: pids that move with this process, if it has to.
    """
    own = own_base(unified)
    if (
        systemd_runs()
        and os.path.exists(own + "/cgroup.type")
        and not (_is_writable(own) and is_delegated(own))
    ):
        scope = ask_systemd(companions)
        if scope is not None:
            return _take(Hierarchy(2, unified.mount, scope), scope, wanted)
    return _take(unified, own, wanted)


def own_base(unified: Hierarchy) -> str:
    """Return the own cgroup, or its parent if this process has been moved into the leaf."""
    own = unified.own
    return os.path.dirname(own) if os.path.basename(own) == LEAF else own


def _is_writable(directory: str) -> bool:
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=True)


def systemd_runs() -> bool:
    """Return whether systemd is the init system (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def is_delegated(directory: str) -> bool:
    """Return whether *directory* is in a unit that systemd delegates to the processes in it."""
    unit = unit_of(directory)
    if _is_marked(directory):
        return True
    if unit is None or os.path.basename(unit) == "init.scope":
        return False
    if _is_marked(unit):
        return True
    # Only the system's manager makes marks: a user's is to be asked.
    manager = "--user" if _USERS in unit else "--system"
    command = ["systemctl", manager, "show", "--property=Delegate", "--value"]
    return _ask([*command, os.path.basename(unit)]) == "yes"


def _is_marked(directory: str) -> bool:
    """Return whether systemd has marked *directory* as delegated.

    Only root can read the first mark; every user can read the second (systemd 251).
    """
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    return False


def unit_of(directory: str) -> str | None:
    """Return the cgroup of the unit that *directory* belongs to, None if it is in no unit.

    A slice does not count as a unit. What is below a user's manager belongs to a unit of that.
    """
    found = None
    for match in _UNIT.finditer(directory):
        found = directory[: match.end()]
        if not (match[1].startswith("user@") and match[2] == "service"):
            break
    return found


def _take(unified: Hierarchy, base: str, wanted: frozenset[str]) -> Claim:
    found = Claim(base, whole=base == unified.mount)

    def refuse(controllers: frozenset[str], number: int, path: str) -> None:
        for one in controllers:
            found.errors[one] = LimitError(one, "v2", number, path)

    if not unified.writable:
        refuse(wanted, errno.EROFS, base)
        return found
    if not _is_writable(base):
        refuse(wanted, errno.EACCES, base)
        return found
    try:
        with _locked(base):
            _enable(found, wanted - CORE_OF_V2)
    except OSError as error:
        refuse(wanted, error.errno or errno.EIO, base)
    return found


def _enable(found: Claim, wanted: frozenset[str]) -> None:
    base = found.base
    there = set((kernel_files.read(base + "/cgroup.controllers") or "").split())
    for one in wanted - there:
        path = base + "/cgroup.controllers"
        found.errors[one] = LimitError(one, "v2", errno.EOPNOTSUPP, path)
    control = base + "/cgroup.subtree_control"
    enabled = (kernel_files.read(control) or "").split()
    if os.path.isdir(f"{base}/{LEAF}"):
        # What is enabled here has been since there is a leaf. The last session undoes it.
        found.leaf, found.enabled = f"{base}/{LEAF}", enabled
    wanted = wanted & there - set(enabled)
    if not wanted:
        return
    # The root of the hierarchy has no type, and needs no leaf.
    if os.path.exists(base + "/cgroup.type") and not _empty(found):
        path = base + "/cgroup.procs"
        found.errors.update({one: LimitError(one, "v2", errno.EBUSY, path) for one in wanted})
        return
    for one in sorted(wanted):
        try:
            cgroup_layout.write(control, f"+{one}")
        except OSError as error:
            found.errors[one] = LimitError(one, "v2", error.errno or errno.EIO, control)
        else:
            found.enabled.append(one)


def _empty(found: Claim) -> bool:
    """Move the processes of the base into its leaf; return whether none is left."""
    pids = cgroup_layout.processes(found.base)
    if not pids:
        return True
    ours = 0 not in pids and (
        found.whole or all(_user(pid) == os.geteuid() for pid in pids) or is_delegated(found.base)
    )
    if not ours:
        return False
    leaf = f"{found.base}/{LEAF}"
    with contextlib.suppress(FileExistsError):
        cgroup_layout.make(leaf)
    found.leaf = leaf
    return _move(found.base, leaf)


def _move(source: str, target: str) -> bool:
    for _ in range(_ROUNDS):
        pids = cgroup_layout.processes(source)
        if not pids:
            return True
        for pid in pids:
            try:
                cgroup_layout.write(target + "/cgroup.procs", str(pid))
            except ProcessLookupError:
                continue
            except OSError:
                if _user(pid) is not None:
                    raise
    return False


def _user(pid: int) -> int | None:
    """Return the uid of a process; None if it has ended."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def ask_systemd(companions: Sequence[int] = ()) -> str | None:
    """Have systemd move this process, and *companions*, to a scope delegated to this user.

    Returns:
        the directory of the scope, None if there is no systemd that does it.
    """
    unit = _ask_for_scope([os.getpid(), *companions])
    if unit is None and companions:
        # One of them may have ended just now; why, is told elsewhere.
        unit = _ask_for_scope([os.getpid()])
    if unit is None:
        return None
    # The call gives the job; that the process is there is what its end would say.
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for one in cgroup_layout.find().hierarchies:
            if one.version == 2 and os.path.basename(one.own) == unit:
                return one.own if _is_ready(one.own, deadline) else None
        time.sleep(0.01)
    return None


def _ask_for_scope(pids: list[int]) -> str | None:
    """Ask systemd for a scope with *pids*; return its name, None if systemd refused."""
    unit = f"nsisolate-{os.getpid()}-{time.monotonic_ns():x}.scope"
    command = ["busctl", "--system" if os.geteuid() == 0 else "--user", "call"]
    command += ["org.freedesktop.systemd1", "/org/freedesktop/systemd1"]
    command += ["org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))"]
    command += [unit, "fail", "4", "Delegate", "b", "true"]
    command += ["PIDs", "au", str(len(pids)), *map(str, pids)]
    command += ["Description", "s", "pytest with isolated tests"]
    command += ["CollectMode", "s", "inactive-or-failed", "0"]
    return None if _ask(command) is None else unit


def _ask(command: list[str]) -> str | None:
    """Run a command of systemd and return its output; None if it is missing or fails."""
    environment = dict(os.environ)
    runtime = f"/run/user/{os.geteuid()}"
    if os.path.isdir(runtime):
        environment.setdefault("XDG_RUNTIME_DIR", runtime)
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            text=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()


def _is_ready(directory: str, deadline: float) -> bool:
    """Return whether systemd has given the scope's files to this user, by *deadline*."""
    while time.monotonic() < deadline:
        if os.access(directory + "/cgroup.subtree_control", os.W_OK, effective_ids=True):
            return True
        time.sleep(0.01)
    return False
