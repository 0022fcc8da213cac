"""Mounts as values: each operation can describe itself, and be worked out into steps.

The operations of one sandbox run in the order of the plan, inside its mount
namespace, as its PID 1. A tree that a private mount would hide is picked up
before (`Hold`) and put back on top (`Attach`).
"""

from __future__ import annotations

import os
from typing import NamedTuple

from pytest_nsisolate.core.linux.syscalls import (
    MS_BIND,
    MS_MOVE,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_SLAVE,
    mount,
)

from .steps import Step, attach, hold, make_directories, make_file, make_link, mount_sysfs, uncover


class Propagation(NamedTuple):
    """Cut the tree off the host: no mount made later crosses, either way.

    *kind* "slave" cuts one way: mounts that the host makes later in what it shares
    (mount_namespaces(7)) flow in.
    """

    kind: str = "private"

    def describe(self) -> str:
        return f"make every mount {'private' if self.kind == 'private' else 'a slave'}"

    def steps(self) -> list[Step]:
        flags = MS_REC | (MS_PRIVATE if self.kind == "private" else MS_SLAVE)
        return [Step(mount, (b"none", b"/", b"", flags, b"", f"make mounts {self.kind}"))]


class Hold(NamedTuple):
    """Pick up the tree at *path*, with what is mounted below it."""

    path: str

    def describe(self) -> str:
        return f"pick up {self.path}"

    def steps(self) -> list[Step]:
        return [Step(hold, (os.fsencode(self.path),))]


class Attach(NamedTuple):
    """Put the tree that was picked up at *path* back there."""

    path: str
    readonly: bool

    def describe(self) -> str:
        return f"bind back {self.path}" + (" read-only" if self.readonly else "")

    def steps(self) -> list[Step]:
        return [Step(attach, (os.fsencode(self.path), self.readonly))]


class MakeDirs(NamedTuple):
    """Make a directory and its parents below *top*, a private mount."""

    path: str
    mode: int
    top: str

    def describe(self) -> str:
        return f"make directory {self.path} ({self.mode:o})"

    def steps(self) -> list[Step]:
        paths = []
        path = self.path
        while len(path) > len(self.top):
            paths.append(os.fsencode(path))
            path = os.path.dirname(path)
        return [Step(make_directories, (tuple(reversed(paths)), self.mode))]


class MakeFile(NamedTuple):
    """Make an empty file, to bind one over it."""

    path: str

    def describe(self) -> str:
        return f"make file {self.path}"

    def steps(self) -> list[Step]:
        return [Step(make_file, (os.fsencode(self.path),))]


class Tmpfs(NamedTuple):
    """A private tmpfs. *size* in bytes."""

    path: str
    size: int
    mode: int

    def describe(self) -> str:
        return f"mount tmpfs on {self.path} ({self.size >> 10} KiB, mode {self.mode:o})"

    def steps(self) -> list[Step]:
        options = f"size={self.size},mode={self.mode:o}".encode()
        flags = MS_NOSUID | MS_NODEV
        return [Step(mount, (b"tmpfs", os.fsencode(self.path), b"tmpfs", flags, options))]


class Filesystem(NamedTuple):
    """A fresh kernel file system: proc, sysfs, mqueue or cgroup2."""

    kind: str
    path: str
    readonly: bool

    def describe(self) -> str:
        return f"mount {self.kind} on {self.path}" + (" read-only" if self.readonly else "")

    def steps(self) -> list[Step]:
        flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | (MS_RDONLY if self.readonly else 0)
        kind = self.kind.encode()
        return [Step(mount, (kind, os.fsencode(self.path), kind, flags))]


