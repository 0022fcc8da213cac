"""Namespaces: their names and flags, who maps to whom, and entering them."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.linux.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    StageError,
)

from .steps import Step

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Names as under /proc/PID/ns, with their clone(2) flags.
FLAGS = {
    "user": CLONE_NEWUSER,
    "pid": CLONE_NEWPID,
    "mnt": CLONE_NEWNS,
    "net": CLONE_NEWNET,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "cgroup": CLONE_NEWCGROUP,
}


class IdRange(NamedTuple):
    """One line of /proc/PID/uid_map (user_namespaces(7))."""

    inside: int
    outside: int
    size: int


class Hostname(NamedTuple):
    """sethostname(2)."""

    name: str

    def describe(self) -> str:
        return f"set the host name to {self.name}"

    def steps(self) -> list[Step]:
        return [Step(_set_hostname, (self.name,))]


def _set_hostname(name: str) -> None:
    try:
        socket.sethostname(name)
    except OSError as error:
        raise StageError("set the host name", error.errno or errno.EIO) from None


def flags_without(share: tuple[str, ...], *, clock: bool = False) -> int:
    """Return the flags of all namespaces except those in *share*; of time only with a *clock*."""
    flags = CLONE_NEWTIME if clock else 0
    for name, flag in FLAGS.items():
        if name not in share:
            flags |= flag
    return flags


def read_map(which: str) -> list[IdRange]:
    """Read the ranges of this process's own ``uid_map`` or ``gid_map``."""
    with open(f"/proc/self/{which}", encoding="ascii") as stream:
        return [IdRange(*map(int, line.split())) for line in stream]


def identity(ranges: list[IdRange]) -> list[IdRange]:
    """Return the map of a child namespace in which every id of *ranges* keeps its number."""
    return [IdRange(inside, inside, count) for inside, _, count in ranges]


def _write(path: str, text: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text)
        finally:
            os.close(fd)
    except OSError as error:
        raise StageError("map ids", error.errno or errno.EIO, path) from None


def map_text(ranges: Iterable[IdRange]) -> bytes:
    """Format *ranges* as the kernel reads them."""
    return b"".join(b"%d %d %d\n" % tuple(one) for one in ranges)


def write_maps(proc: str, uids: bytes, gids: bytes, *, deny_setgroups: bool = False) -> None:
    """Write the maps (`map_text`) of the process whose /proc directory is *proc*.

    Without CAP_SETGID outside, ``setgroups`` must be denied first (Linux 3.19).

    Raises:
        StageError: stage "map ids".
    """
    if deny_setgroups:
        _write(proc + "/setgroups", b"deny")
    _write(proc + "/uid_map", uids)
    _write(proc + "/gid_map", gids)


def inodes(pid: int | str = "self") -> dict[str, int]:
    """Return the inode numbers of the namespaces of a process, by name."""
    found = {}
    for name in FLAGS:
        try:
            found[name] = os.stat(f"/proc/{pid}/ns/{name}").st_ino
        except FileNotFoundError:
            continue
    return found


def subordinate_ids(path: str, uid: int) -> list[IdRange]:
    """Read the ranges that *path* (/etc/subuid or /etc/subgid, subuid(5)) grants to *uid*.

    They keep their numbers inside: a map of the session, not of a test.
    """
    names = {str(uid)}
    try:
        with open("/etc/passwd", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                fields = line.split(":")
                if len(fields) > 2 and fields[2] == str(uid):
                    names.add(fields[0])
        with open(path, encoding="utf-8", errors="replace") as stream:
            entries = [line.strip().split(":") for line in stream]
    except OSError:
        return []
    return [
        IdRange(int(entry[1]), int(entry[1]), int(entry[2]))
        for entry in entries
        if len(entry) == 3 and entry[0] in names and entry[1].isdigit() and entry[2].isdigit()
    ]
