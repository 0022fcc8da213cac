"""Read the namespaces of a process: which they are, who shares them, and how they are nested.

They are read from /proc/PID/ns and with ioctl_ns(2). What this caller may not see (another
user's process, a namespace outside of its own) is left out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from typing import NamedTuple

from . import proc

#: All kinds, in the order of `namespaces(7)`'s files; ``*_for_children`` are those that a
#: process enters its next child into.
KINDS = ("user", "pid", "mnt", "net", "uts", "ipc", "cgroup", "time")
_FOR_CHILDREN = {"pid": "pid_for_children", "time": "time_for_children"}
# linux/nsfs.h
_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB704
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


class Namespaces(NamedTuple):
    """All that can be seen of one process's namespaces."""

    pid: int
    command: str
    shared: tuple[Shared, ...]
    users: tuple[Level, ...]
    pids: tuple[Level, ...]
    pids_inside: tuple[int, ...]


def inode(pid: int | str, name: str) -> int | None:
    """Return the inode of a process's namespace; None if the caller may not read it."""
    try:
        found = re.search(r"\[(\d+)\]$", os.readlink(f"/proc/{pid}/ns/{name}"))
    except OSError:
        return None
    return int(found[1]) if found else None


def look(pid: int) -> Namespaces:
    """Return what the caller can see of the namespaces of *pid*.

    Raises:
        ProcessLookupError: there is no such process.
        PermissionError: it is there, and its namespaces may not be looked at.
    """
    found = proc.read(pid)
    if found is None:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"/proc/{pid}")
    own = {kind: inode(pid, kind) for kind in KINDS}
    if own["pid"] is None:
        os.readlink(f"/proc/{pid}/ns/pid")  # raises what is in the way
    others = [other for other in proc.pids() if other != pid]
    shared = []
    for kind, number in own.items():
        if number is None:
            continue
        later = inode(pid, _FOR_CHILDREN[kind]) if kind in _FOR_CHILDREN else None
        shared.append(
            Shared(
                kind,
                number,
                mine=inode("self", kind) == number,
                processes=tuple(other for other in others if inode(other, kind) == number),
                for_children=later if later != number else None,
            )
        )
    return Namespaces(
        pid,
        found.command,
        tuple(shared),
        users=_chain(pid, "user"),
        pids=_chain(pid, "pid"),
        pids_inside=proc.pids_of(pid),
    )


def _chain(pid: int, kind: str) -> tuple[Level, ...]:
    """Return the namespace of *pid* and those around it that the caller sees, outermost first."""
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
    """Open a namespace that *fd*'s belongs to (ioctl_ns(2)); None if it is out of sight."""
    try:
        return int(fcntl.ioctl(fd, request))
    except OSError:
        return None
