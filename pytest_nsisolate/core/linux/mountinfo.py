"""Read the mounts of a mount namespace from /proc/PID/mountinfo (proc_pid_mountinfo(5)).

Assumes: PID 1 of a sandbox loads this module, so it imports little.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

#: How the kernel writes white space, backslashes and "#" within a field.
_ESCAPED = r"\\([0-3][0-7]{2})"


class Mount(NamedTuple):
    """One line; names that are no UTF-8 are decoded as `os.fsdecode` does.

    Attributes:
        root: the directory of the file system that is mounted.
        point: where, relative to the root of the process.
        options: of this mount, such as "ro" and "nosuid".
        kind: the type of the file system.
        source: what is mounted, such as a device.
        super_options: of the file system.
    """

    root: str
    point: str
    options: tuple[str, ...]
    kind: str
    source: str
    super_options: tuple[str, ...]


def unescape(field: str) -> str:
    """Replace the octal escapes of a field with the characters."""
    if "\\" not in field:
        return field  # so that few processes compile the expression
    return re.sub(_ESCAPED, lambda found: chr(int(found[1], 8)), field)


def parse(text: str) -> list[Mount]:
    """Parse a mountinfo file; the later of two mounts at one path hides the earlier."""
    mounts = []
    for line in text.split("\n"):
        before, _, after = line.partition(" - ")
        fields, more = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(more) < 3:
            continue
        mounts.append(
            Mount(
                root=unescape(fields[3]),
                point=unescape(fields[4]),
                options=tuple(fields[5].split(",")),
                kind=more[0],
                source=unescape(more[1]),
                super_options=tuple(map(unescape, more[2].split(","))),
            )
        )
    return mounts


def read(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """Read the mounts that a process sees, by default this one.

    Raises:
        OSError: there is no such process, or no /proc.
    """
    with open(path, "rb") as stream:
        return parse(os.fsdecode(stream.read()))
