"""What a failure means on this host: the form of it, and what explanations look at.

The rows are in `explain` and in the modules of its topics.
"""

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from .syscalls import StageError, unshare

if TYPE_CHECKING:
    from collections.abc import Callable


class Explanation(NamedTuple):
    """For a person: what it means, and the one command or step that mends it."""

    meaning: str
    mend: str


def read_setting(name: str) -> "str | None":
    """A file below /proc/sys, None if this kernel has none of that name."""
    try:
        with open("/proc/sys/" + name.replace(".", "/"), encoding="ascii") as stream:
            return stream.read().strip()
    except (OSError, UnicodeDecodeError):
        return None


def in_container() -> bool:
    """Whether the usual marks of a container engine are there."""
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        return True
    return "container" in os.environ


def seccomp_filtered() -> bool:
    """Whether a seccomp filter is on this process."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
            return any(line.split()[:2] == ["Seccomp:", "2"] for line in stream)
    except OSError:
        return False


def unshare_filtered() -> bool:
    """Whether even an unshare(2) of nothing, which the kernel never refuses, is refused."""
    try:
        unshare(0, stage="unshare nothing")
    except StageError:
        return True
    return False


def used_up(error: StageError) -> "Explanation | None":
    """There are no more namespaces or processes to be had."""
    for kind in ("user", "pid", "mnt", "net", "uts", "ipc", "cgroup", "time"):
        if read_setting(f"user.max_{kind}_namespaces") == "0":
            return Explanation(
                f"This host allows no {kind} namespaces: user.max_{kind}_namespaces = 0.",
                f"sudo sysctl -w user.max_{kind}_namespaces=15000",
            )
    return Explanation(
        "A limit on the number of namespaces or processes is reached, also after waiting for "
        "ended sandboxes to be freed (user.max_*_namespaces, RLIMIT_NPROC, pids limits; a "
        "nesting of 32 user or pid namespaces is the kernel's own limit).",
        "Compare `sysctl user` and `ulimit -u` with what runs; lower --ns-jobs or raise the limit.",
    )


def is_at(*stages: str, errnos: "tuple[int, ...]" = ()) -> "Callable[[StageError], bool]":
    """Whether a failure is at one of *stages* (how they begin), with one of *errnos*, if given."""

    def fits(error: StageError) -> bool:
        return error.stage.startswith(stages) and (not errnos or error.errno in errnos)

    return fits


DENIED = (errno.EPERM, errno.EACCES)

#: Which failures a row is for, and what it says of them; None hands on to the next.
Row = tuple["Callable[[StageError], bool]", "Callable[[StageError], Explanation | None]"]
