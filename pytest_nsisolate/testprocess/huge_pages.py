"""Gather the runner's memory in huge pages before the template is forked off it.

A fork copies an entry of the page table for each page that is in memory, and its end takes
them back one by one: of a heap of 200 MB these are 50,000 entries, several milliseconds a
test. Where 512 pages are one huge page, it is a hundred entries. A page that a test then
writes to is still copied by itself.

MADV_COLLAPSE does it, whole areas of 2 MiB at a time (Linux 6.1, transparent huge pages).
Where the kernel can't, or the administrator has forbidden it, nothing happens.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux.syscalls import LINUX, collapse

if TYPE_CHECKING:
    from collections.abc import Iterator

#: In sessions of fewer isolated tests it costs more than it saves, as does a collection of
#: garbage.
WORTH_IT = 100
#: What an area saves a test, in seconds: in a fork and at its end, measured, rounded down.
_GAIN = 25e-6
#: How many areas are tried before the gain is checked.
_FIRST = 8
#: How much of an area must be in memory: the kernel fills the rest with zeroes.
_SHARE = 0.75
#: How many areas one call takes at most. The gain is checked between calls.
_MOST = 32
_SETTINGS = "/sys/kernel/mm/transparent_hugepage"
_WORD = 8  # bytes a page in /proc/PID/pagemap; the highest bit says that it is present


def gather(tests: int) -> None:
    """Make huge pages of this process's memory, if that saves more than it costs.

    Args:
        tests: how many forks will follow.
    """
    size = _size() if LINUX and tests >= WORTH_IT else 0
    if not size:
        return
    done, refused, begin = _FIRST, 0, time.perf_counter()
    for address, length in _runs(_areas(size), size):
        code = collapse(address, length)
        if code in (errno.EINVAL, errno.ENOSYS):
            # The kernel makes none of some mappings; an older kernel makes none at all.
            refused += 1
            if refused == _FIRST:
                return
            continue
        done += length // size
        if time.perf_counter() - begin > _GAIN * tests * done:
            return  # memory is too scattered: it takes longer than it saves


def _size() -> int:
    """Read the size of a huge page in bytes; 0 if none are available."""
    try:
        with open(f"{_SETTINGS}/enabled", encoding="ascii") as stream:
            forbidden = "[never]" in stream.read()
        with open(f"{_SETTINGS}/hpage_pmd_size", encoding="ascii") as stream:
            return 0 if forbidden else int(stream.read())
    except (OSError, ValueError):
        return 0


def _areas(size: int) -> Iterator[int]:
    """Find areas of private memory that could each be one page of *size* bytes."""
    page = os.sysconf("SC_PAGESIZE")
    wanted = size // page * _SHARE
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            lines = list(maps)
        with open("/proc/self/pagemap", "rb", 0) as pagemap:
            for line in lines:
                addresses, permissions, _, _, inode, *_ = line.split()
                begin, end = (int(word, 16) for word in addresses.split("-"))
                if permissions != "rw-p" or inode != "0":
                    continue
                for area in range(-(-begin // size) * size, end - size + 1, size):
                    pagemap.seek(area // page * _WORD)
                    words = pagemap.read(size // page * _WORD)
                    if sum(map((0x7F).__lt__, words[_WORD - 1 :: _WORD])) >= wanted:
                        yield area
    except OSError:
        return


def _runs(areas: Iterator[int], size: int) -> Iterator[tuple[int, int]]:
    """Join areas that lie side by side, to save calls; yield addresses and lengths."""
    begin = length = 0
    for area in areas:
        if length and (area != begin + length or length >= _MOST * size):
            yield begin, length
            length = 0
        if not length:
            begin = area
        length += size
    if length:
        yield begin, length
