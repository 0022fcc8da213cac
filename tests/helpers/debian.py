"""A Debian tree, made once per session of tests, outside of the project."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

LIMIT = 240
"""Seconds that making it may take: a mirror that doesn't answer is none."""


@functools.cache
def lacks_debian() -> str | None:
    """Why there is no tree; None when there is one."""
    return None if (_top() / "root" / "etc" / "os-release").exists() else _make()


def debian() -> Path:
    """The tree; `lacks_debian` has made it."""
    return _top() / "root"


def _suite() -> str:
    """The host's own, if it is a Debian: its libc must be as new as that of the host's Python."""
    named = os.environ.get("NSISOLATE_DEBIAN")
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
        if named is None and release.get("ID") == "debian":
            named = release.get("VERSION_CODENAME")
    return named or "stable"


def _top() -> Path:
    # One for all workers of a run, and for the runs of a while.
    return Path(tempfile.gettempdir()) / f"nsisolate-nobody-debian-{os.getuid()}"


def _make() -> str | None:
    if os.geteuid() != 0:
        return "making it takes root"
    program = shutil.which("mmdebstrap")
    if program is None:
        return "there is no mmdebstrap"
    import filelock

    top = _top()
    top.mkdir(mode=0o755, exist_ok=True)
    with filelock.FileLock(top / "lock", timeout=2 * LIMIT):
        if (top / "root").exists():
            return None
        # What it mounts is nobody's business: other tests look at the host's mounts meanwhile.
        words = ["unshare", "--mount", "--propagation", "private"]
        words += [program, "--quiet", "--variant=minbase", "--mode=root", _suite()]
        words.append(str(top / "new"))
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
        except subprocess.TimeoutExpired:
            return f"mmdebstrap took more than {LIMIT} s"
        if done.returncode:
            shutil.rmtree(top / "new", ignore_errors=True)
            lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
            return f"mmdebstrap: {lines[-1]}"
        (top / "new").rename(top / "root")
    return None
