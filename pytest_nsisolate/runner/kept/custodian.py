"""The custodian: the process that holds kept sandboxes after their session has ended.

The runner starts it when the session ends, if sandboxes are to be kept, and hands over what
holds them: the keeper's socket, the sockets of each PID 1, and the locks on the control groups
that they are in. From there on they end with the custodian, as they had ended with the runner:
a keeper ends when its socket closes. It ends each sandbox when its time is over, takes those
that have ended out of the register, and ends itself with the last one.

Guarantees: when an entry is gone from the register, so are the processes and the control
groups of its sandbox; with the last entry the keeper is gone as well, and the session's groups.

Talk with the runner: a `Job` as JSON on standard input, up to its end; on standard output a
line, "ok" or why not. Descriptors are inherited, under the numbers that the job says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.cgroups.session import Handover, remove_trees
from pytest_nsisolate.core import bare_process, wire

from . import registry

if TYPE_CHECKING:
    from typing import NoReturn

#: How long the runner waits for the custodian, in seconds.
_START_LIMIT = 30.0
#: How long what has been killed may take to end, in seconds.
_PATIENCE = 10.0
#: How long the custodian sleeps at most: poll takes no more than some weeks, in milliseconds.
_LONGEST = 3600 * 1000


@dataclasses.dataclass(frozen=True)
class Charge:
    """One sandbox to be kept.

    Attributes:
        entry: of the register.
        pidfd, control: of its PID 1.
        groups: directories of the control groups that its processes are in.
    """

    entry: registry.Entry
    pidfd: int
    control: int
    groups: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Job:
    """What the custodian takes over.

    Attributes:
        keeper: the pidfd and the socket of the keeper.
        charges: the sandboxes.
        cgroups: of the session, if kept sandboxes are in some of them.
    """

    keeper: tuple[int, int]
    charges: tuple[Charge, ...]
    cgroups: Handover | None = None

    def descriptors(self) -> list[int]:
        """Return all descriptors that the custodian has to inherit."""
        found = [*self.keeper]
        for one in self.charges:
            found += [one.pidfd, one.control]
        if self.cgroups is not None:
            found += self.cgroups.descriptors()
        return found

    def to_wire(self) -> dict[str, Any]:
        """Return the job in a form that JSON can hold."""
        return {
            "keeper": self.keeper,
            "charges": [
                {
                    "entry": one.entry.to_wire(),
                    "pidfd": one.pidfd,
                    "control": one.control,
                    "groups": one.groups,
                }
                for one in self.charges
            ],
            "cgroups": None if self.cgroups is None else self.cgroups.to_wire(),
        }

    @classmethod
    def of_wire(cls, data: dict[str, Any]) -> Job:
        """Rebuild a job from what `to_wire` returned, once JSON has carried it."""
        cgroups = data["cgroups"]
        return cls(
            keeper=(data["keeper"][0], data["keeper"][1]),
            charges=tuple(
                Charge(
                    registry.of_wire(one["entry"]),
                    one["pidfd"],
                    one["control"],
                    tuple(one["groups"]),
                )
                for one in data["charges"]
            ),
            cgroups=None if cgroups is None else Handover.of_wire(cgroups),
        )


class Refused(Exception):
    """There is no custodian; the text says why."""


def start(job: Job) -> None:
    """Start the custodian of *job*; it has its own copies of the descriptors then.

    Raises:
        Refused: it could not be started, or not do its part.
    """
    try:
        process = bare_process.start(
            __name__,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=job.descriptors(),
            cwd="/",
        )
    except OSError as error:
        raise Refused(f"{sys.executable}: {error.strerror}") from None
    with process:
        try:
            out, _ = process.communicate(wire.dumps(job.to_wire()).encode("utf-8"), _START_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Refused(f"its process did not start within {_START_LIMIT:g} s") from None
    if out != b"ok\n":
        text = out.decode("utf-8", "replace").strip()
        raise Refused(text.splitlines()[-1] if text else f"exit code {process.returncode}")


def main() -> NoReturn:
    """Run the custodian."""
    code = 1
    try:
        # Nobody's child: who started it need not wait for it.
        if os.fork():
            os._exit(0)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        with open(0, "rb", closefd=False) as stream:
            job = Job.of_wire(wire.loads(stream.read().decode("utf-8")))
        custodian = Custodian(job)
        os.write(1, b"ok\n")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        custodian.serve()
        code = 0
    except OSError as error:
        os.write(2, f"{error.filename or 'the custodian'}: {error.strerror}\n".encode())
    except Exception as error:  # noqa: BLE001 -- the last line of this process
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


class Custodian:
    """See the module; the entries are in the register once it is made.

    Raises:
        OSError: they can't be put there.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._begin = time.monotonic()
        self._left = list(job.charges)
        self._held: dict[str, registry.Held] = {}
        for fd in job.descriptors():
            os.set_inheritable(fd, False)  # noqa: FBT003 -- takes no keywords
        try:
            for one in job.charges:
                self._held[one.entry.id] = registry.put(one.entry)
        except BaseException:
            for held in self._held.values():
                held.remove()
            raise

    def serve(self) -> None:
        """Hold them until the last one has ended."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        try:
            poll = select.poll()
            for one in self._left:
                poll.register(one.pidfd, select.POLLIN)
            # Each lives so long from here on, whatever the wall clock does meanwhile.
            limits = {one.pidfd: one.entry.until - one.entry.since for one in self._left}
            while self._left:
                age = time.monotonic() - self._begin
                pause = min(limits[one.pidfd] for one in self._left) - age
                ended = {fd for fd, _ in poll.poll(min(max(0, pause * 1000 + 1), _LONGEST))}
                age = time.monotonic() - self._begin
                ended |= {one.pidfd for one in self._left if age >= limits[one.pidfd]}
                for one in [one for one in self._left if one.pidfd in ended]:
                    poll.unregister(one.pidfd)
                    self._end(one)
        finally:
            for one in self._left[:]:
                self._end(one)

    def _end(self, one: Charge) -> None:
        """End it if it has not ended yet, and take it out of the register."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(one.pidfd, signal.SIGKILL)
        _wait_for(one.pidfd)
        os.close(one.pidfd)
        os.close(one.control)
        remove_trees(one.groups, time.monotonic() + _PATIENCE)
        self._left.remove(one)
        if not self._left:
            self._end_session()
        self._held.pop(one.entry.id).remove()

    def _end_session(self) -> None:
        pidfd, control = self._job.keeper
        os.close(control)
        if not _wait_for(pidfd):
            # A fork of the runner has a copy of that socket.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            _wait_for(pidfd)
        os.close(pidfd)
        if self._job.cgroups is not None:
            self._job.cgroups.remove(time.monotonic() + _PATIENCE)


def _wait_for(pidfd: int) -> bool:
    """Wait until this process has ended; return whether it has within some time."""
    return bool(select.select([pidfd], [], [], _PATIENCE)[0])
