"""Own the test processes: order their forks, send them their tests, signal and release them.

Guarantees: a process is in `Processes.alive` from `Processes.create` until it is released, and
whatever it holds (sandbox, connection, limits, descriptors) is released with it. Nothing here
decides: the event loop says which process is forked, and how it ends.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import signal
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsisolate.core.linux.syscalls import LINUX, StageError
from pytest_nsisolate.core.messages import GO, PACKETS, SNAPSHOT

from .test_process import State, TestProcess, TestRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_nsisolate.cgroups.budget import Budgets
    from pytest_nsisolate.files.artifact_policy import Retention
    from pytest_nsisolate.network.uplink.session import Network
    from pytest_nsisolate.sandbox.operations.plan import Plan
    from pytest_nsisolate.spec.spec import Spec

    from .kept.policy import Keeping
    from .servers.fork_server import ForkServer
    from .snapshot import Snapshot
    from .timeline import Watch

#: Bytes that are read of a stream before it is looked at what else has happened; of a group that
#: has more tests to run fewer, or the reports of many quick ones would keep the next group waiting.
_AT_ONCE, _OF_A_GROUP = 1 << 18, 1 << 14
#: Longer than the kernel's coarse clock is ever late, in seconds.
_TICK_LIMIT = 0.1


class Parts(NamedTuple):
    """What the session has made for its test processes.

    Attributes:
        plans: by which sandboxes are built.
        failures: gives the number of tests that have failed, which each test receives.
        budgets: what holds tests to their limits, if any has one.
        network: what connects sandboxes with the host, if any test asks for it.
        watch: records what ran when, where a report asks for it.
        retention: says which files of a test are brought out of its sandbox.
        keeping: says which sandboxes outlive the session, if any do.
    """

    plans: list[Plan]
    failures: Callable[[], int]
    budgets: Budgets | None = None
    network: Network | None = None
    watch: Watch | None = None
    retention: Retention | None = None
    keeping: Keeping | None = None


def stamp(*, apart: bool) -> int:
    """Return the time that a file changed now would get, in nanoseconds since the epoch.

    Args:
        apart: wait until no file that has been changed already can have that time. File
            systems take theirs from the kernel's coarse clock, which is some milliseconds
            late, or, since Linux 6.13, from the exact one.
    """
    if not LINUX:
        return time.time_ns()
    before = time.time_ns()
    limit = time.monotonic() + _TICK_LIMIT
    # CLOCK_REALTIME_COARSE: Python has no name for it
    now = time.clock_gettime_ns(5)
    while apart and now <= before and time.monotonic() < limit:
        time.sleep(0.0002)
        now = time.clock_gettime_ns(5)
    return now


class Processes:
    """See the module.

    Args:
        parts: of the session.
        poll: where the streams of the processes are registered.

    Attributes:
        alive: those that have not ended, by number.
        numbers: of processes and sandboxes, each used once.
    """

    def __init__(self, parts: Parts, poll: select.poll) -> None:
        self._parts = parts
        self._poll = poll
        self.alive: dict[int, TestProcess] = {}
        self.numbers: Iterator[int] = itertools.count(1)
        self._by_stream: dict[int, TestProcess] = {}

    def create(
        self,
        tests: list[TestRun],
        plan: int | None,
        spec: Spec,
        *,
        alone: bool = False,
        snapshot: Snapshot | None = None,
        serves: Snapshot | None = None,
    ) -> TestProcess:
        """Add a process that waits for its sandbox; the parameters are those of `TestProcess`."""
        process = TestProcess(
            next(self.numbers), tests, plan, spec, alone=alone, snapshot=snapshot, serves=serves
        )
        self.alive[process.number] = process
        return process

    def with_stream(self, fd: int) -> TestProcess | None:
        """Return the process whose stream this is."""
        return self._by_stream.get(fd)

    def descriptors(self) -> list[int]:
        """Return the runner's own descriptors for the processes, which no test may have."""
        return [fd for one in self.alive.values() for fd in one.descriptors()]

    @property
    def busy(self) -> bool:
        """Whether tests hold sandboxes, which they give back."""
        # A snapshot's own does not come back as long as its tests wait.
        return any(one.sandbox is not None for one in self.alive.values() if one.serves is None)

    # its fork

    def fork(self, process: TestProcess, server: ForkServer, forker: TestProcess | None) -> bool:
        """Order the fork of a process, if a sandbox is ready for it; return whether one was.

        Args:
            forker: the process of the snapshot that it is a fork of.

        Raises:
            StageError: it can't be ordered.
        """
        flags, sandbox = SNAPSHOT if process.serves is not None else 0, None
        if process.plan is not None:
            sandbox = server.pool.take(process.plan) if server.pool is not None else None
            if sandbox is None:
                return False
            flags |= self._parts.plans[process.plan].flags
        process.enter(server, sandbox, forker)
        try:
            if process.serves is None:
                self._equip(process)
            self._order(process, server, flags)
        except OSError as error:
            raise StageError.of("prepare the test process", error) from None
        return True

    def _equip(self, process: TestProcess) -> None:
        """Give a process what its tests have beside the sandbox: limits, and links to the host."""
        item, parts = process.test.item, self._parts
        if parts.budgets is not None:
            process.limit(parts.budgets.make(item))
        if parts.network is not None and process.sandbox is not None:
            connection = parts.network.connect(item, process.number, process.sandbox)
            if connection is not None:
                process.connect(connection)

    def _order(self, process: TestProcess, server: ForkServer, flags: int) -> None:
        theirs: list[int] = []
        try:
            self._join(process, theirs)
            fds = [*theirs, *process.files]
            if process.sandbox is not None:
                fds.append(process.sandbox.pidfd)
            if process.budget is not None:
                fds += process.budget.join_fds()
            server.template.fork(process.number, process.test.item, flags, fds)
        finally:
            for fd in theirs:
                os.close(fd)
        process.joined()

    def _join(self, process: TestProcess, theirs: list[int]) -> None:
        """Make what joins the runner to a process, whose own ends are added to *theirs*."""
        ours, stream = os.pipe()
        theirs.append(stream)
        process.open_stream(ours)
        self._by_stream[ours] = process
        self._poll.register(ours, select.POLLIN)
        os.set_blocking(ours, False)
        if process.serves is None:
            gate, ours = os.pipe()
            process.open_gate(ours)
        else:
            channel, other = socket.socketpair(socket.AF_UNIX, PACKETS)
            process.open_channel(channel)
            gate = other.detach()
        theirs.append(gate)
        process.open_files()

    # its tests

    def send_next(self, process: TestProcess, following: int) -> None:
        """Send a process the order to run its next test; the first one lets it start.

        Args:
            following: the item that comes after it in the same process, -1 if there is none.

        Raises:
            StageError: it can't be told.
        """
        first, parts = process.state is State.PARKED, self._parts
        if first:
            # By their times, patterns tell what this test changed from what was changed before.
            apart = parts.retention is not None and bool(parts.retention.patterns)
            process.stamp(stamp(apart=apart))
            if parts.watch is not None:
                parts.watch.goes(process.number)
        # Before it is let go: with one core it may run before this process does again.
        now = time.monotonic()
        if process.sent == process.index:
            process.start_clock(now)
        item = process.tests[process.sent].item
        try:
            os.write(process.gate, GO.pack(parts.failures(), item, following))
        except BrokenPipeError:
            pass  # it has ended, and the template says how
        except OSError as error:
            raise StageError("let the test go", error.errno or errno.EIO) from None
        process.sent_next()
        if first and process.budget is not None:
            process.budget.begin(now)

    def receive(self, process: TestProcess) -> bytes:
        """Read what the stream of a process holds; nothing if it holds nothing, or has ended."""
        if process.stream < 0:
            return b""
        size = _OF_A_GROUP if process.ahead else _AT_ONCE
        try:
            data = os.read(process.stream, size)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            # The end of the stream is not the end of the process: the template
            # says when that comes, and how.
            self._close_stream(process)
        else:
            process.was_drained(drained=len(data) < size)
        return data

    def signal(self, process: TestProcess, number: int) -> None:
        """Send a signal to a test process."""
        with contextlib.suppress(OSError):  # it has ended, and the template says how
            if process.sandbox is not None and process.server is not None:
                process.server.template.kill(process.number, number)
            elif process.pid:
                # Its guard reaps it; the template knows only the guard.
                os.kill(process.pid, number)

    def signal_group(self, process: TestProcess, number: int) -> None:
        """Send a signal to the process group of a test."""
        with contextlib.suppress(OSError):  # it has ended, and the template says how
            if process.sandbox is not None and process.server is not None:
                process.server.template.kill(process.number, -number)
            elif process.pid:
                os.killpg(process.pid, number)

    # its end

    def release(self, process: TestProcess) -> None:
        """End a process, and release whatever it holds."""
        if process.stream >= 0:
            self._close_stream(process)
        if process.sandbox is None and process.pid and not process.ended:
            # With its group: where a test forks without end, its own end may wait for locks of
            # its children. Its guard kills what has left the group.
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(OSError):
                    kill(process.pid, signal.SIGKILL)
        process.release()
        self.alive.pop(process.number, None)

    def start_over(self, process: TestProcess) -> None:
        """Release a process none of whose tests has begun, and let it wait for another sandbox."""
        self.release(process)
        process.start_over()
        self.alive[process.number] = process

    def _close_stream(self, process: TestProcess) -> None:
        self._poll.unregister(process.stream)
        del self._by_stream[process.stream]
        process.close_stream()
