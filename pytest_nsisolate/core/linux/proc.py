"""Read what /proc says of processes.

A snapshot of what may change at any moment: a process that has ended is left out.

Assumes: PID 1 of a sandbox and the template load this module, so it imports little.
"""

from __future__ import annotations

import os
import select
import time
from typing import NamedTuple

#: The test process is the first process of its sandbox after PID 1.
TEST_PID = 2
#: How many processes that a test left running are named; a fork bomb would fill the report.
NAMED = 10
#: The command line of Python's own helper, which multiprocessing starts once for a process
#: and keeps until its end.
_TRACKER = "from multiprocessing.resource_tracker import main"
#: How much of a command line is read, in bytes, and shown, in characters.
_READ, _LONGEST = 4096, 200
#: How often to look for a command line, a millisecond apart.
_EXEC_TRIES = 10
#: The lowest priority.
_LOWEST = 19

# Bound now: a test may patch these names in their modules.
_listdir, _getpid, _open = os.listdir, os.getpid, open


class Process(NamedTuple):
    """One process: its pid inside its sandbox, command line, state if known, memory in bytes."""

    pid: int
    command: str
    state: str
    resident: int

    def __str__(self) -> str:
        facts = filter(None, (f"pid {self.pid}", self.state, f"{self.resident >> 20} MiB"))
        return f"{self.command} ({', '.join(facts)})"


class Stat(NamedTuple):
    """Fields of /proc/PID/stat (proc_pid_stat(5)).

    Attributes:
        name: of the program, at most 15 bytes.
        state: a letter.
        parent: its pid; 0 if this pid namespace does not show it.
        start: when the process started, in ticks since the boot.
    """

    name: bytes
    state: str
    parent: int
    start: int


#: By the letters of proc_pid_stat(5); a frozen process looks like one that waits for a disk.
_STATES = {
    "R": "running",
    "S": "sleeping",
    "T": "stopped",
    "t": "traced",
    "Z": "ended",
}


# one file of one process


def pids() -> list[int]:
    """List the processes that this pid namespace shows."""
    return sorted(int(name) for name in _listdir("/proc") if name.isdigit())


