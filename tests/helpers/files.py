"""The state of files below a directory, and a directory that no sandbox has of its own."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Every file below: bytes, mode, owner, links, times and attributes."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, names, files in os.walk(root):
        for name in (".", *names, *files):
            path = Path(folder, name)
            status = path.lstat()
            content = ""
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = str(path.readlink())
            found[str(path)] = (
                content,
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_ino,
                status.st_nlink,
                status.st_mtime_ns,
                status.st_ctime_ns,
                [(one, os.getxattr(path, one)) for one in _attributes(path)],
            )
    return found


def _attributes(path: Path) -> list[str]:
    return [] if path.is_symlink() else os.listxattr(path)


def outside_of_all() -> str:
    """A directory that is in no private one, and in no project with settings of its own."""
    if os.geteuid() == 0:
        return "/var/lib"
    home = os.path.expanduser("~")
    return home if os.access(home, os.W_OK) else "."
