"""Fork as `os.fork` does, but in parts, so that the child can act before libraries do.

`os.fork` runs the handlers of `os.register_at_fork` in the child before it returns.
Libraries start threads in them, and the kernel lets only a process with one thread enter a
user or mount namespace (setns(2)). Here the caller puts the parts together: `before`,
`fork`, in the child whatever has to come first, then `after_in_child`.

Libraries in C have handlers of their own (pthread_atfork(3)), which fork(3) runs. Where
one of them starts threads (`starts_threads`), `fork` leaves all of them out.

Assumes: between `fork` and `after_in_child` the child starts no thread and imports nothing,
since locks may be held by threads that only its parent has. The parts are CPython's own
(PyOS_BeforeFork and the others, in its C API); unlike `os.fork` they give no
DeprecationWarning where the parent has threads.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time

from . import syscalls

#: Calls that keep the GIL: released around the call, it could be held for ever in the child
#: by a thread that is not there.
_libc = ctypes.PyDLL(None, use_errno=True) if os.name == "posix" else None
#: fork(2) without handlers: since glibc 2.34 and musl 1.2.2.
_fork_without: ctypes._NamedFuncPointer | None = getattr(_libc, "_Fork", None)

before = ctypes.pythonapi.PyOS_BeforeFork
after_in_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
after_in_child = ctypes.pythonapi.PyOS_AfterFork_Child
for _function in (before, after_in_parent, after_in_child):
    _function.restype = None

_TASKS = "/proc/self/task"
#: How long to wait for the moment in which no other thread runs, in seconds.
_STILL_LIMIT = 0.1


def fork(*, handlers: bool = True) -> int:
    """Fork as fork(3) does; return 0 in the child.

    Args:
        handlers: whether to run those of libraries in C.

    Raises:
        OSError: the process can't be forked.
    """
    assert _libc is not None
    if handlers:
        pid: int = _libc.fork()
    elif _fork_without is not None:
        pid = _fork_without()
    else:
        try:
            return syscalls.clone(0, stage="fork")
        except syscalls.StageError as error:
            raise OSError(error.errno, os.strerror(error.errno)) from None
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return pid


def starts_threads() -> bool:
    """Return whether a library in C starts threads in each fork of this process.

    It is tried, with a fork, only where this process has threads that Python knows nothing of.

    Raises:
        OSError: the process can't be forked.
    """
    if not syscalls.LINUX or len(os.listdir(_TASKS)) <= len(sys._current_frames()):  # noqa: SLF001 -- documented
        return False
    before()
    try:
        pid = fork()
    except OSError:
        after_in_parent()
        raise
    if pid == 0:
        os._exit(len(os.listdir(_TASKS)) > 1)
    after_in_parent()
    return os.waitpid(pid, 0)[1] != 0


def wait_until_still() -> None:
    """Wait until every other thread of this process sleeps, but not for long.

    A fork without handlers does not see to it that no other thread holds a lock of malloc(3).
    A thread that sleeps holds none; those of Python wait for the GIL, which the caller has.
    """
    limit = time.monotonic() + _STILL_LIMIT
    own = str(os.getpid())
    while any(_runs(task) for task in os.listdir(_TASKS) if task != own):
        if time.monotonic() > limit:
            return
        time.sleep(0.001)


def _runs(task: str) -> bool:
    try:
        with open(f"{_TASKS}/{task}/stat", "rb") as stream:
            return stream.read().rpartition(b") ")[2][:1] == b"R"
    except OSError:
        return False  # it has ended
