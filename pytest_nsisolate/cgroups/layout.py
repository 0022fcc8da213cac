"""Find the hierarchies of cgroups and the place of this process in each, and read their files.

Nothing is assumed about where a controller is mounted: hierarchies are found in
mountinfo, and the own place in each in /proc/self/cgroup. In a container the root
of a mount may be a directory deep in the hierarchy; both files say so.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux import mountinfo
from pytest_nsisolate.core.linux.kernel_files import read

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsisolate.core.linux.mountinfo import Mount

#: Controllers that v2 gives without enabling them.
CORE_OF_V2 = frozenset({"devices", "freezer", "cpuacct"})
_V1_NAMES = {"blkio": "io"}
#: How long, in seconds, between two tries to remove a group; doubled up to the last.
_PAUSES = (0.001, 0.05)


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """One mounted hierarchy.

    Attributes:
        version: 1 or 2.
        mount: its mount point.
        own: the directory of this process's cgroup.
        controllers: of v1, those bound to it, in the names of v2; of v2, empty.
        writable: whether it is mounted so.
    """

    version: int
    mount: str
    own: str
    controllers: frozenset[str] = frozenset()
    writable: bool = True

    @property
    def backend(self) -> str:
        return f"v{self.version}"


@dataclasses.dataclass(frozen=True)
class Layout:
    """All hierarchies that this process can reach."""

    hierarchies: tuple[Hierarchy, ...]

    @property
    def backend(self) -> str:
        """v1, v2, hybrid or none."""
        versions = {one.version for one in self.hierarchies}
        if len(versions) == 2:
            return "hybrid"
        return f"v{versions.pop()}" if versions else "none"

    def where(self, controller: str) -> Hierarchy | None:
        """Return the hierarchy that has *controller*: a v1 one that it is bound to, else v2."""
        unified = None
        for one in self.hierarchies:
            if controller in one.controllers:
                return one
            if one.version == 2:
                unified = one
        return unified


def _names(words: Iterable[str]) -> frozenset[str]:
    return frozenset(_V1_NAMES.get(word, word) for word in words if word)


def _controllers(mount: Mount, known: frozenset[str]) -> frozenset[str]:
    """Return the controllers of *known* that a mount of v1 shows; none for a mount of v2."""
    return _names(mount.super_options) & known if mount.kind == "cgroup" else frozenset()


def _below(path: str, mount: Mount) -> str | None:
    """Return the directory of the cgroup *path* under *mount*; None if the mount lacks it."""
    if "/.." in path or "/.." in mount.root:
        return None  # outside of the cgroup namespace: nothing says where it is
    if mount.root == "/":
        rest = path
    elif path == mount.root or path.startswith(mount.root + "/"):
        rest = path[len(mount.root) :]
    else:
        return None
    return mount.point + rest.rstrip("/")


def parse(mounted: str, membership: str) -> Layout:
    """Parse the text of /proc/self/mountinfo and of /proc/self/cgroup into a layout."""
    places: list[tuple[frozenset[str], str]] = []
    for line in membership.splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if "name=" not in names:
            places.append((_names(names.split(",")) if number != "0" else frozenset(), path))
    known = frozenset(name for names, _ in places for name in names)
    mounts = [one for one in mountinfo.parse(mounted) if one.kind in ("cgroup", "cgroup2")]
    found: list[Hierarchy] = []
    for bound, place in places:
        best = None
        for mount in mounts:
            own = _below(place, mount) if _controllers(mount, known) == bound else None
            version = 2 if mount.kind == "cgroup2" else 1
            if version == (1 if bound else 2) and own is not None:
                writable = "rw" in mount.options and "rw" in mount.super_options
                one = Hierarchy(version, mount.point, own, bound, writable)
                if best is None or (one.writable and not best.writable):
                    best = one
        if best is not None:
            found.append(best)
    return Layout(tuple(found))


def find() -> Layout:
    """Read the layout of this host, as this process sees it."""
    mounted = read("/proc/self/mountinfo", whole=True)
    return parse(mounted or "", read("/proc/self/cgroup", whole=True) or "")


def write(path: str, text: str) -> None:
    """Write *text* in one call into a file that exists, or raise OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def make(path: str) -> None:
    """Make a cgroup, or raise OSError."""
    os.mkdir(path, 0o755)


def unmake(path: str) -> None:
    """Remove a cgroup, or raise OSError: EBUSY as long as a process of it is not quite gone."""
    os.rmdir(path)


def processes(directory: str) -> list[int]:
    """Return the processes in the cgroup itself; 0 is one that this pid namespace doesn't show."""
    return [int(word) for word in (read(directory + "/cgroup.procs", whole=True) or "").split()]


def children(directory: str) -> list[str]:
    """List the cgroups directly below *directory*, as paths."""
    try:
        with os.scandir(directory) as entries:
            return sorted(one.path for one in entries if one.is_dir(follow_symlinks=False))
    except OSError:
        return []


def remove(directory: str, deadline: float) -> bool:
    """Remove an empty cgroup, trying until *deadline* (monotonic); return whether it is gone."""
    pause, longest = _PAUSES
    while True:
        try:
            unmake(directory)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                return False
        else:
            return True
        time.sleep(pause)
        pause = min(pause * 2, longest)
