"""A user with subordinate ids (subuid(5)), made for one run: nothing of the host is changed."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from .hosts import DEADLINE, NOBODY, become, lacks_root, lacks_unprivileged

if TYPE_CHECKING:
    from pathlib import Path

#: Where the granted ranges begin; nobody is granted these here.
FIRST, COUNT = 0x70000000, 65536

#: In a mount namespace of its own: other files in the place of /etc/subuid and /etc/subgid.
GRANT = """
import ctypes, os, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, target, kind, flags, data):
    arguments = [text and os.fsencode(text) for text in (source, target, kind)]
    if libc.mount(*arguments, flags, data):
        sys.exit(f"mount {target}: {os.strerror(ctypes.get_errno())}")
libc.unshare(0x20000)  # CLONE_NEWNS
mount("none", "/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
folder = sys.argv[1]
mount("tmpfs", folder, "tmpfs", 0, b"mode=755")
for name in ("subuid", "subgid"):
    with open(f"{folder}/{name}", "w") as stream:
        stream.write(sys.argv[2])
    mount(f"{folder}/{name}", f"/etc/{name}", None, 0x1000, None)  # MS_BIND
libc.umount2(os.fsencode(folder), 2)  # MNT_DETACH
os.execv(sys.argv[3], sys.argv[3:])
"""


def granting(folder: Path, text: str | None = None) -> list[str]:
    """A command that runs the rest of its arguments as nobody, with ranges as in *text*.

    Args:
        folder: an empty directory, covered for a moment.
    """
    text = f"{NOBODY}:{FIRST}:{COUNT}\n" if text is None else text
    return [sys.executable, "-c", GRANT, str(folder), text, *become(NOBODY)]


@functools.cache
def lacks_subids() -> str | None:
    """Why a user with subordinate ids can't be made here."""
    missing = lacks_root() or lacks_unprivileged()
    if missing is not None:
        return missing
    for name in ("newuidmap", "newgidmap"):
        if shutil.which(name) is None:
            return f"there is no {name}"
    for path in ("/etc/subuid", "/etc/subgid"):
        if not os.path.exists(path):
            return f"there is no {path} to mount over"
    folder = "/mnt"
    done = subprocess.run(
        [sys.executable, "-c", GRANT, folder, "x", sys.executable, "-c", ""],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return None if done.returncode == 0 else done.stderr.strip()
