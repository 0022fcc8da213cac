"""Processes of a sandbox as the runner sees them, through the host's /proc.

A snapshot of what may change at any moment: what is gone meanwhile is left out.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

from pytest_nsisolate.sandbox.init import readable

#: The lowest priority.
_LOWEST = 19


class Process(NamedTuple):
    """One process: its pid inside its sandbox, command line, state if known, memory in bytes."""

    pid: int
    command: str
    state: str
    resident: int

    def __str__(self) -> str:
        facts = filter(None, (f"pid {self.pid}", self.state, f"{self.resident >> 20} MiB"))
        return f"{self.command} ({', '.join(facts)})"


#: By the letters of proc_pid_stat(5); a frozen process looks like one that waits for a disk.
_STATES = {
    "R": "running",
    "S": "sleeping",
    "T": "stopped",
    "t": "traced",
    "Z": "ended",
}


def read(pid: int, *, command_line: bool = True) -> Process | None:
    """The process *pid* (as seen from here); None if it is gone.

    Args:
        command_line: whether to read it, which a process that is busy with its memory delays.
    """
    command = ""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as stream:
            fields = dict(line.rstrip("\n").split(":\t", 1) for line in stream if ":\t" in line)
        if command_line:
            with open(f"/proc/{pid}/cmdline", "rb") as stream:
                command = readable(stream.read(4096))
    except OSError:
        return None
    return Process(
        pid=int(fields.get("NSpid", str(pid)).split()[-1]),
        command=command or f"[{readable(fields.get('Name', '?').encode())}]",
        state=_STATES.get(fields.get("State", "?")[:1], ""),
        resident=int(fields.get("VmRSS", "0 kB").split()[0]) << 10,
    )


def parent(pid: int) -> int:
    """The parent of a process, as seen from here; 0 if it is gone, or has none here."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return int(stream.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def child_by_inner_pid(parent: int, inner: int) -> int:
    """The child of *parent* in a pid namespace below its own, by its pid there where *parent* is.

    0 if there is none.
    """
    for pid in children(parent):
        with contextlib.suppress(OSError, StopIteration):
            with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as stream:
                pids = next(line for line in stream if line.startswith("NSpid:")).split()[1:]
            if len(pids) > 1 and pids[-2] == str(inner):
                return pid
    return 0


def children(pid: int) -> list[int]:
    """The children of *pid*, those of all its threads."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as stream:
                found += map(int, stream.read().split())
    except OSError:
        return found
    return found


def descendants(pid: int) -> list[int]:
    """The children of *pid*, and theirs."""
    found = children(pid)
    for child in found:
        found += children(child)
    return found


def run_last(group: int) -> None:
    """Give the processes of a group the lowest priority (setpriority(2)), if there are any.

    Args:
        group: 0 if it is not known: to the kernel, that is the group of this process.
    """
    with contextlib.suppress(OSError):
        if group > 0:
            os.setpriority(os.PRIO_PGRP, group, _LOWEST)


def runnable() -> int:
    """How many processes and threads of the whole machine run or wait for a CPU."""
    try:
        with open("/proc/loadavg", encoding="ascii") as stream:
            return int(stream.read().split()[3].partition("/")[0])
    except (OSError, IndexError, ValueError):
        return 0


def tasks(roots: list[int], limit: int) -> int:
    """How many processes and threads *roots* and what is below have; it counts to *limit*.

    For its listing no process has to do anything, nor to give back a lock.
    """
    count = 0
    waiting = list(roots)
    while waiting and count < limit:
        pid = waiting.pop()
        try:
            count += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            continue
        if count < limit:
            waiting += children(pid)
    return count


def tree(
    roots: list[int], limit: int = 50, patience: float = 0.5, *, commands: bool = True
) -> list[str]:
    """A line for each of *roots* and what is below, indented; at most *limit*.

    Args:
        patience: how long to go on, in seconds.
        commands: whether to read their command lines.
    """
    until = time.monotonic() + patience
    lines: list[str] = []
    waiting = [(pid, 0) for pid in reversed(roots)]
    while waiting:
        pid, depth = waiting.pop()
        process = read(pid, command_line=commands)
        if process is None:
            continue
        if len(lines) == limit or time.monotonic() > until:
            lines.append("... and more")
            break
        lines.append("  " * depth + str(process))
        waiting += [(child, depth + 1) for child in reversed(children(pid))]
    return lines


def largest(pids: list[int], count: int) -> list[str]:
    """The *count* largest of these processes, a line each."""
    found = [process for process in map(read, pids) if process is not None]
    return [str(one) for one in sorted(found, key=lambda one: -one.resident)[:count]]
