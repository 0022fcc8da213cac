"""Device nodes by their kind and numbers, as the devices controller of cgroup v1 names them."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple


class Node(NamedTuple):
    """A device: ``c`` or ``b``, and its numbers. Its text is that of v1's devices.allow."""

    kind: str
    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.kind} {self.major}:{self.minor}"


def node(path: str) -> Node:
    """Return the device at *path*.

    Raises:
        OSError: there is none; ENODEV if it is another kind of file.
    """
    found = os.stat(path)
    for kind, fits in (("c", stat.S_ISCHR), ("b", stat.S_ISBLK)):
        if fits(found.st_mode):
            return Node(kind, os.major(found.st_rdev), os.minor(found.st_rdev))
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path)
