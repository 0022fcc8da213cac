"""Private memory that tests write to, page by page, and forks that look at it."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE
PR_SET_THP_DISABLE = 41


def forked(work: Callable[[], object]) -> None:
    """Do *work* in a fork; it must come to its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


@contextlib.contextmanager
def small_pages() -> Iterator[None]:
    """No huge pages for what this process writes to meanwhile."""
    for disabled in (True, False):
        assert LIBC.prctl(PR_SET_THP_DISABLE, int(disabled), 0, 0, 0) == 0
        if disabled:
            yield


class Area:
    """Some private pages, the first *written* of them, or all, written to once.

    They are a mapping of their own: what is not to be in core dumps is not joined to
    the mappings beside it, so the kernel's figures of it are of these pages alone.
    """

    def __init__(self, pages: int, written: int | None = None) -> None:
        self.memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(mmap.MADV_DONTDUMP)
        # Where all memory may be in huge pages, none of this is by itself.
        with small_pages():
            self.write(*range(pages if written is None else written))
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def write(self, *pages: int) -> None:
        for page in pages:
            self.memory[page * PAGE] = 1