class Sysfs(NamedTuple):
    """A fresh /sys, with the tree of control groups (read-only by the keeper) in it.

    It is put together on *staging* and moved, since the old /sys, with that
    tree, is out of reach once it is covered.
    """

    staging: str
    cgroup: bool
    readonly: bool = False

    def describe(self) -> str:
        tree = ", with /sys/fs/cgroup read-only" if self.cgroup else ""
        return f"mount sysfs on /sys{' read-only' if self.readonly else ''}{tree}"

    def steps(self) -> list[Step]:
        staging = os.fsencode(self.staging)
        steps = [Step(mount_sysfs, (staging, self.readonly))]
        if self.cgroup:
            source, target = b"/sys/fs/cgroup", staging + b"/fs/cgroup"
            steps.append(Step(mount, (source, target, b"", MS_BIND | MS_REC, b"", "bind")))
        return [*steps, Step(mount, (staging, b"/sys", b"", MS_MOVE, b"", "move sysfs"))]


class Cgroup2(NamedTuple):
    """A fresh, read-only cgroup2 over the host's.

    It is moved there from *staging*: the kernel mounts no file system right over itself (EBUSY).
    """

    path: str
    staging: str

    def describe(self) -> str:
        return f"mount cgroup2 on {self.path} read-only, over the host's"

    def steps(self) -> list[Step]:
        path, staging = os.fsencode(self.path), os.fsencode(self.staging)
        flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY
        return [
            Step(mount, (b"cgroup2", staging, b"cgroup2", flags)),
            Step(mount, (staging, path, b"", MS_MOVE, b"", f"move cgroup2 to {self.path}")),
        ]


class Devices(NamedTuple):
    """A /dev of the sandbox's own, with these nodes of the host's and no others.

    It is put together on *staging* and moved. /dev/ptmx comes with a devpts of its own.
    """

    nodes: tuple[str, ...]
    staging: str

    def describe(self) -> str:
        return f"mount a /dev with {', '.join(self.nodes) or 'no devices'}"

    def steps(self) -> list[Step]:
        staging = os.fsencode(self.staging)
        flags = MS_NOSUID | MS_NOEXEC
        steps = [Step(mount, (b"tmpfs", staging, b"tmpfs", flags, b"size=64k,mode=755"))]
        parents = {"/dev/shm", "/dev/mqueue"}  # noqa: S108 -- where they are mounted
        for node in self.nodes:
            above = os.path.dirname(node)
            while above != "/dev":
                parents.add(above)
                above = os.path.dirname(above)
        places = [staging + os.fsencode(one[4:]) for one in sorted(parents)]
        steps.append(Step(make_directories, (tuple(places), 0o755)))
        for node in self.nodes:
            place = staging + os.fsencode(node[4:])
            if node == "/dev/ptmx":
                steps += self._terminals(staging)
                continue
            steps.append(Step(make_file, (place,)))
            steps.append(Step(mount, (os.fsencode(node), place, b"", MS_BIND, b"", "bind")))
        steps.append(Step(make_link, (b"/proc/self/fd", staging + b"/fd")))
        for number, name in enumerate((b"stdin", b"stdout", b"stderr")):
            steps.append(Step(make_link, (b"/proc/self/fd/%d" % number, staging + b"/" + name)))
        return [*steps, Step(mount, (staging, b"/dev", b"", MS_MOVE, b"", "move /dev"))]

    @staticmethod
    def _terminals(staging: bytes) -> list[Step]:
        pts, options = staging + b"/pts", b"newinstance,ptmxmode=0666,mode=620"
        return [
            Step(make_directories, ((pts,), 0o755)),
            Step(mount, (b"devpts", pts, b"devpts", MS_NOSUID | MS_NOEXEC, options)),
            Step(make_link, (b"pts/ptmx", staging + b"/ptmx")),
        ]


class Uncover(NamedTuple):
    """In a ground: see what the host has where the keeper keeps files for plans."""

    path: str

    def describe(self) -> str:
        return f"once: see the host's {self.path}"

    def steps(self) -> list[Step]:
        return [Step(uncover, (os.fsencode(self.path),))]


class BindFile(NamedTuple):
    """Show the file *source* at *path*."""

    source: str
    path: str

    def describe(self) -> str:
        return f"bind {self.source} on {self.path}"

    def steps(self) -> list[Step]:
        source, path = os.fsencode(self.source), os.fsencode(self.path)
        return [Step(mount, (source, path, b"", MS_BIND, b"", "bind"))]
