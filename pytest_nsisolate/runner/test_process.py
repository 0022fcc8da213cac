"""One test process, as the runner sees it: where it stands, what joins it, and the tests it runs.

`TestProcess` is a state machine. Its attributes are changed by its own methods alone:

```
WAITING ── joined ──> PARKED ── sent ──> RUNNING ── ended ──> ENDED
   ^                     │                                      │
   └───── start_over ────┴───────────── start_over ─────────────┘
```

A process waits until a sandbox is ready for it. It is parked from the order to fork it until it is
let go, runs until its outcome is known, and starts over only if none of its tests has begun.
"""

from __future__ import annotations

import enum
import math
import os
import tempfile
from collections import deque
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core import wire
from pytest_nsisolate.core.linux.syscalls import LINUX
from pytest_nsisolate.core.traceback_text import TRACE_MARK, has_crash, last_stacks

if TYPE_CHECKING:
    import socket

    from pytest_nsisolate.cgroups.budget import Budget
    from pytest_nsisolate.core.outcome import Outcome
    from pytest_nsisolate.network.uplink.session import Connection
    from pytest_nsisolate.sandbox.client import Sandbox
    from pytest_nsisolate.spec.spec import Spec

    from .servers.fork_server import ForkServer
    from .snapshot import Snapshot

#: The most that is read of a file that a test process wrote, in bytes.
_TEXT_LIMIT = 1 << 20
#: Stacks that were asked for repeatedly are dropped from this size on, in bytes.
_MUCH_TRACE = 1 << 18
#: The largest number of tests whose reports are read in one go, about.
_MANY = 64
#: Tests that take about as long as the runner rests between two looks at a group's stream.
_SEVERAL = 8
#: How long a test runs between two looks at its output, in seconds: some 0.2 GB at most.
LOOK_EVERY = 0.05
#: How many files a process has once it is forked: trace, standard output, standard error.
FILES = 3


class State(enum.Enum):
    """Of a test process, in order; see the module."""

    WAITING = 1
    PARKED = 2
    RUNNING = 3
    ENDED = 4


class TestRun:
    """One test of a process: the frames that the process sent for it, and how it ended.

    Attributes:
        process: the one that runs it; another one if a process before it broke off.
        outcome: None until the test has ended.
        running: the processes of the test when its time was over, a line each.
        exported: whether it has called `sandbox.export`.
        debugged: whether it has asked for the terminal, for a debugger.
    """

    __test__ = False  # pytest collects classes whose names begin so
    __slots__ = ("debugged", "exported", "frames", "item", "outcome", "process", "running")

    def __init__(self, item: int) -> None:
        self.item = item
        self.process: TestProcess
        self.frames: deque[tuple[str, Any]] = deque()
        self.outcome: Outcome | None = None
        self.running: list[str] = []
        self.exported = False
        self.debugged = False

    def next_frame(self) -> tuple[str, Any]:
        """Remove and return the first frame; if it stays nowhere, it weighs nothing from now on."""
        frame = self.frames.popleft()
        if self.outcome is None:  # else the decoder has forgotten all frames of the test
            self.process.decoder.let_go(*frame)
        return frame

    def export(self) -> None:
        """Note that the test has called `sandbox.export`."""
        self.exported = True

    def time_out(self, running: list[str]) -> None:
        """Note the processes that ran when the time of the test was over."""
        self.running = running

    def run_in(self, process: TestProcess) -> None:
        """Make the test part of *process*."""
        self.process = process

    def end(self, outcome: Outcome) -> None:
        """Note how the test ended."""
        self.outcome = outcome

    def debug(self) -> None:
        """Note that the test has requested the terminal."""
        self.debugged = True


