"""PID 1 of a sandbox: build its inside, reap orphans, answer the runner, and end everything.

It builds what must be built from inside (the steps of a plan), then holds the
namespaces open. It reaps orphans (the kernel does, SIGCHLD being ignored),
ignores every signal from inside, passes signals from outside on to the test
process, answers who is running, brings files out, asks all to end, stops all, lets go of the
runner's standard error if it is to outlive it, and ends the sandbox by ending: the
kernel kills what is left in a pid namespace whose PID 1 is gone.

Assumes: a fresh fork of the keeper, one thread, in namespaces just unshared;
`prepare` was called in the keeper.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys

from pytest_nsisolate.core import wire
from pytest_nsisolate.core.artifacts import Collected, CollectRequest
from pytest_nsisolate.core.linux import proc
from pytest_nsisolate.core.linux.syscalls import (
    SIGNALFD_SIGINFO_SIZE,
    StageError,
    block_signals,
    signalfd,
)

from . import collect
from .builder import MAKE, Builder, fork
from .operations import steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from .operations.plan import Program

_PASSED_ON = [
    int(number)
    for number in (
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTERM,
        signal.SIGCONT,
        signal.SIGWINCH,
    )
]
#: By the words that ask for them: what is sent to everything inside, and the answer.
_SIGNALS = {
    b"tm": (signal.SIGTERM, "signalled"),
    b"st": (signal.SIGSTOP, "stopped"),
    b"ct": (signal.SIGCONT, "continued"),
}
_FD = struct.Struct("=i")
#: Of a message: the directories that files are brought out to.
_MAX_FDS = 2
_SIGINFO = struct.Struct("=I8xI")  # signalfd_siginfo.ssi_signo and ssi_pid


class Inheritance:
    """What every PID 1 takes over from the keeper ready-made.

    Signals are blocked, so that they wait for the descriptor; that shows each
    process its own. SIGCHLD is ignored, so that the kernel reaps.
    """

    def __init__(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        block_signals(_PASSED_ON)
        self.signals = signalfd(_PASSED_ON)
        self.poll = select.poll()
        self.poll.register(self.signals, select.POLLIN)


def run(
    control: socket.socket, program: Program, inheritance: Inheritance, close: list[int]
) -> NoReturn:
    """Build the sandbox, say so on *control*, and hold it until *control* closes.

    Args:
        close: the keeper's descriptors, which the sandbox may not hold open.
    """
    code = 1
    try:
        for fd in close:
            os.close(fd)
        # The keeper says "go" once the id maps are written.
        if control.recv(2) != b"go":
            os._exit(1)
        try:
            for function, arguments in program.steps + program.once:
                function(*arguments)
        except (StageError, OSError) as error:
            if not isinstance(error, StageError):
                error = StageError.of("build the sandbox", error)
            control.send(wire.encode("failed", [error.stage, error.errno, error.path]))
            os._exit(1)
        control.send(b"ready")
        _hold(control, inheritance)
        code = 0
    except ConnectionError:
        code = 0
    except BaseException as error:  # noqa: BLE001 -- the last line of this process
        sys.stderr.write(f"nsisolate: PID 1 of a sandbox: {error!r}\n")
        sys.stderr.flush()
    finally:
        os._exit(code)


def _hold(control: socket.socket, inheritance: Inheritance) -> None:
    poll, signals = inheritance.poll, inheritance.signals
    builder: Builder | None = None
    poll.register(control, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == signals:
                _pass_on(os.read(signals, SIGNALFD_SIGINFO_SIZE))
                continue
            word, fds = _receive(control)
            if word == b"ps":
                control.send(wire.encode("processes", proc.left_running()))
            elif word in _SIGNALS:
                number, answer = _SIGNALS[word]
                _signal_all(number)
                control.send(wire.encode(answer, ""))
            elif word == b"kp":
                close_stderr()
                control.send(wire.encode("kept", ""))
            elif word[:1] == b"\0":  # the length of a frame
                kind, value = next(wire.Decoder().feed(word))
                if kind == "bring out":
                    control.send(_bring_out(value, fds))
                else:
                    builder = builder or _builder(control, inheritance)
                    builder.learn(kind, value)
            elif word and builder is not None:
                # A fork has this poll as well, but not this socket.
                poll.unregister(control)
                _, number, wanted = MAKE.unpack(word)
                builder.make(number, wanted)
                poll.register(control, select.POLLIN)
            else:
                return


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """Receive the next message, with its descriptors; b"" at the end."""
    space = socket.CMSG_SPACE(_MAX_FDS * _FD.size)
    data, ancillary, _, _ = control.recvmsg(wire.MAX_MESSAGE, space)
    fds = []
    for level, kind, rights in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += [fd for (fd,) in _FD.iter_unpack(rights[: len(rights) // _FD.size * _FD.size])]
    return data, fds


def _bring_out(fields: list[Any], fds: list[int]) -> bytes:
    try:
        told = collect.bring_out(CollectRequest(*fields), fds, steps.written)
    except Exception as error:  # noqa: BLE001 -- whatever a test has made of its files
        told = Collected(left_out=(f"what follows ({error!r})",))
    finally:
        for fd in fds:
            os.close(fd)
    return wire.encode("brought", told)


def _builder(control: socket.socket, inheritance: Inheritance) -> Builder:
    """Return what builds the sandboxes of tests inside that of their snapshot."""

    def become(inner: socket.socket, program: Program, close: list[int]) -> NoReturn:
        run(inner, program, inheritance, close)

    return Builder(control, become, [control.fileno()], fork)


def close_stderr() -> None:
    """Turn this process's standard error into /dev/null: it is the runner's."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 2)
    os.close(null)


def _signal_all(number: int) -> None:
    """Send a signal to everything inside, in one call that no fork escapes (kill(2))."""
    try:
        os.kill(-1, number)
    except ProcessLookupError:
        return


def _pass_on(info: bytes) -> None:
    number, sender = _SIGINFO.unpack_from(info)
    # A sender outside this pid namespace has no pid in it.
    if sender == 0:
        try:
            os.kill(proc.TEST_PID, number)
        except ProcessLookupError:
            return
