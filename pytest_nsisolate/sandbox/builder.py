"""Build sandboxes on request, in the keeper or in the PID 1 of a snapshot's sandbox.

What it does per sandbox is kept to a few lines of Python: each page of this
interpreter that it, or a fork of it, writes to is a page fault.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct

from pytest_nsisolate.core import wire
from pytest_nsisolate.core.linux.syscalls import StageError, clone

from .operations import plan
from .operations.namespaces import write_maps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

#: How long building one sandbox may take, in seconds.
BUILD_LIMIT = 30
MAKE = struct.Struct("=BII")
MADE = struct.Struct("=BI")
#: First bytes that no frame has: its length would be over 2 GiB.
MAKE_KIND, MADE_KIND = 0xFE, 0xFF
_TWO_FDS = struct.Struct("=ii")


def send(control: socket.socket, kind: str, value: Any = None) -> None:
    """Send one message that is not per sandbox."""
    control.send(wire.encode(kind, value))


def fork(program: plan.Program) -> int:
    """Fork a PID 1 that starts with a copy of this process's mounts."""
    return clone(program.flags, stage="unshare")


class Builder:
    """See the module; `keeper` says how it is spoken with.

    Args:
        control: where requests come from, and sandboxes go to.
        run: becomes PID 1 of a new sandbox, given its socket, its program and
            descriptors that it has to close.
        close: descriptors that no sandbox may hold open; more may come.
        fork: forks a PID 1 into the namespaces of its program, and may raise a `StageError`.
    """

    def __init__(
        self,
        control: socket.socket,
        run: Callable[[socket.socket, plan.Program, list[int]], NoReturn],
        close: list[int],
        fork: Callable[[plan.Program], int],
    ) -> None:
        self._control = control
        self._run = run
        self._close = close
        self._fork = fork
        self._parts: list[str] = []
        self._programs: dict[int, plan.Program] = {}

    def learn(self, kind: str, value: Any) -> plan.Plan | None:
        """Take a part of a plan; or remember under that number the plan whose parts they were."""
        if kind == "part":
            self._parts.append(value)
            return None
        wanted = plan.Plan.from_wire(wire.loads("".join(self._parts)))
        self._parts.clear()
        self._programs[value] = plan.work_out(wanted)
        return wanted

    def put_on(self, number: int, ground: int) -> None:
        """Start the sandboxes of that plan with a copy of the mount namespace *ground*."""
        self._programs[number] = self._programs[number]._replace(ground=ground)

    def failed(self, number: int, error: StageError) -> None:
        """Report that the sandbox of that number can't be built."""
        send(self._control, "failed", [number, error.stage, error.errno, error.path])

    def make(self, number: int, plan_number: int) -> None:
        """Build a sandbox by that plan, and hand over its PID 1 and the socket to it."""
        program = self._programs[plan_number]
        if self._make(number, program) and program.once:
            self._programs[plan_number] = program._replace(once=())

    def _make(self, number: int, program: plan.Program) -> bool:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self.failed(number, StageError("make a socket", error.errno or errno.EIO))
            return False
        pidfd, made = -1, False
        try:
            # In one call, so that the new user namespace owns the others.
            first = self._fork(program)
            if first == 0:
                self._run(theirs, program, [*self._close, ours.fileno()])
            theirs.close()
            pidfd = os.pidfd_open(first)
            # From here, in the user namespace above: it may map every id it has itself.
            write_maps(f"/proc/{first}", program.uids, program.gids)
            ours.send(b"go")
            _answer(ours)
            fds = _TWO_FDS.pack(pidfd, ours.fileno())
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)
            self._control.sendmsg((MADE.pack(MADE_KIND, number),), (rights,))
            made = True
        except StageError as error:
            self.failed(number, error)
        except ConnectionError:
            # Its PID 1 ended in the middle; whether the runner did, too, the
            # next receive will tell.
            self.failed(number, StageError("build the sandbox", errno.EPIPE))
        except OSError as error:
            self.failed(number, StageError.of("build the sandbox", error))
        finally:
            if pidfd >= 0:
                os.close(pidfd)
            ours.close()
        return made


def _answer(ours: socket.socket) -> bytes:
    """Receive the next answer of a sandbox being built; raise the `StageError` of a failure."""
    # Nothing comes for as long as a mount hangs (a dead network file system):
    # the session must not hang with it.
    if not select.select((ours,), (), (), BUILD_LIMIT)[0]:
        raise StageError(f"build the sandbox within {BUILD_LIMIT} s", errno.ETIMEDOUT)
    data = ours.recv(4096)
    if not data:
        raise StageError("build the sandbox", errno.EPIPE)
    if data[:1] == b"\0":  # the length of a frame
        _, value = next(wire.Decoder().feed(data))
        raise StageError(*value)
    return data
