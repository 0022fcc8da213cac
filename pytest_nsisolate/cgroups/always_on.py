"""Limits that are always on: far above what tests need, they stop one that runs away.

A fork bomb that nothing limits takes the CPUs of the whole machine, also from the runner
that is to end it. How the number of processes of a sandbox is limited depends on the host:

- ``kernel.pid_max`` of the sandbox's pid namespace, where each has its own (Linux 6.14).
- RLIMIT_NPROC inside the sandbox's user namespace, where that counts by user namespace
  (Linux 5.14). It does not hold the host's root.
- A control group for each test, where nothing else works (`budget`).

The kernel's version is asked, and not the kernel itself: to try it, an older one's setting
would have to be changed for the whole host.
"""

from __future__ import annotations

import contextlib
import enum
import os

with contextlib.suppress(ImportError):  # Windows has none, and forks nothing
    import resource

#: Processes and threads of a sandbox: for each CPU, and at least.
_FOR_EACH_CPU, _AT_LEAST = 1024, 2048
#: Pids that the kernel gives out only once, and the largest number that it takes for pid_max.
_RESERVED_PIDS, _LARGEST_PID_MAX = 300, 1 << 22
#: Of a snapshot, that all of their processes find room.
_TESTS_AT_ONCE = 64
_PID_MAX_SINCE, _NPROC_SINCE = (6, 14), (5, 14)
#: Whom the kernel ends first when the host's memory is used up (proc_pid_oom_score_adj(5)):
#: of processes that use as much, a test before the template, and both before all others.
_TEMPLATE_SCORE, _TEST_SCORE = b"500", b"1000"


#: What the interpreter and programs say of a refused fork (EAGAIN) and a refused thread.
_REFUSED = ("BlockingIOError", "temporarily unavailable", "EAGAIN", "can't start new thread")


class Way(enum.Enum):
    """By what a sandbox's processes are limited."""

    PID_MAX = "kernel.pid_max"
    NPROC = "RLIMIT_NPROC"
    GROUP = "a control group"


def processes() -> int:
    """Return how many processes and threads a sandbox may have if its test sets no ``pids``."""
    return max(_AT_LEAST, _FOR_EACH_CPU * (os.cpu_count() or 1))


def way(*, sandbox: bool = True) -> Way:
    """Choose what limits the processes of this user's tests on this host.

    Args:
        sandbox: whether they have one; else RLIMIT_NPROC counts all processes of the user.
    """
    if not sandbox:
        return Way.NPROC if os.geteuid() != 0 else Way.GROUP
    release = _release(os.uname().release)
    if release >= _PID_MAX_SINCE:
        return Way.PID_MAX
    if release >= _NPROC_SINCE and os.geteuid() != 0:
        return Way.NPROC
    return Way.GROUP


def _release(text: str) -> tuple[int, int]:
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def pid_max(pids: int | None, *, snapshot: bool = False) -> int:
    """Return the value of ``kernel.pid_max`` for a sandbox.

    Args:
        pids: that key of its test, which a control group holds it to.
        snapshot: whether it is one in which the sandboxes of tests are made, whose processes
            have a number in it as well.
    """
    wanted = max(processes(), pids or 0) * (_TESTS_AT_ONCE if snapshot else 1)
    return min(wanted + _RESERVED_PIDS, _LARGEST_PID_MAX)


def speaks_of_forks(text: str) -> bool:
    """Return whether a failure's text is about a process or thread that could not start."""
    return any(words in text for words in _REFUSED)


def limit_children(pids: int | None = None, *, others: int = 0) -> None:
    """Set RLIMIT_NPROC of this process, and so of what it starts.

    Args:
        pids: that key of its test.
        others: how many processes and threads the limit counts besides.
    """
    wanted = others + max(processes(), pids or 0)
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if hard == resource.RLIM_INFINITY or hard > wanted:
        resource.setrlimit(resource.RLIMIT_NPROC, (wanted, wanted))


def offer_template() -> None:
    """Let the kernel end this process, the template, rather than one that is not ours."""
    _offer(_TEMPLATE_SCORE)


def offer_test() -> None:
    """Let the kernel end this process, a test's, before any other, when memory is used up."""
    _offer(_TEST_SCORE)


def _offer(score: bytes) -> None:
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # a kernel without it, or a /proc that can't be written to
    try:
        with contextlib.suppress(OSError):
            os.write(fd, score)
    finally:
        os.close(fd)
