"""The launcher: the process between ``nsisolate run`` and its command.

A pid namespace is entered by a child only, and joining a sandbox takes rights in the
session's user namespace, which a process can't leave again. So a fork of the caller goes
there, forks the command, which becomes PID 2 of the sandbox, waits for it, and tells.

    launcher  -> ["pid", number]                       of the command, as the caller sees it
              -> ["failed", [stage, errno, path]]
              -> ["stopped", signal]
              -> ["ended", [status, user, system, bytes]]   wait status, and what wait4(2) says
              <- ["signal", number]                    for the command's process group
    command   -> ["ready", null]                       waits for "go"
              -> ["failed", [stage, errno, path]]
              -> ["exec", errno]
              -> (end of stream)                       it is the command now

Guarantees: the launcher ends with its parent, and the command with the launcher.
Assumes: a caller with one thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import sys
from typing import Any, NamedTuple, NoReturn

with contextlib.suppress(ImportError):  # elsewhere than on Linux there is no launcher
    # `os.wait4` needs it, and where the launcher is then it may be out of reach.
    import resource  # noqa: F401 -- as said

from pytest_nsisolate.core import wire
from pytest_nsisolate.core.linux.syscalls import (
    CLONE_NEWPID,
    CLONE_NEWUSER,
    PR_SET_PDEATHSIG,
    SIGNALFD_SIGINFO_SIZE,
    StageError,
    block_signals,
    prctl,
    restore_mask,
    setns,
    signalfd,
)
from pytest_nsisolate.core.usage import peak_bytes
from pytest_nsisolate.sandbox.join import join_cgroups, join_sandbox, take_rights


class Start(NamedTuple):
    """What is started, and where.

    Attributes:
        command: the words of it.
        environment: all of it.
        directory: where it starts; "" if that has been removed.
        keeper: pidfd of the keeper.
        init: pidfd of the sandbox's PID 1.
        flags: namespaces to enter.
        group: descriptors for `join_cgroups`.
        mask: the signal mask for it.
        ignored: signals that it is to ignore from the start, as its caller did.
        user: uid, gid and groups to take before anything else, as root for another user.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    directory: str
    keeper: int
    init: int
    flags: int
    group: tuple[int, ...]
    mask: bytes
    ignored: frozenset[int]
    user: tuple[int, int, tuple[int, ...]] | None = None


def receive(channel: socket.socket) -> tuple[str, Any]:
    """Receive the next message; return ("gone", None) if there will be none."""
    try:
        data = channel.recv(wire.MAX_MESSAGE)
    except ConnectionError:
        # The other end has closed with something unread. That is said once, and first;
        # what it had sent before is still here.
        data = _rest(channel)
    return next(wire.Decoder().feed(data)) if data else ("gone", None)


def _rest(channel: socket.socket) -> bytes:
    try:
        return channel.recv(wire.MAX_MESSAGE)
    except ConnectionError:
        return b""


class Launcher:
    """The caller's hold on the launcher.

    Args:
        start: what to start.
        close: the caller's descriptors that the launcher may not hold open.

    Attributes:
        control: to the launcher.
        gate: to the command, until it is the command.
    """

    def __init__(self, start: Start, close: list[int]) -> None:
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.gate, gate = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _run(start, control, gate, parent, [self.control.fileno(), self.gate.fileno(), *close])
        control.close()
        gate.close()

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group; too late is no error."""
        with contextlib.suppress(OSError):
            self.control.send(wire.encode("signal", number))

    def close(self) -> None:
        """End the launcher, and with it the command; again is no error."""
        self.control.close()
        self.gate.close()
        if self._pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0


def _run(
    start: Start, control: socket.socket, gate: socket.socket, parent: int, close: list[int]
) -> NoReturn:
    try:
        for fd in close:
            os.close(fd)
        signals = signalfd([int(signal.SIGCHLD)])
        block_signals([int(signal.SIGCHLD)])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if start.user is not None:
            uid, gid, groups = start.user
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        setns(start.keeper, CLONE_NEWUSER, stage="enter the session's user namespace")
        # After the change of credentials, which clears it.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        setns(start.init, CLONE_NEWPID, stage="enter the pid namespace")
        try:
            pid = os.fork()
        except OSError as error:
            raise StageError("fork", error.errno or errno.EAGAIN) from None
        if pid == 0:
            control.close()
            _become(start, gate)
        gate.close()
        for fd in start.group:
            os.close(fd)
        control.send(wire.encode("pid", pid))
        _wait(pid, control, signals)
    except StageError as error:
        with contextlib.suppress(OSError):
            control.send(wire.encode("failed", [error.stage, error.errno, error.path]))
    except BaseException as error:  # noqa: BLE001 -- the last line of this process
        with contextlib.suppress(OSError):
            os.write(2, f"nsisolate: launcher: {error!r}\n".encode())
    finally:
        os._exit(0)


def _wait(pid: int, control: socket.socket, signals: int) -> None:
    """Report how the command fares, until it has ended or the other end has closed."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(signals, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == signals:
                os.read(signals, SIGNALFD_SIGINFO_SIZE)
                if _reap(pid, control):
                    return
                continue
            kind, number = receive(control)
            if kind == "gone":
                # Nobody listens: the caller is done with it, or dead.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            _send_signal(pid, number)


def _reap(pid: int, control: socket.socket) -> bool:
    """Report every change of state; return whether the last one was the end."""
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG | os.WUNTRACED)
        if not found:
            return False
        if os.WIFSTOPPED(status):
            control.send(wire.encode("stopped", os.WSTOPSIG(status)))
            continue
        measured = [status, usage.ru_utime, usage.ru_stime, peak_bytes(usage.ru_maxrss)]
        with contextlib.suppress(OSError):
            control.send(wire.encode("ended", measured))
        return True


def _send_signal(pid: int, number: int) -> None:
    # Not reaped yet, so both numbers are still the command's.
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        # It has left the group that it was started in, or has not made it yet.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _become(start: Start, gate: socket.socket) -> NoReturn:
    """Become the command: PID 2 of the sandbox."""
    try:
        _enter(start)
        gate.send(wire.encode("ready", None))
        if gate.recv(2) != b"go":
            os._exit(1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError):  # two that the C library keeps to itself
                ignored = int(number) in start.ignored
                signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
        restore_mask(start.mask)
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if int(name) > 2:
                    os.set_inheritable(int(name), False)  # noqa: FBT003 -- takes no keywords
        os.execvpe(start.command[0], start.command, start.environment)
    except StageError as error:
        gate.send(wire.encode("failed", [error.stage, error.errno, error.path]))
    except OSError as error:
        gate.send(wire.encode("exec", error.errno or errno.EIO))
    except BaseException as error:  # noqa: BLE001 -- the last line of this process
        sys.stderr.write(f"nsisolate: {error!r}\n")
        sys.stderr.flush()
    finally:
        os._exit(1)


def _enter(start: Start) -> None:
    """Enter the sandbox as a test process does, but in the session of the terminal."""
    # Each a group of its own: what the command sends to its group stays inside.
    os.setpgid(0, 0)
    join_cgroups(start.group)
    join_sandbox(start.init, start.flags, start.directory)
    take_rights()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
