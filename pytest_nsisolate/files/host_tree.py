"""Read the host's tree of mounts and directories, as far as overlays depend on it.

Facts only, read once per session; what becomes of them is `overlay`'s.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.linux import mountinfo
from pytest_nsisolate.core.linux.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsisolate.core.linux.mountinfo import Mount

#: Options of a mount that hold for an overlay of it as well.
_FLAGS = {"nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC, "ro": MS_RDONLY}
#: Of a directory with more entries, no list is made.
MANY = 500


#: File systems of networks and FUSE: a look at one may hang for ever.
_MAY_HANG = frozenset(
    "9p afs autofs beegfs ceph cifs fuse fuseblk gfs2 glusterfs lustre ncpfs nfs nfs4 ocfs2 "  # noqa: SIM905 -- reads as a list of words
    "orangefs pvfs2 smb2 smb3 smbfs virtiofs vboxsf".split()
)


def may_hang(kind: str) -> bool:
    """Return whether this type of file system may hang and asks for rights a sandbox lacks."""
    return kind in _MAY_HANG or kind.startswith("fuse.")


class Mounted(NamedTuple):
    """What is mounted at a path: the type of its file system, and flags (MS_NOEXEC...)."""

    kind: str
    flags: int


class Entry(NamedTuple):
    """One name in a directory, or a directory by itself.

    Attributes:
        kind: "dir", "link", "file" or "other".
        target: of a link.
        size: of a file, in bytes.
        searchable: whether this process may enter it.
        empty: whether it is a directory known to have nothing in it.
    """

    name: str
    kind: str
    mode: int
    uid: int
    gid: int
    target: str = ""
    size: int = 0
    searchable: bool = True
    empty: bool = False


class HostTree(NamedTuple):
    """The facts.

    Attributes:
        mounts: by path.
        listings: of each directory that something is mounted below; None if it can't be
            listed.
        directories: what those, and some others, are themselves.
    """

    mounts: dict[str, Mounted]
    listings: dict[str, tuple[Entry, ...] | None]
    directories: dict[str, Entry]


def by_path(mounts: Iterable[Mount]) -> dict[str, Mounted]:
    """Return what is mounted at each path: of several mounts the last one."""
    found = {}
    for mount in mounts:
        flags = 0
        for option in mount.options:
            flags |= _FLAGS.get(option, 0)
        found[mount.point] = Mounted(mount.kind, flags)
    return found


def ancestors(path: str) -> list[str]:
    """Return all directories above *path*, the root first."""
    parts = path.split("/")[1:-1]
    return (
        ["/", *("/" + "/".join(parts[: n + 1]) for n in range(len(parts)))] if path != "/" else []
    )


def describe(path: str, name: str = "") -> Entry:
    """Describe what is at *path*.

    Raises:
        OSError: it can't be looked at.
    """
    status = os.lstat(path)
    mode = status.st_mode
    kind, target = "other", ""
    if stat.S_ISDIR(mode):
        kind = "dir"
    elif stat.S_ISLNK(mode):
        kind, target = "link", os.readlink(path)
    elif stat.S_ISREG(mode):
        kind = "file"
    return Entry(
        name,
        kind,
        stat.S_IMODE(mode),
        status.st_uid,
        status.st_gid,
        target,
        status.st_size,
        kind != "dir" or os.access(path, os.X_OK, effective_ids=True),
    )


def read_tree(paths: list[str]) -> HostTree:
    """Read the facts, with what *paths* and the directories above them are."""
    mounts = by_path(mountinfo.read())
    listings: dict[str, tuple[Entry, ...] | None] = {"/": _list("/", mounts)}
    for path in mounts:
        for above in ancestors(path):
            if above not in listings and _is_listed(above):
                listings[above] = _list(above, mounts)
    wanted = {*listings, *paths, *(above for one in paths for above in ancestors(one))}
    return HostTree(mounts, listings, _described(wanted))


def _is_listed(path: str) -> bool:
    """Return whether *path* is outside of the kernel's file systems; /dev/shm counts as outside."""
    return not path.startswith(("/proc", "/sys", "/dev")) or path.startswith("/dev/shm")  # noqa: S108 -- as said


def look(tree: HostTree, paths: list[str]) -> HostTree:
    """Add to *tree* what *paths*, and the directories above them, are."""
    missing = {one for path in paths for one in (*ancestors(path), path)} - set(tree.directories)
    return tree._replace(directories={**tree.directories, **_described(missing)})


def _described(paths: set[str]) -> dict[str, Entry]:
    found = {}
    for path in paths:
        try:
            found[path] = describe(path)
        except OSError:
            continue
    return found


def _is_empty(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except OSError:
        return False


def mount_of(path: str, mounts: dict[str, Mounted]) -> Mounted:
    """Return the mount at *path*, or else the mount that *path* lies on."""
    for place in (path, *reversed(ancestors(path))):
        if place in mounts:
            return mounts[place]
    return Mounted("", 0)


def _list(path: str, mounts: dict[str, Mounted]) -> tuple[Entry, ...] | None:
    if may_hang(mount_of(path, mounts).kind):
        return None
    try:
        names = sorted(os.listdir(path))
        if len(names) > MANY:
            return None
        found = []
        for name in names:
            below = os.path.join(path, name)
            if below in mounts and may_hang(mounts[below].kind):
                found.append(Entry(name, "dir", 0o755, 0, 0))
                continue
            try:
                entry = describe(below, name)
                found.append(entry._replace(empty=entry.kind == "dir" and _is_empty(below)))
            except OSError:  # gone meanwhile, or a mount of somebody else's FUSE
                continue
    except OSError:
        return None
    return tuple(found)
