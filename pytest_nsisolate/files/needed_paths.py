"""Find the paths that a program still needs in a sandbox, and the facts that plans depend on.

Usable without pytest.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pytest_nsisolate.sandbox.operations.plan import PRIVATE, STORE, Host

if TYPE_CHECKING:
    from collections.abc import Mapping

_MANY_LINKS = 40  # as many as the kernel follows


def directories_to(path: str) -> list[str]:
    """Return the directory of *path*, and those through which its symbolic links lead.

    The interpreter of a virtual environment may be a link to one that is a link in turn.
    """
    directories = [os.path.dirname(path)]
    while os.path.islink(path) and len(directories) < _MANY_LINKS:
        path = os.path.join(directories[-1], os.readlink(path))
        directories.append(os.path.dirname(path))
    return directories


def is_private(path: str) -> bool:
    """Return whether *path* is, or lies in, a directory that is private in every sandbox."""
    return any(path == top or path.startswith(top + "/") for top in PRIVATE)


def visible(paths: list[str]) -> list[str]:
    """Return those of *paths* that a sandbox would hide, in the form that plans take as needed."""
    found = set()
    for path in paths:
        if path and os.path.isabs(path) and os.path.exists(path):
            found |= {os.path.realpath(path), os.path.normpath(path)}
    return sorted(path for path in found if is_private(path))


def home_of(environment: Mapping[str, str]) -> list[str]:
    """Return the home directory of *environment*, in the form that plans take as needed.

    Empty unless a sandbox would hide it. One that is a private directory itself (HOME=/tmp)
    is there in any case.
    """
    home = environment["HOME"] if "HOME" in environment else os.path.expanduser("~")
    return [path for path in visible([home]) if path not in PRIVATE]


def temporary_of(environment: Mapping[str, str]) -> list[str]:
    """Return the directories for temporary files in *environment*, except the private ones.

    The variables are those that `tempfile` reads.
    """
    found = set()
    for name in ("TMPDIR", "TEMP", "TMP"):
        path = environment.get(name, "")
        if os.path.isabs(path) and os.path.isdir(path):
            found |= {os.path.realpath(path), os.path.normpath(path)}
    return sorted(found - {"/", *PRIVATE})


def needed_by(program: str | None, directory: str, environment: Mapping[str, str]) -> list[str]:
    """Return what *program*, started in *directory*, needs of the directories that a sandbox hides.

    That is the directory, the home directory, and where the program, its interpreter
    (``#!``), this Python and what else is on PATH are installed: of a ``bin`` directory what
    stands beside it, as in a virtual environment.

    Args:
        program: absolute path, None if there is none.
    """
    paths = [directory, sys.prefix, sys.base_prefix, *home_of(environment)]
    search = [path.rstrip("/") for path in environment.get("PATH", "").split(":")]
    for path in [*search, *directories_to(sys.executable)]:
        paths += _installation(path)
    for _ in range(3):  # a script of a script of a program
        if program is None:
            break
        for path in directories_to(program):
            paths += _installation(path)
        program = interpreter(program)
    return visible(paths)


def _installation(directory: str) -> list[str]:
    # Nobody installs right into /tmp, and with it in sight nothing would be private.
    above, name = os.path.split(directory)
    around = [above] if name in ("bin", "sbin") else []
    return [path for path in (directory, *around) if path not in PRIVATE]


def interpreter(path: str) -> str | None:
    """Return the program in the ``#!`` line of a script, None if it has none."""
    try:
        with open(path, "rb") as stream:
            line = stream.readline(256)
    except OSError:
        return None
    words = line[2:].split()
    return os.fsdecode(words[0]) if line.startswith(b"#!") and words else None


def probe_host(needed: list[str]) -> Host:
    """Probe the host for the facts that plans depend on."""
    wanted = [*PRIVATE, "/dev/mqueue", "/sys/fs/cgroup", *needed]
    store = os.path.isdir(STORE) and not any(path.startswith(STORE) for path in needed)
    return Host(
        directories=frozenset(path for path in wanted if os.path.isdir(path)),
        cgroup2=os.path.exists("/sys/fs/cgroup/cgroup.controllers"),
        hosts_file=os.path.isfile("/etc/hosts"),
        store=store,
    )


def hosts_files(names: set[str]) -> dict[str, str]:
    """Make /etc/hosts for sandboxes with these host names, as files for `Keeper.store`."""
    try:
        with open("/etc/hosts", encoding="utf-8", errors="surrogateescape") as stream:
            text = stream.read()
    except OSError:
        return {}
    if text and not text.endswith("\n"):
        text += "\n"
    return {f"hosts-{name}": f"{text}127.0.1.1\t{name}\n" for name in names}
