"""Find the shared libraries that Python's own modules need, for a root that may lack them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

#: How long the look at them may take, in seconds.
_LIMIT = 60

_LOAD = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception:
        pass
with open("/proc/self/maps") as stream:
    paths = {line.rstrip("\\n").split(None, 5)[-1] for line in stream if "/" in line}
print("\\n".join(sorted(paths)))
"""


class Library(NamedTuple):
    """A file, and the names beside it that lead to it (sonames)."""

    path: str
    names: tuple[str, ...]


def extension_modules() -> list[str]:
    """Return the names of the standard library's extension modules, except those for its tests."""
    folder = os.path.join(os.path.dirname(os.__file__), "lib-dynload")
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    modules = sorted({name.partition(".")[0] for name in names if name.endswith(".so")})
    unfit = ("xx", "_tkinter")  # examples; a window system
    return [name for name in modules if "test" not in name and not name.startswith(unfit)]


def libraries() -> list[Library]:
    """Load these modules in another process; return the libraries that it has in memory then."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LOAD, *extension_modules()],
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [
        Library(path, _names_of(path))
        for path in done.stdout.splitlines()
        if ".so" in os.path.basename(path) and os.path.isfile(path)
    ]


def _names_of(path: str) -> tuple[str, ...]:
    folder, own = os.path.split(path)
    found = []
    stem = own.partition(".so")[0]
    for name in os.listdir(folder):
        one = os.path.join(folder, name)
        if name.startswith(stem) and os.path.islink(one) and os.path.realpath(one) == path:
            found.append(name)
    return tuple(sorted(found))
