"""Copy ahead of need the pages that every test process writes to.

After a fork each page that parent and child share is copied at the first write
to it, by a page fault of its own. pytest's code writes to the same thousand
pages or so in every test (reference counts, mostly). The first tests say which
ones they were, on their pipe like all else; those after them ask for all of
these in one call, while they wait for their turn.

Where the kernel lacks a part (MADV_POPULATE_WRITE came with Linux 5.14), tests
run as well, only slower. What a test says is checked and bounded: at worst the
wrong pages of the test processes themselves are copied.
"""

from __future__ import annotations

import os
from array import array

from pytest_nsisolate.core.syscalls import LINUX, Memory

#: So many tests are asked; what all of them wrote to is copied.
ASKED = 2
#: The most pages that are copied so.
LIMIT = 8192
# Documentation/admin-guide/mm/pagemap.rst, one word a page
_PRESENT, _FILE, _EXCLUSIVE = 1 << 63, 1 << 61, 1 << 56
_STATE = _PRESENT | _FILE | _EXCLUSIVE
_OWN = _PRESENT | _EXCLUSIVE
_WORD = 8


class Learner:
    """The runner's side: what the first tests said, until all that is needed was said."""

    def __init__(self) -> None:
        self._told: list[frozenset[int]] = []

    def learn(self, payload: object) -> bytes | None:
        """Take what a test said; once there is enough, the pages for `Pages.take`."""
        if len(self._told) >= ASKED or not isinstance(payload, list) or len(payload) > LIMIT:
            return None
        size = os.sysconf("SC_PAGESIZE")
        if not all(
            type(page) is int and 0 < page < 1 << 57 and not page % size for page in payload
        ):
            return None
        self._told.append(frozenset(payload))
        if len(self._told) < ASKED:
            return None
        return array("Q", sorted(frozenset.intersection(*self._told))).tobytes()


class Pages:
    """The pages that test processes write to. None as long as they aren't known.

    Args:
        ask: whether tests are to say which ones they are.
    """

    def __init__(self, *, ask: bool) -> None:
        self._memory: Memory | None = None
        self.asks = ask and LINUX

    def told(self) -> list[int] | None:
        """In a test process, at its end: which pages it wrote to, if that is asked."""
        if not self.asks:
            return None
        try:
            return list(_own_pages()[:LIMIT])
        except OSError:
            return None

    def take(self, data: bytes) -> None:
        """In the template: these are the pages."""
        self.asks = False
        ranges = _ranges(list(array("Q", data)))
        self._memory = Memory(ranges) if ranges else None

    def copy(self) -> None:
        """Give this process its own copy of each of these pages."""
        if self._memory is not None:
            self._memory.populate()


def _is_page(value: object) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return 0 < value < 1 << 57 and not value % os.sysconf("SC_PAGESIZE")


def _own_pages() -> array[int]:
    """The addresses of this process's anonymous pages that no other process shares."""
    size = os.sysconf("SC_PAGESIZE")
    pages = array("Q")
    with open("/proc/self/maps", "rb") as maps, open("/proc/self/pagemap", "rb", 0) as pagemap:
        for line in list(maps):
            addresses, permissions = line.split(None, 2)[:2]
            if permissions != b"rw-p":
                continue
            begin, end = (int(word, 16) for word in addresses.split(b"-"))
            pagemap.seek(begin // size * _WORD)
            words = array("Q", pagemap.read((end - begin) // size * _WORD))
            pages.extend(
                begin + number * size for number, word in enumerate(words) if word & _STATE == _OWN
            )
    return pages


def _ranges(pages: list[int]) -> list[tuple[int, int]]:
    """Addresses of pages, in order, as addresses and lengths."""
    size = os.sysconf("SC_PAGESIZE")
    ranges: list[tuple[int, int]] = []
    for page in pages:
        if ranges and sum(ranges[-1]) == page:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + size)
        else:
            ranges.append((page, size))
    return ranges
