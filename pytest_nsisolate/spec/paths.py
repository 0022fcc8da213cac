"""Make the paths in keys absolute, and refuse those that don't exist or can't be used."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from .keys import SpecError, refusal

if TYPE_CHECKING:
    from .spec import Spec

#: What a sandbox has for itself, so that hiding the host's makes no sense.
_OWN = ("/proc", "/sys")
#: Directories that would hide what a foreign root has, if they were bound into it.
TOO_WIDE = frozenset(
    "/ /bin /boot /dev /dev/shm /etc /home /lib /lib32 /lib64 /libx32 /media /mnt /opt /proc /run "  # noqa: SIM905 -- reads as a list of words
    "/sbin /srv /sys /tmp /usr /usr/bin /usr/include /usr/lib /usr/lib32 /usr/lib64 /usr/libexec "
    "/usr/sbin /usr/share /var /var/lib /var/tmp".split()
)


def resolve(spec: Spec, source: str, root: str) -> Spec:
    """Make the paths of *spec* absolute. Relative ones begin at *root*.

    Args:
        source: whose spec it is, for the error text.

    Raises:
        SpecError: a path does not exist, or can't be used for its key.
    """
    values: dict[str, object] = {}
    real: dict[str, dict[str, str]] = {"writable": {}, "hide": {}}
    if spec.rootfs is not None:
        values["rootfs"] = _root(spec.rootfs, source, root)
    for key in ("writable", "hide"):
        paths = []
        for path in getattr(spec, key):
            absolute = _absolute(path, root)
            there = os.path.lexists(absolute)
            if key == "hide" and not there and spec.rootfs is not None:
                there = os.path.lexists(f"{values['rootfs']}{absolute}")
            if not there:
                allowed = f"paths that exist, relative ones from the root directory {root}"
                raise refusal(source, key, path, allowed, f"there is no {absolute}")
            if key == "hide":
                _can_hide(path, os.path.realpath(absolute), source)
            paths.append(absolute)
            real[key][os.path.realpath(absolute)] = path
        values[key] = tuple(paths)
    for path in sorted(real["writable"].keys() & real["hide"].keys()):
        raise SpecError(
            f"{source}: hide={real['hide'][path]!r} and writable={real['writable'][path]!r} are "
            f"not allowed together: both name {path}; allowed: one in the other, where the inner "
            "one counts for what is in it"
        )
    return dataclasses.replace(spec, **values)  # type: ignore[arg-type]


def _absolute(path: str, root: str) -> str:
    return os.path.normpath(os.path.join(root, os.path.expanduser(path)))


def _root(path: str, source: str, root: str) -> str:
    absolute = _absolute(path, root)
    why = ""
    if not os.path.isdir(absolute):
        why = f"there is no directory {absolute}"
    elif os.path.realpath(absolute) == "/":
        why = "that is the root already"
    elif os.path.realpath(root) in TOO_WIDE:
        why = f"the tests' root directory {root} would be in the place of its own {root}"
    if why:
        allowed = f"a directory that has a system in it, relative from the root directory {root}"
        raise refusal(source, "rootfs", path, allowed, why)
    return absolute


def _can_hide(path: str, real: str, source: str) -> None:
    if real in ("/", "/dev") or any(real == one or real.startswith(one + "/") for one in _OWN):
        why = f"a sandbox needs {real}, and has its own of what is the kernel's"
        allowed = f"paths outside of {' and '.join(_OWN)} that are neither / nor /dev"
        raise refusal(source, "hide", path, allowed, why)
