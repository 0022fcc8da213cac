"""The namespaces of a process: which they are, who shares them, and what they lie in.

Read from /proc/PID/ns, and asked of the kernel by ioctl_ns(2). What this caller may not see
(another user's process, a namespace outside of its own) is left out, and said to be.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from typing import NamedTuple

from pytest_nsisolate.core.proc import read

#: All kinds, in the order of `namespaces(7)`'s files; ``*_for_children`` are those that a
#: process enters its next child into.
KINDS = ("user", "pid", "mnt", "net", "uts", "ipc", "cgroup", "time")
_FOR_CHILDREN = {"pid": "pid_for_children", "time": "time_for_children"}
# linux/nsfs.h
_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB704
#: How many of the processes that share a namespace are named.
_NAMED = 3
#: Namespaces of a kind in each other: the kernel's own limit (user_namespaces(7)).
_DEEPEST = 33


class Shared(NamedTuple):
    """One namespace of a process.

    Attributes:
        kind: as under /proc/PID/ns.
        inode: its number.
        mine: whether the caller is in it as well.
        processes: who else is in it, as far as the caller may see.
        for_children: the inode of the one that the next child will be in, if another.
    """

    kind: str
    inode: int
    mine: bool
    processes: tuple[int, ...]
    for_children: int | None = None


class Level(NamedTuple):
    """One step of a chain of nested namespaces.

    Attributes:
        owner: uid of who made a user namespace, else None.
        userns: inode of the user namespace that a pid namespace belongs to, else None.
    """

    inode: int
    owner: int | None = None
    userns: int | None = None


class View(NamedTuple):
    """All that can be seen of one process's namespaces."""

    pid: int
    command: str
    shared: tuple[Shared, ...]
    users: tuple[Level, ...]
    pids: tuple[Level, ...]
    pids_inside: tuple[int, ...]


def inode(pid: int | str, name: str) -> int | None:
    """The inode of a process's namespace; None if this caller may not know."""
    try:
        found = re.search(r"\[(\d+)\]$", os.readlink(f"/proc/{pid}/ns/{name}"))
    except OSError:
        return None
    return int(found[1]) if found else None


def look(pid: int) -> View:
    """What can be seen of the namespaces of *pid*.

    Raises:
        ProcessLookupError: there is no such process.
        PermissionError: it is there, and its namespaces may not be looked at.
    """
    found = read(pid)
    if found is None:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"/proc/{pid}")
    own = {kind: inode(pid, kind) for kind in KINDS}
    if own["pid"] is None:
        os.readlink(f"/proc/{pid}/ns/pid")  # raises what is in the way
    others: dict[tuple[str, int], list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != pid:
            for kind in KINDS:
                one = inode(name, kind)
                if one is not None and one == own[kind]:
                    others.setdefault((kind, one), []).append(int(name))
    shared = []
    for kind, number in own.items():
        if number is not None:
            later = inode(pid, _FOR_CHILDREN[kind]) if kind in _FOR_CHILDREN else None
            shared.append(
                Shared(
                    kind,
                    number,
                    inode("self", kind) == number,
                    tuple(sorted(others.get((kind, number), ()))),
                    later if later != number else None,
                )
            )
    return View(
        pid, found.command, tuple(shared), _chain(pid, "user"), _chain(pid, "pid"), pids_of(pid)
    )


def _chain(pid: int, kind: str) -> tuple[Level, ...]:
    """The namespace of *pid* and those around it that the caller may see, outermost first."""
    levels: list[Level] = []
    try:
        fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ()
    try:
        while len(levels) < _DEEPEST:
            levels.append(_level(fd, kind))
            above = _related(fd, _NS_GET_PARENT)
            if above is None:
                break
            os.close(fd)
            fd = above
    finally:
        os.close(fd)
    return tuple(reversed(levels))


def _level(fd: int, kind: str) -> Level:
    number = os.fstat(fd).st_ino
    if kind == "user":
        owner = bytearray(4)
        try:
            fcntl.ioctl(fd, _NS_GET_OWNER_UID, owner)
        except OSError:
            return Level(number)
        return Level(number, owner=int.from_bytes(owner, "little"))
    above = _related(fd, _NS_GET_USERNS)
    if above is None:
        return Level(number)
    try:
        return Level(number, userns=os.fstat(above).st_ino)
    finally:
        os.close(above)


def _related(fd: int, request: int) -> int | None:
    """A descriptor of a namespace that *fd*'s belongs to; None if it is out of sight."""
    try:
        return int(fcntl.ioctl(fd, request))
    except OSError:
        return None


def pids_of(pid: int) -> tuple[int, ...]:
    """The pids of a process, in each pid namespace from the caller's down."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as stream:
            line = next(line for line in stream if line.startswith("NSpid:"))
    except (OSError, StopIteration):
        return ()
    return tuple(map(int, line.split()[1:]))


def as_text(view: View) -> list[str]:
    """Lines for a person."""
    lines = [f"process {view.pid}: {view.command}"]
    if len(view.pids_inside) > 1:
        inside = ", then ".join(map(str, view.pids_inside[1:]))
        lines.append(f"its pid further inside: {inside}")
    lines += ["", f"{'namespace':<10}{'inode':>12}  {'you':<8}shared with"]
    for one in view.shared:
        named = ", ".join(map(str, one.processes[:_NAMED]))
        more = len(one.processes) - _NAMED
        who = f"{named} and {more} more" if more > 0 else named or "nobody you may see"
        if one.for_children is not None:
            who += f"; its next child will be in {one.for_children}"
        lines.append(f"{one.kind:<10}{one.inode:>12}  {'in it' if one.mine else 'outside':<8}{who}")
    for title, levels in (("user namespaces", view.users), ("pid namespaces", view.pids)):
        lines += ["", f"{title}, from the outermost that you may see:"]
        for depth, level in enumerate(levels):
            text = f"{'  ' * depth}  {level.inode}"
            if level.owner is not None:
                text += f", made by uid {level.owner}"
            if level.userns is not None:
                text += f", belongs to user namespace {level.userns}"
            lines.append(text)
    return lines
