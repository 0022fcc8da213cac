"""Find living sandboxes: kept ones by the register, running ones by the host's /proc.

A running sandbox is recognised by its PID 1, which is a fork of a keeper. What this user may not
see is left out; root sees all.
"""

from __future__ import annotations

import os
import signal
import time
from typing import NamedTuple

from pytest_nsisolate.core.linux import proc
from pytest_nsisolate.core.linux.namespace_files import inode
from pytest_nsisolate.core.linux.syscalls import CLONE_NEWTIME
from pytest_nsisolate.sandbox.keeper_start import KEEPER
from pytest_nsisolate.sandbox.operations.namespaces import FLAGS

from . import registry

#: How long the end of a kept sandbox may take to show in the register, in seconds.
_PATIENCE = 15.0


class Living(NamedTuple):
    """A sandbox.

    Attributes:
        id: of a kept one, or the pid of its PID 1 as seen from here.
        tests: by node id; of a running one that is not known here.
        owner: uid and gid.
        processes: those in it besides PID 1, by their pids as seen from here.
        why: it is there.
        age: since it was built, or kept, in seconds.
        until: when it ends, in seconds since the epoch; None if with its session.
        init, keeper: PID 1, and a process in the user namespace around.
        flags: the namespaces that it has of its own.
        directory, environment: what tests started with; "" and None if that is not known.
    """

    id: str
    tests: tuple[str, ...]
    owner: tuple[int, int]
    processes: tuple[int, ...]
    why: str
    age: float
    until: float | None
    init: registry.Process
    keeper: registry.Process
    flags: int
    directory: str = ""
    environment: dict[str, str] | None = None


def everything() -> list[Living]:
    """List all sandboxes, kept ones first."""
    found = kept()
    known = {one.init.pid for one in found}
    return [*found, *(one for one in _running() if one.init.pid not in known)]


def kept(*, own: bool = False) -> list[Living]:
    """List the sandboxes that have outlived their session; *own*: only this user's."""
    here = [one for one in registry.entries() if one.here]
    return [_kept(one) for one in here if not own or one.uid == os.geteuid()]


def elsewhere() -> list[registry.Entry]:
    """List the kept sandboxes in other pid namespaces: their pids mean nothing here."""
    return [one for one in registry.entries() if not one.here]


def find(word: str) -> Living | None:
    """Find the sandbox with this id, or whose PID 1 has this pid."""
    if registry.is_id(word):
        return next((_kept(one) for one in registry.entries() if one.here and one.id == word), None)
    if word.isascii() and word.isdigit():
        return next((one for one in everything() if one.init.pid == int(word)), None)
    return None


def _kept(entry: registry.Entry) -> Living:
    return Living(
        id=entry.id,
        tests=entry.tests,
        owner=(entry.uid, entry.gid),
        processes=_inside(entry.init.pid) if entry.init.is_alive() else (),
        why=entry.why,
        age=max(0.0, time.time() - entry.since),
        until=entry.until,
        init=entry.init,
        keeper=entry.keeper,
        flags=entry.flags,
        directory=entry.directory,
        environment=entry.environment,
    )


def _inside(init: int) -> tuple[int, ...]:
    """Return the processes below a PID 1, in its pid namespace or one further inside."""
    depth = len(proc.pids_of(init))
    found = []
    for pid in proc.pids():
        if pid != init and len(proc.pids_of(pid)) >= depth:
            # What came in from outside has its parent outside.
            if inode(pid, "pid") == inode(init, "pid"):
                found.append(pid)
                continue
            above = pid
            while above > 1 and above != init:
                above = proc.parent(above)
            if above == init:
                found.append(pid)
    return tuple(found)


def _running() -> list[Living]:
    found = [_running_under(pid) for pid in proc.pids() if _is_first(pid)]
    return [one for one in found if one is not None]


def _is_keeper(pid: int) -> bool:
    process = proc.read(pid)
    return process is not None and KEEPER in process.command


def _is_first(pid: int) -> bool:
    """Return whether *pid* is PID 1 of a pid namespace, and a keeper or forked from one."""
    process = proc.read(pid)
    return process is not None and process.pid == 1 and KEEPER in process.command


def _running_under(pid: int) -> Living | None:
    """Return the sandbox whose PID 1 is *pid*; None if there is none, or it can't be inspected."""
    above = proc.parent(pid)
    if not _is_first(above):
        return None  # the keeper itself is PID 1 of its session's namespace
    last, outer = above, proc.parent(above)
    while _is_keeper(outer):
        last, outer = outer, proc.parent(outer)
    init, keeper = registry.process(pid), registry.process(above)
    if init is None or keeper is None or inode(pid, "user") is None:
        return None
    kinds = {**FLAGS, "time": CLONE_NEWTIME}
    own = [kind for kind in kinds if inode(pid, kind) != inode(last, kind)]
    session = proc.read(outer)
    command = f": {session.command}" if session is not None else ""
    status = os.stat(f"/proc/{pid}")
    return Living(
        id=str(pid),
        tests=(),
        owner=(status.st_uid, status.st_gid),
        processes=_inside(pid),
        why=f"process {outer} runs{command}",
        age=registry.age_of(init),
        until=None,
        init=init,
        keeper=keeper,
        flags=sum(kinds[kind] for kind in own),
    )


def end(one: Living) -> bool:
    """End a kept sandbox; return whether it leaves the register within some time."""
    pidfd = one.init.open()
    if pidfd is not None:
        try:
            # Whatever a user has written there, root does not kill another's process for it.
            if os.stat(f"/proc/{one.init.pid}").st_uid != one.owner[0]:
                return False
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError):
            pass  # it has just ended
        finally:
            os.close(pidfd)
    deadline = time.monotonic() + _PATIENCE
    while any(entry.id == one.id for entry in registry.entries()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
