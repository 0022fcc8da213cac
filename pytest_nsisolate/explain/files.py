"""Explain why a view of the host's files is not available here."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

from pytest_nsisolate.spec import bounds

from .host_facts import Explanation, Row, is_at

if TYPE_CHECKING:
    from pytest_nsisolate.core.linux.syscalls import StageError


def _overlay(error: StageError) -> Explanation | None:
    if error.errno == errno.ENODEV:
        return Explanation(
            "This kernel has no overlay file system, or its module is not loaded.",
            "sudo modprobe overlay   (and a line `overlay` in /etc/modules-load.d/overlay.conf)",
        )
    if error.errno == errno.EPERM:
        return Explanation(
            "Linux before 5.11 lets only root mount overlays; newer ones do unless a security "
            "policy of the host or of a container denies it.",
            'Use fs="readonly" instead of "overlay", and scope= instead of snapshot= (which shows '
            "files by overlays, too); or Linux 5.11 or newer; or the container's way to allow "
            "mounts.",
        )
    if error.errno in (errno.EINVAL, errno.ELOOP):
        return Explanation(
            f"The kernel can't make an overlay of {error.path or 'a directory'}: its file system "
            "is an overlay of overlays already (a sandbox in a container, a sandbox in a sandbox: "
            "two levels are the limit), is of a kind that can't be one, or something was mounted "
            "in it since the session began. `dmesg` says which.",
            'Use fs="readonly" for these tests, and scope= instead of snapshot=; or run them on '
            "another file system.",
        )
    return None


def _root(error: StageError) -> Explanation | None:
    if error.errno == errno.EOPNOTSUPP:
        return Explanation(
            "Before Linux 6.6 a tmpfs has no attributes of users, and hidden directories in an "
            "overlay take one.",
            'Use fs="readonly" for tests with hide=, or Linux 6.6 or newer.',
        )
    if error.errno == errno.EINVAL:
        return Explanation(
            "The root directory of this process is no mount that can be exchanged: it runs in a "
            "chroot or on an initial RAM disk.",
            "Run it outside of the chroot.",
        )
    return None


def _foreign_root(error: StageError) -> Explanation | None:
    program = error.path
    if error.errno == errno.ENOENT:
        why = (
            f"{program} needs a dynamic loader that is not there: the tree of rootfs= has another "
            "C library (musl instead of glibc, say), is for another machine, or is no system at all"
        )
    elif error.errno == errno.ENOEXEC:
        why = f"{program} is for another kind of machine than this tree"
    else:
        why = f"the C library of the tree of rootfs= does not fit: {program}"
    return Explanation(
        f"Tests run by the Python of the host, also in another root, and it does not start there: "
        f"{why}.",
        "Use a tree with the same C library, as new as the host's or newer (of the same "
        "distribution, say), or a Python that brings its own.",
    )


def _hide(error: StageError) -> Explanation | None:
    if error.errno == errno.ELOOP:
        return Explanation(
            f"A part of {error.path} has become a symbolic link since the session began.",
            "See what changes it: a test that is not isolated, or another program.",
        )
    return None


def _bind(error: StageError) -> Explanation | None:
    if error.errno == errno.EINVAL:
        return Explanation(
            f"{error.path} can't be bound: it is mounted unbindable (`mount --make-unbindable`).",
            f"sudo mount --make-private {error.path}",
        )
    return None


#: Title of the section that says why a write to an overlay failed.
OWNERS_TITLE = "Overlay: a file of another owner"


def owners_text(text: str) -> str:
    """Explain *text*, a failure with EOVERFLOW in it: the cause and the fix."""
    error = re.escape(f"[Errno {errno.EOVERFLOW}] {os.strerror(errno.EOVERFLOW)}: ")
    named = re.search(error + r"b?(?P<quote>['\"])(?P<path>.+?)(?P=quote)", text)
    path = f"{named['path']} can't be" if named else "A file could not be"
    return (
        f"{path} written to, moved or removed: it belongs to another user or group, or a "
        "directory above it does.\n"
        "why: An overlay copies what is written to, with its owner, and without root the kernel "
        "lets a sandbox copy only what belongs to the user and group that run pytest (EOVERFLOW). "
        f"In the root directory, the working directory and HOME, up to {bounds.STAND_INS} such "
        f"files of {bounds.LARGEST_STAND_IN >> 20} MiB at most, {bounds.STAND_IN_BYTES >> 20} MiB "
        "in all, are copied ahead.\n"
        "Fix: `chown` it to the user who runs pytest (sudo chown -R $(id -u):$(id -g) DIRECTORY), "
        'or run pytest as its owner, or name the directory in writable= (with fs="overlay" or '
        '"readonly"): tests then write to it on the host.\n'
    )


#: From the most to the least special; see `explain`.
ROWS: tuple[Row, ...] = (
    (is_at("mount overlay"), _overlay),
    (is_at("build the root", "change the root"), _root),
    (is_at("start Python in the new root"), _foreign_root),
    (is_at("hide"), _hide),
    (is_at("bind"), _bind),
)
