"""The file descriptors of this process: list them, test them, move them out of the way."""

from __future__ import annotations

import contextlib
import os
import sys

with contextlib.suppress(ImportError):  # Windows has none
    import fcntl

#: Where descriptors of the plugin are kept: above what tests use, so that code
#: which closes "its" low descriptors by number does not hit them.
_FROM = 200


def open_descriptors() -> frozenset[int]:
    """List the open descriptors; empty where the system can't list them."""
    if sys.platform != "linux":
        return frozenset()
    return frozenset(map(int, os.listdir("/proc/self/fd")))


def is_open(fd: int) -> bool:
    """Return whether *fd* is the number of an open file."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def move_up(fd: int) -> int:
    """Move a descriptor above those that tests use; return its new number."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FROM)
    os.close(fd)
    return moved
