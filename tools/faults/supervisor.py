"""Makes one system call of one process fail, or kills the process there, from outside.

A filter of seccomp(2) in the runner, which all it starts inherits, has the kernel ask this
process about each call on the path (seccomp_unotify(2)). Nothing of what is tried is changed,
and nothing of it is traced: a call that is let go runs as ever.

Guarantees: a call that was asked about is answered as long as `Supervisor` is served; the
descriptor hangs up when the last process of the session is gone.
Assumes: Linux 5.19, x86_64, and the right to take a descriptor from the runner
(pidfd_getfd(2)): root, or its parent as the same user.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from faults.calls import CALLS, NAMES, lacks_table, seccomp_program
from faults.roles import Roles
from helpers.hosts import DEADLINE, lacks_root

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_CONTINUE = 1
_PIDFD_GETFD = 438
_LEAVE = 30.0
"""Seconds in which all processes have to be gone once the runner is: only to be finite."""
_libc = ctypes.CDLL(None, use_errno=True)

PLUGIN = '''
"""Has the system calls of this session asked about, from here on: see `supervisor`."""
import ctypes, os, struct
import pytest

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

def check(what, result):
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems():
    program = bytes.fromhex(os.environ["NSISOLATE_FAULTS_FILTER"])
    told, go_on = map(int, os.environ["NSISOLATE_FAULTS_FDS"].split())
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0:
        check("no_new_privs", libc.prctl(38, 1, 0, 0, 0))
    # NEW_LISTENER and WAIT_KILLABLE_RECV
    filter = Program(len(program) // 8, program)
    listener = check("seccomp", libc.syscall(317, 1, 8 | 32, ctypes.byref(filter)))
    # These calls are not among those asked about.
    os.writev(told, [struct.pack("=i", listener)])
    os.readv(go_on, [bytearray(1)])
    for fd in (listener, told, go_on):
        os.close(fd)
'''


PROBE = """
import os, sys
import ns_faults
ns_faults.pytest_collection_modifyitems()
try:
    os.mkdir("/sys/kernel")
except OSError as error:
    sys.exit(error.errno)
"""


class Site(NamedTuple):
    """The nth call of one kind by a process in one role."""

    role: str
    call: str
    what: str
    nth: int = 1

    def __str__(self) -> str:
        """As a person would say it."""
        return f"{self.role}: {' '.join(filter(None, (self.call, self.what)))} (#{self.nth})"


class Fault(NamedTuple):
    """What goes wrong at a site: an errno, or 0 for a SIGKILL."""

    site: Site
    number: int

    def __str__(self) -> str:
        """As a person would say it."""
        return f"{self.site} {errno.errorcode[self.number] if self.number else 'killed'}"


@dataclass
class Supervisor:
    """Answers for one session; with a fault, or without one, to learn what there is to fail."""

    fault: Fault | None = None
    calls: Counter[Site] = field(default_factory=Counter)
    order: list[Site] = field(default_factory=list)
    reached: bool = False
    _listener: int = -1

    def prepare(self, folder: Path) -> tuple[dict[str, str], tuple[int, int]]:
        """Put the plugin ``ns_faults`` there; what to start the session with."""
        (folder / "ns_faults.py").write_text(PLUGIN, "utf-8")
        self._told, told = os.pipe()
        go_on, self._go_on = os.pipe()
        environment = {
            "NSISOLATE_FAULTS_FILTER": seccomp_program().hex(),
            "NSISOLATE_FAULTS_FDS": f"{told} {go_on}",
        }
        return environment, (told, go_on)

    def serve(self, runner: int, inherited: tuple[int, int], deadline: float) -> str:
        """Answer until all processes of the session are gone.

        Returns:
            "gone"; or "hangs" if the runner has not ended by the deadline, "left behind" if
            another process has not, some seconds after it.
        """
        for fd in inherited:
            os.close(fd)
        self._roles = Roles(runner)
        pidfd = os.pidfd_open(runner)
        try:
            data = b""
            if select.select([self._told], [], [], max(0, deadline - time.monotonic()))[0]:
                data = os.read(self._told, 4)
            if not data:
                # Or it has ended before there was anything to ask about.
                return "gone" if select.select([pidfd], [], [], 0)[0] else "hangs"
            self._listener = _libc.syscall(_PIDFD_GETFD, pidfd, struct.unpack("=i", data)[0], 0)
            if self._listener < 0:
                number = ctypes.get_errno()
                raise OSError(number, f"pidfd_getfd: {os.strerror(number)}")
            os.write(self._go_on, b"g")
            return self._answer_all(pidfd, deadline)
        finally:
            for fd in (self._told, self._go_on, pidfd):
                os.close(fd)

    def close(self) -> None:
        """Calls that are still made fail from here on."""
        if self._listener >= 0:
            os.close(self._listener)
            self._listener = -1

    def _answer_all(self, pidfd: int, deadline: float) -> str:
        poll, ended = select.poll(), False
        poll.register(self._listener, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while True:
            ready = dict(poll.poll(max(0, deadline - time.monotonic()) * 1000))
            if not ready:
                return "left behind" if ended else "hangs"
            events = ready.get(self._listener, 0)
            if events & select.POLLIN:
                with contextlib.suppress(FileNotFoundError, InterruptedError):  # it was killed
                    self._answer()
            elif events & select.POLLHUP:
                return "gone"
            elif pidfd in ready:
                poll.unregister(pidfd)
                ended, deadline = True, time.monotonic() + _LEAVE

    def _answer(self) -> None:
        buffer = bytearray(_NOTIFICATION.size)
        fcntl.ioctl(self._listener, _RECEIVE, buffer)
        number, pid, _, call, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        error = self._judge(pid, NAMES[call], tuple(arguments))
        flags = 0 if error else _CONTINUE
        fcntl.ioctl(self._listener, _SEND, _RESPONSE.pack(number, 0, -error, flags))

    def _judge(self, pid: int, name: str, arguments: tuple[int, ...]) -> int:
        """The errno that the call is to fail with, 0 if it is to go on."""
        role = self._roles.of(pid)
        what = CALLS[name].site(pid, arguments)
        self._roles.calls(pid, name, arguments[0])
        if what is None:
            return 0
        kind = Site(role, name, what)
        self.calls[kind] += 1
        site = kind._replace(nth=self.calls[kind])
        self.order.append(site)
        if self.fault is None or site != self.fault.site:
            return 0
        self.reached = True
        if not self.fault.number:
            os.kill(pid, signal.SIGKILL)
        return self.fault.number


@functools.cache
def lacks_supervisor() -> str | None:
    """Why nobody can be asked about system calls here; None if it works."""
    reason = lacks_table() or lacks_root()
    if reason is not None:
        return reason
    with tempfile.TemporaryDirectory() as folder:
        supervisor = Supervisor(Fault(Site("runner", "mkdir", "/sys/kernel"), errno.ENOSPC))
        environment, inherited = supervisor.prepare(Path(folder))
        with subprocess.Popen(
            [sys.executable, "-c", PROBE],
            cwd=folder,
            env={**os.environ, **environment},
            pass_fds=inherited,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                supervisor.serve(process.pid, inherited, time.monotonic() + DEADLINE)
            except OSError as error:
                return str(error)
            finally:
                supervisor.close()
                said = process.communicate()[0]
    return None if process.returncode == errno.ENOSPC else f"seccomp_unotify(2): {said}"
