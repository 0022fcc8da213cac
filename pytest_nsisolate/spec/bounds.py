"""The bounds of limits, and the parser of CPU lists. Light, since many modules load it."""

from __future__ import annotations

#: The smallest memory limit under which a test process gets going, in bytes: a fork of
#: pytest that runs one empty test takes 5 MB of pages of its own (measured on x86-64).
MIN_MEMORY = 8 << 20
#: The smallest share of a CPU: the kernel wants a quota of 1 ms, and at most 1 s for its period.
MIN_CPUS = 0.001
#: More than any machine has.
MAX_CPUS = 65536
#: The smallest rate of reading or writing, in bytes a second: below, nothing gets done.
MIN_IO = 4 << 10
#: The kernel's bounds of ``cpu.weight`` and ``io.weight``; 100 is even.
MIN_WEIGHT, MAX_WEIGHT = 1, 10_000
#: The keys of ``io``: bytes and operations a second, reading and writing.
IO_KEYS = ("rbps", "wbps", "riops", "wiops")


def parse_cpus(text: str) -> frozenset[int]:
    """Read a list of CPUs such as ``0-1,3``.

    Raises:
        ValueError: the text is no such list.
    """
    found: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isascii() and first.isdigit()):
            raise ValueError(f"no list of CPUs: {text!r}")
        if dash and not (last.isascii() and last.isdigit()):
            raise ValueError(f"no list of CPUs: {text!r}")
        low, high = int(first), int(last or first)
        if high < low or high > 0xFFFF:
            raise ValueError(f"no list of CPUs: {text!r}")
        found.update(range(low, high + 1))
    return frozenset(found)


#: In an overlay, so many files and directories of other owners have stand-ins at most, with so
#: many bytes in all, and in one file.
STAND_INS, STAND_IN_BYTES, LARGEST_STAND_IN = 5_000, 32 << 20, 16 << 20
