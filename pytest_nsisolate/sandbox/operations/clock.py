"""Move CLOCK_MONOTONIC and CLOCK_BOOTTIME by an offset, in a time namespace.

The wall clock is not in it: the kernel has none but the host's.

unshare(2) makes the namespace for children only, and clone(2) cannot make it at all
(its flag is a part of the exit signal there). The offsets can be written until the
first process is in it. So PID 1 of a sandbox makes it, writes them, and enters it
itself; whoever joins by the pidfd of PID 1 then comes into it with the others.
Both clocks are read without a system call, and setns(2) changes that page as well.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from pytest_nsisolate.core.linux.syscalls import CLONE_NEWTIME, StageError, setns, unshare

from .steps import Step

_NANO = 10**9
_OFFSETS = "/proc/self/timens_offsets"


class Clock(NamedTuple):
    """Move both clocks by *nanoseconds* against what they are outside."""

    nanoseconds: int

    def describe(self) -> str:
        return f"unshare time, CLOCK_MONOTONIC and CLOCK_BOOTTIME {self.nanoseconds / _NANO:+g} s"

    def steps(self) -> list[Step]:
        return [Step(_enter, (self.nanoseconds,))]


def nanoseconds(seconds: float) -> int:
    """Convert *seconds* to the unit of the operation."""
    return round(seconds * _NANO)


def _enter(offset: int) -> None:
    unshare(CLONE_NEWTIME, stage="unshare time")
    try:
        with open(_OFFSETS, encoding="ascii") as stream:
            # Those of the namespace around: what is written counts from the first one.
            around = [line.split() for line in stream]
        text = "".join(
            f"{clock} {total // _NANO} {total % _NANO}\n"
            for clock, seconds, rest in around
            for total in (int(seconds) * _NANO + int(rest) + offset,)
        )
        fd = os.open(_OFFSETS, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)
        fd = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StageError("set the clock", error.errno or errno.EIO, _OFFSETS) from None
    try:
        setns(fd, CLONE_NEWTIME, stage="enter the time namespace")
    finally:
        os.close(fd)