# One class: the state machine above, whose attributes no other class may change.
class TestProcess:
    """One test process: of one test, or of those that share it (the key ``scope``), in order.

    Args:
        alone: no test follows the last of the *tests*, whatever its group is.
        snapshot: what it is a fork of, None for the session's template.
        serves: the snapshot that it is itself, if it runs no test.

    Attributes:
        index: of the test that runs, among *tests*.
        sent: how many tests the process has been sent.
        requested: how many tests the scheduler has asked for.
        failed: whether a test before the current one has failed.
        used: CPU seconds of the tests that are over, in user mode and in the kernel.
        server: what forked the process.
        forker: the process of the snapshot that it is a fork of.
        channel: the socket to a snapshot.
        drained: whether something came since the last rest, and all of it was read.
        files: the trace, standard output and standard error.
        ending: how it ended, where its guard has yet to end.
        left: the processes that its guard found, a line each.
        deadline: when the current test's time is over, by the monotonic clock.
        runaway: whether it had too many processes to be asked to end.
        stopped_by: the signal that stopped it.
        held: whether the terminal's user stopped it, or the runner holds it still.
        begin: when the current test began, by the monotonic clock.
        next_look: when to look at the size of its output.
        since: the time that files get which are changed from its first moment on.
    """

    __test__ = False  # pytest collects classes whose names begin so

    def __init__(
        self,
        number: int,
        tests: list[TestRun],
        plan: int | None,
        spec: Spec,
        *,
        alone: bool = False,
        snapshot: Snapshot | None = None,
        serves: Snapshot | None = None,
    ) -> None:
        self.number = number
        self.tests = tests
        self.plan = plan
        self.spec = spec
        self.alone = alone
        self.snapshot = snapshot
        self.serves = serves
        self.index = 0
        self.requested = 0
        self.failed = False
        self.used = (0.0, 0.0)
        self.state = State.WAITING
        self.server: ForkServer | None = None
        self.forker: TestProcess | None = None
        self.sandbox: Sandbox | None = None
        self.budget: Budget | None = None
        self.connection: Connection | None = None
        self.channel: socket.socket | None = None
        self.stream = -1
        self.drained = False
        self.gate = -1
        self.files: list[int] = []
        self.ending: Outcome | None = None
        self.left: list[str] = []
        self.deadline: float | None = None
        self.timed_out = False
        self.terminated = False
        self.runaway = False
        self.stopped_by = 0
        self.held = False
        self.stop_deadline: float | None = None
        self.begin = 0.0
        self.next_look = math.inf
        self._reset()
        for test in tests:
            test.run_in(self)

    def _reset(self) -> None:
        self.sent = 0
        self.since = 0
        self.pid = 0
        self.decoder = wire.Decoder()

    # what it is

    @property
    def test(self) -> TestRun:
        """The current test."""
        return self.tests[self.index]

    @property
    def shared(self) -> bool:
        """Whether several tests run in this process."""
        return self.spec.scope != "function" and not self.alone

    @property
    def in_step(self) -> bool:
        """Whether a test may begin only when the one before it is known to be over.

        Otherwise it would be unknown which of them has reached a limit.
        """
        return self.spec.memory is not None or self.spec.pids is not None

    @property
    def ahead(self) -> bool:
        """Whether it goes on with several tests, whatever the runner does meanwhile.

        With a few it is close to its end, after which another process is to be let go.
        """
        return self.sent > self.index + _SEVERAL

    @property
    def near_its_end(self) -> bool:
        """Whether a process of several tests may end while reports of some are handed on."""
        return 1 < len(self.tests) <= self.index + _MANY

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self.state is State.RUNNING

    @property
    def ended(self) -> bool:
        """Whether its outcome is known, and all that it held is released."""
        return self.state is State.ENDED

    @property
    def over(self) -> bool:
        """Whether no frame of it is taken any more."""
        return self.ended or self.ending is not None

    def overdue(self, now: float) -> bool:
        """Return whether the time of the current test is over."""
        return self.deadline is not None and now >= self.deadline

    def descriptors(self) -> list[int]:
        """Return the runner's descriptors for the process."""
        fds = [*self.files, *(fd for fd in (self.stream, self.gate) if fd >= 0)]
        if self.channel is not None:
            fds.append(self.channel.fileno())
        if self.sandbox is not None:
            fds += [self.sandbox.pidfd, self.sandbox.control]
        return fds

    # before it runs

    def append(self, test: TestRun) -> None:
        """Add a test that runs after those it has."""
        self.tests.append(test)
        test.run_in(self)

    def request(self) -> None:
        """Note that the scheduler has requested the next of its tests."""
        self.requested += 1

    def enter(
        self, server: ForkServer, sandbox: Sandbox | None, forker: TestProcess | None
    ) -> None:
        """Note where it is forked from, and the sandbox that it owns from now on."""
        self.server = server
        self.forker = forker
        self.sandbox = sandbox

    def limit(self, budget: Budget | None) -> None:
        """Own what holds it to its limits."""
        self.budget = budget

    def connect(self, connection: Connection) -> None:
        """Own what connects its sandbox with the host."""
        self.connection = connection

    def open_stream(self, stream: int) -> None:
        """Own the runner's end of the stream of frames."""
        self.stream = stream

    def open_gate(self, gate: int) -> None:
        """Own the runner's end of the gate that it waits at."""
        self.gate = gate

    def open_channel(self, channel: socket.socket) -> None:
        """Own the runner's end of the socket to a snapshot."""
        self.channel = channel

    def open_files(self) -> None:
        """Make its files."""
        for number in range(FILES):
            # The runner writes to the first as well, so the test must not seal it.
            self.files.append(memory_file(may_be_sealed=number > 0))

    def joined(self) -> None:
        """Note that the fork has been ordered: the process is parked at its gate."""
        if self.budget is not None:
            self.budget.joined()
        self.state = State.PARKED

    def forked(self, pid: int) -> None:
        """Note its pid, as its fork server sees it."""
        self.pid = pid

    def stay_parked(self) -> None:
        """Note that it could not begin."""
        self.state = State.PARKED

    def start_over(self) -> None:
        """Wait for another sandbox: it has been released, and none of its tests has begun."""
        self.state = State.WAITING
        self.server = self.forker = None
        self.test.frames.clear()
        self._reset()

    # while it runs

    def stamp(self, since: int) -> None:
        """Note the time that files get which are changed from now on."""
        self.since = since

    def start_clock(self, now: float) -> None:
        """Note that the current test begins."""
        self.begin = now
        self.next_look = min(self.next_look, now + LOOK_EVERY)
        if self.spec.timeout is not None:
            self.deadline = now + self.spec.timeout

    def sent_next(self) -> None:
        """Note that it has been sent its next test."""
        self.sent += 1
        self.state = State.RUNNING

    def sent_set_up(self, now: float) -> None:
        """Note that it, a snapshot, has received the order to set up."""
        self.start_clock(now)
        self.sent = 1
        self.state = State.RUNNING

    def set_up(self) -> None:
        """Note that it, a snapshot, has set up; the channel has another owner from now on."""
        self.channel = None
        self.deadline = None
        self.timed_out = self.terminated = False

    def debug(self) -> None:
        """Note that a debugger begins in the current test: no time counts for the rest of it."""
        self.test.debug()
        self.deadline = None

    def limit_time(self, deadline: float) -> None:
        """End the current test by *deadline* at the latest."""
        self.deadline = deadline if self.deadline is None else min(deadline, self.deadline)

    def looked(self, now: float) -> None:
        """Note that its output has been looked at."""
        self.next_look = now + LOOK_EVERY

    def was_drained(self, *, drained: bool) -> None:
        """Note whether all that its stream held has been read."""
        self.drained = drained

    def hold(self, *, held: bool = True) -> None:
        """Note that it is stopped on purpose, so that a stop is no ending; or no longer."""
        self.held = held

    def stopped(self, number: int, deadline: float) -> None:
        """Note that a signal has stopped it; it is ended at *deadline* unless it continues."""
        if not self.held:
            self.stopped_by, self.stop_deadline = number, deadline

    def continued(self) -> None:
        """Note that it runs again."""
        self.stop_deadline = None
        self.held = False

    def time_out(self, running: list[str], deadline: float) -> None:
        """Note that the current test's time is over, and when it is to be terminated."""
        self.timed_out = True
        self.deadline = deadline
        self.test.time_out(running)

    def terminate(self, deadline: float) -> None:
        """Note that it has received the order to end, and when it is to be killed."""
        self.terminated = True
        self.deadline = deadline

    def run_away(self, running: list[str]) -> None:
        """Note that it has too many processes to be asked to end."""
        self.runaway = True
        self.test.time_out(running)

    def fail(self, *, failed: bool) -> None:
        """Note whether a test that is over has failed."""
        self.failed = self.failed or failed

    def advance(self, outcome: Outcome, now: float) -> None:
        """Go on with the next test: the current one has ended with *outcome*."""
        self.test.end(outcome)
        self.used = (
            self.used[0] + (outcome.usage.cpu_user or 0.0),
            self.used[1] + (outcome.usage.cpu_system or 0.0),
        )
        self.index += 1
        self.decoder.forget()
        self.deadline = None
        self.timed_out = self.terminated = False
        self.begin = 0.0
        if self.sent > self.index:
            self.start_clock(now)

    def acknowledge(self) -> None:
        """Acknowledge to the process that its report has been handed on."""
        if self.gate < 0:
            return
        try:
            os.write(self.gate, b"k")
        except OSError:
            # It has ended; or it goes on without that word, as the gate closes.
            os.close(self.gate)
            self.gate = -1

    def heard(self) -> None:
        """Confirm to the process, which waits for it, that its request for the terminal is known.

        The process looks at the permissions of a file that it has anyway: no test has to keep a
        descriptor for the case that it is debugged.
        """
        if self.files:
            count = os.fstat(self.files[0]).st_mode + 1
            os.fchmod(self.files[0], count & 0o777)

    def mark_trace(self) -> None:
        """Set apart what faulthandler will write from what it has written.

        What was written since the mark before is not lost: the process may just have crashed,
        and written where. A crash before that was one of its forks.
        """
        if not self.files:
            return
        file = self.files[0]
        much = os.fstat(file).st_size > _MUCH_TRACE
        if much and not has_crash(last_stacks(text_of(file))):
            self.forget_trace()
        os.write(file, TRACE_MARK.encode())  # at the test process's place

    def forget_trace(self) -> None:
        """Empty the file that faulthandler writes to."""
        if self.files:
            os.ftruncate(self.files[0], 0)
            os.lseek(self.files[0], 0, os.SEEK_SET)  # the test process's place as well

    # its end

    def ends_with(self, outcome: Outcome, deadline: float) -> None:
        """Note how it ended; its guard is given until *deadline* to end as well."""
        self.ending = outcome
        self.deadline = deadline

    def left_running(self, lines: list[str]) -> None:
        """Note the processes that its guard found."""
        self.left = lines

    def give_sandbox_away(self) -> None:
        """Stop owning the sandbox, whose new owner keeps it; the process ends with it."""
        self.sandbox = None
        self.pid = 0

    def close_stream(self) -> None:
        """Close the runner's end of the stream."""
        os.close(self.stream)
        self.stream = -1

    def release(self) -> None:
        """End its sandbox, connection and limits, and close every descriptor but the stream."""
        self.state = State.ENDED
        self.deadline = self.stop_deadline = None
        if self.sandbox is not None:
            self.sandbox.end()
            self.sandbox = None
        if self.connection is not None:
            self.connection.end()
            self.connection = None
        if self.budget is not None:
            self.budget.end()
        for fd in self.files:
            os.close(fd)
        self.files = []
        if self.gate >= 0:
            os.close(self.gate)
            self.gate = -1
        if self.channel is not None:
            self.channel.close()
            self.channel = None


def memory_file(*, may_be_sealed: bool = False) -> int:
    """Make a file without a name, which outlives whoever writes to it."""
    if LINUX:
        flags = os.MFD_ALLOW_SEALING if may_be_sealed else 0
        return os.memfd_create("nsisolate", os.MFD_CLOEXEC | flags)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def text_of(fd: int) -> str:
    """Read a file: all of it, or its beginning and its end."""
    size = os.fstat(fd).st_size
    if size <= _TEXT_LIMIT:
        return os.pread(fd, size, 0).decode("utf-8", "replace")
    head = os.pread(fd, _TEXT_LIMIT // 2, 0).decode("utf-8", "replace")
    tail = os.pread(fd, _TEXT_LIMIT // 2, size - _TEXT_LIMIT // 2).decode("utf-8", "replace")
    return f"{head}\n... {size - _TEXT_LIMIT} bytes left out ...\n{tail}"
