"""The form of an explanation, and the facts of the host that explanations read.

The rows are in `explain` and in the modules of its topics.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.linux import proc
from pytest_nsisolate.core.linux.kernel_files import read_sysctl
from pytest_nsisolate.core.linux.syscalls import StageError, unshare

if TYPE_CHECKING:
    from collections.abc import Callable


class Explanation(NamedTuple):
    """The meaning of a failure, and the one command or step that fixes it."""

    meaning: str
    mend: str


def in_container() -> bool:
    """Return whether the usual marks of a container engine are there."""
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        return True
    return "container" in os.environ


def in_podman() -> bool:
    """Return whether the container is Podman's, or of an engine of its family."""
    return os.path.exists("/run/.containerenv")


def confined_by() -> str | None:
    """Return the AppArmor profile that is enforced on this process, None without one."""
    for name in ("apparmor/current", "current"):  # the first since Linux 5.8
        try:
            with open(f"/proc/self/attr/{name}", encoding="utf-8", errors="replace") as stream:
                return enforced(stream.read())
        except OSError:
            continue
    return None


def enforced(label: str) -> str | None:
    """Return the profile of a label (proc_pid_attr(5)) if it is enforced, else None.

    Only AppArmor writes a mode in brackets; "unconfined" has none.
    """
    profile, _, mode = label.strip("\0\n").rpartition(" ")
    return profile if mode in ("(enforce)", "(kill)", "(mixed)") else None


def profile_file(profile: str, folder: str = "/etc/apparmor.d") -> str | None:
    """Return the file directly in *folder* that has the profile, None if there is none."""
    # A profile without a name of its own is called by what it is attached to.
    head = re.compile(rf'^\s*(?:profile\s+)?"?{re.escape(profile)}"?[\s{{]', re.MULTILINE)
    try:
        with os.scandir(folder) as entries:
            paths = sorted(entry.path for entry in entries if entry.is_file())
    except OSError:
        return None
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as stream:
                if head.search(stream.read()):
                    return path
        except OSError:
            continue
    return None


def seccomp_filtered() -> bool:
    """Return whether a seccomp filter is on this process."""
    return proc.status("self").get("Seccomp") == "2"


def unshare_filtered() -> bool:
    """Return whether even an unshare(2) of nothing, which the kernel never refuses, is refused."""
    try:
        unshare(0, stage="unshare nothing")
    except StageError:
        return True
    return False


def used_up(error: StageError) -> Explanation | None:
    """Explain that the host allows no more namespaces or processes."""
    for kind in ("user", "pid", "mnt", "net", "uts", "ipc", "cgroup", "time"):
        if read_sysctl(f"user.max_{kind}_namespaces") == "0":
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


def is_at(*stages: str, errnos: tuple[int, ...] = ()) -> Callable[[StageError], bool]:
    """Make a test for failures whose stage begins with one of *stages*, with one of *errnos*."""

    def fits(error: StageError) -> bool:
        return error.stage.startswith(stages) and (not errnos or error.errno in errnos)

    return fits


DENIED = (errno.EPERM, errno.EACCES)

#: Which failures a row is for, and what it says of them; None hands on to the next.
Row = tuple["Callable[[StageError], bool]", "Callable[[StageError], Explanation | None]"]