def stat(pid: int) -> Stat | None:
    """Read /proc/PID/stat; None if there is no such process."""
    try:
        with _open(f"/proc/{pid}/stat", "rb") as stream:
            text = stream.read()
        # The name may have any character, also brackets.
        before, _, after = text.rpartition(b")")
        fields = after.split()
        name = before[before.index(b"(") + 1 :]
        return Stat(name, fields[0].decode("ascii"), int(fields[1]), int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def status(pid: int | str) -> dict[str, str]:
    """Read the fields of /proc/PID/status (proc_pid_status(5)); empty if it can't be read."""
    try:
        with _open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as stream:
            return dict(line.rstrip("\n").split(":\t", 1) for line in stream if ":\t" in line)
    except OSError:
        return {}


def command(pid: int) -> str:
    """Read the command line of a process, in one printable line; "" if it has none.

    Raises:
        OSError: it has ended, or belongs to another user.
    """
    with _open(f"/proc/{pid}/cmdline", "rb") as stream:
        return readable(stream.read(_READ))


def readable(command: bytes) -> str:
    """Show a command line in printable characters on one line: a test wrote it."""
    words = [word.decode("utf-8", "backslashreplace") for word in command.split(b"\0") if word]
    line = " ".join(words)[:_LONGEST]
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def command_line(pid: int) -> str:
    """Read a command line: the name in brackets if there is none, "" if the process has ended."""
    process = None
    try:
        for _ in range(_EXEC_TRIES):
            found = command(pid)
            if found:
                return found
            process = stat(pid)
            if process is None or process.state in "ZX":
                return ""
            # In the middle of an exec there is no command line for a moment.
            select.select((), (), (), 0.001)
    except OSError:
        return ""
    return f"[{readable(process.name)}]" if process is not None else ""


def parent(pid: int) -> int:
    """Return the parent of a process; 0 if the process has ended or its parent is not in sight."""
    found = stat(pid)
    return found.parent if found is not None else 0


def start_of(pid: int) -> int | None:
    """Return when a process started, in ticks since the boot; None if it has ended."""
    found = stat(pid)
    return found.start if found is not None else None


def pids_of(pid: int) -> tuple[int, ...]:
    """Return the pid of a process in each pid namespace from the caller's down; () if it ended."""
    return tuple(map(int, status(pid).get("NSpid", "").split()))


def read(pid: int, *, command_line: bool = True) -> Process | None:
    """Read the process *pid* of this pid namespace; None if it has ended.

    Args:
        command_line: whether to read it, which a process that is busy with its memory delays.
    """
    fields = status(pid)
    if not fields:
        return None
    try:
        shown = command(pid) if command_line else ""
    except OSError:
        return None
    return Process(
        pid=int(fields.get("NSpid", str(pid)).split()[-1]),
        command=shown or f"[{readable(fields.get('Name', '?').encode())}]",
        state=_STATES.get(fields.get("State", "?")[:1], ""),
        resident=int(fields.get("VmRSS", "0 kB").split()[0]) << 10,
    )


# several processes


def children(pid: int) -> list[int]:
    """Return the children of all threads of *pid*."""
    found: list[int] = []
    try:
        for thread in _listdir(f"/proc/{pid}/task"):
            with _open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as stream:
                found += map(int, stream.read().split())
    except OSError:
        return found
    return found


def child_by_inner_pid(parent: int, inner: int) -> int:
    """Find the child of *parent* whose pid is *inner* in *parent*'s pid namespace.

    The child is in a pid namespace below that one. Return 0 if there is none.
    """
    for pid in children(parent):
        if pids_of(pid)[-2:-1] == (inner,):
            return pid
    return 0


def descendants(pid: int) -> list[int]:
    """Return the children of *pid*, their children, and so on."""
    found = children(pid)
    for child in found:
        found += children(child)
    return found


def left_by_a_test(command: str) -> bool:
    """Return whether a test, and not Python itself, started a process with this command line."""
    return bool(command) and _TRACKER not in command


def left_running() -> list[tuple[int, str]]:
    """Return the pid and command line of each process that a test leaked in this sandbox.

    Of many the first are named; the last entry, with pid 0, then says how many more there are.
    """
    found: list[tuple[int, str]] = []
    others = [pid for pid in pids() if pid > TEST_PID and pid != _getpid()]
    for position, pid in enumerate(others):
        if len(found) == NAMED:
            found.append((0, f"{len(others) - position} more"))
            break
        command = command_line(pid)
        if left_by_a_test(command):
            found.append((pid, command))
    return found


def line_of(pid: int, command: str) -> str:
    """Show an entry of `left_running`."""
    return f"{command} (pid {pid})" if pid else command


def run_last(group: int) -> None:
    """Give the processes of a group the lowest priority (setpriority(2)), if there are any.

    Args:
        group: 0 if it is not known: to the kernel, that is the group of this process.
    """
    if group > 0:
        try:
            os.setpriority(os.PRIO_PGRP, group, _LOWEST)
        except OSError:
            return


def runnable() -> int:
    """Count the processes and threads of the whole machine that run or wait for a CPU."""
    try:
        with _open("/proc/loadavg", encoding="ascii") as stream:
            return int(stream.read().split()[3].partition("/")[0])
    except (OSError, IndexError, ValueError):
        return 0


def tasks(roots: list[int], limit: int) -> int:
    """Count the processes and threads of *roots* and their descendants, up to *limit*.

    No process has to act, or to release a lock, for this listing.
    """
    count = 0
    waiting = list(roots)
    while waiting and count < limit:
        pid = waiting.pop()
        try:
            count += len(_listdir(f"/proc/{pid}/task"))
        except OSError:
            continue
        if count < limit:
            waiting += children(pid)
    return count


def tree(
    roots: list[int], limit: int = 50, patience: float = 0.5, *, commands: bool = True
) -> list[str]:
    """Return a line for each of *roots* and its descendants, indented; at most *limit*.

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
    """Describe the *count* largest of these processes, one line each."""
    found = [process for process in map(read, pids) if process is not None]
    return [str(one) for one in sorted(found, key=lambda one: -one.resident)[:count]]
