"""Read and write the small files of /proc, /proc/sys, /sys and of cgroups.

The kernel makes the content of such a file when it is read, and acts when it is written to:
each read and write here is one system call, unless the caller says that the file may be long.
"""

from __future__ import annotations

import os

from pytest_nsisolate.core.errors import StageError

_AT_ONCE = 65536


def read(path: str, *, whole: bool = False) -> str | None:
    """Read the text of a file; None if it can't be read.

    Args:
        whole: whether it may be longer than the kernel gives in one call (a page).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = part = os.read(fd, _AT_ONCE)
        while whole and part:
            part = os.read(fd, _AT_ONCE)
            data += part
        return data.decode("utf-8", "surrogateescape")
    except OSError:
        return None
    finally:
        os.close(fd)


def read_number(path: str) -> int | None:
    """Read the number in a file; None if there is none (``max``) or no file."""
    text = (read(path) or "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def read_table(path: str) -> dict[str, int]:
    """Read a file of lines such as ``oom_kill 1``; empty if it can't be read."""
    table = {}
    for line in (read(path) or "").splitlines():
        key, _, value = line.strip().partition(" ")
        if value.isascii() and value.isdigit():
            table[key] = int(value)
    return table


def sysctl_path(name: str) -> str:
    """Return the path of a kernel setting such as ``net.ipv4.ip_forward`` (sysctl(8))."""
    return "/proc/sys/" + name.replace(".", "/")


def read_sysctl(name: str) -> str | None:
    """Read a kernel setting; None if this kernel has none of that name."""
    text = read(sysctl_path(name))
    return None if text is None else text.strip()


def is_set(name: str) -> bool:
    """Return whether a kernel setting is there and not 0."""
    return read_sysctl(name) not in (None, "", "0")


def write_sysctl(name: str, value: str, stage: str = "set sysctl") -> None:
    """Write a kernel setting; one that this kernel lacks is left out.

    Raises:
        StageError: the kernel refuses it.
    """
    path = sysctl_path(name)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StageError.of(stage, error, path) from None
