"""The functions that execute a plan, one step each.

An operation (a mount, a setting) is a value that can describe itself. What its
execution takes is worked out once per plan, in the keeper: a list of these
functions with their arguments ready, so that each sandbox runs through them
with as little Python, and as few touched pages, as can be.

Each raises `errors.StageError` and nothing else.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_nsisolate.core.linux import mountinfo
from pytest_nsisolate.core.linux.syscalls import (
    AT_RECURSIVE,
    MS_BIND,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_RELATIME,
    MS_REMOUNT,
    OPEN_TREE_CLONE,
    StageError,
    make_readonly,
    mount,
    move_mount,
    open_tree,
    umount,
)

if TYPE_CHECKING:
    from collections.abc import Callable


#: In the PID 1 of a sandbox with overlays: a descriptor of the directory of what is
#: written to them, which no path leads to.
written: list[int] = []


#: In the keeper: where it mounted the files of plans over what the host has there.
stored: list[bytes] = []


class Step(NamedTuple):
    """A function and its arguments."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]


#: Trees that were picked up and not yet put back, by path; of the sandbox being built.
_held: dict[bytes, int] = {}


def hold(path: bytes) -> None:
    """Pick up the tree at *path*, with what is mounted below it."""
    _held[path] = open_tree(path, OPEN_TREE_CLONE | AT_RECURSIVE)


def attach(path: bytes, readonly: bool) -> None:  # noqa: FBT001 -- called by position only
    """Put the tree that was picked up at *path* back there."""
    fd = _held.pop(path)
    try:
        put_back(fd, path, readonly=readonly)
    finally:
        os.close(fd)


def put_back(fd: int, path: bytes, *, readonly: bool) -> None:
    """Attach the tree *fd* at *path*."""
    if readonly:
        try:
            make_readonly(fd, path)
        except StageError as error:
            if error.errno != errno.ENOSYS:
                raise
        else:
            readonly = False
    move_mount(fd, path)
    if readonly:  # before Linux 5.12 only what is attached can be, a mount at a time
        remount_readonly(path)


def uncover(path: bytes) -> None:
    """Take the keeper's files away from *path*, in a mount namespace of a plan's own."""
    if path in stored:
        umount(path)


#: Mount options that an unprivileged remount has to repeat (mount_namespaces(7), locked flags).
_KEPT = {
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME,
    "relatime": MS_RELATIME,
}


def remount_readonly(top: bytes, proc: bytes = b"/proc") -> None:
    """Make the mount at *top* and all below it read-only, each with the flags it has."""
    for one in mountinfo.read(os.fsdecode(proc) + "/self/mountinfo"):
        path = os.fsencode(one.point)
        if path == top or path.startswith(top.rstrip(b"/") + b"/"):
            flags = MS_REMOUNT | MS_BIND | MS_RDONLY
            for option in one.options:
                flags |= _KEPT.get(option, 0)
            mount(b"none", path, b"", flags, b"", "mount read-only")


def make_directories(paths: tuple[bytes, ...], mode: int) -> None:
    """Make each of *paths* that is not there; parents stand before their children."""
    for path in paths:
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            continue
        except OSError as error:
            raise _failed("make directory", error, path) from None


def make_file(path: bytes) -> None:
    """Make an empty file."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _failed("make file", error, path) from None


def make_link(target: bytes, path: bytes) -> None:
    """Make a symbolic link at *path*."""
    try:
        os.symlink(target, path)
    except OSError as error:
        raise _failed("make link", error, path) from None


def mount_sysfs(path: bytes, readonly: bool) -> None:  # noqa: FBT001 -- called by position only
    """Mount a sysfs.

    Where the one in sight is locked read-only, as in a sandbox whose files are, the
    kernel mounts none that can be written to.
    """
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if not readonly:
        try:
            mount(b"sysfs", path, b"sysfs", flags)
        except StageError as error:
            if error.errno != errno.EPERM:
                raise
        else:
            return
    mount(b"sysfs", path, b"sysfs", flags | MS_RDONLY)


def _failed(stage: str, error: OSError, path: bytes) -> StageError:
    return StageError(stage, error.errno or errno.EIO, os.fsdecode(path))
