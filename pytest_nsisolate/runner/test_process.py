"""One test process, as the runner sees it: where it stands, its files, and the tests it runs."""

from __future__ import annotations

import enum
import math
import os
import tempfile
from collections import deque
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core import wire
from pytest_nsisolate.core.outcome import TRACE_MARK, has_crash, last_stacks
from pytest_nsisolate.core.syscalls import LINUX

if TYPE_CHECKING:
    import socket

    from pytest_nsisolate.cgroups.budget import Budget
    from pytest_nsisolate.core.outcome import Outcome
    from pytest_nsisolate.network.uplink.session import Connection
    from pytest_nsisolate.sandbox.client import Sandbox
    from pytest_nsisolate.spec.spec import Spec

    from .fork_server import Snapshot, ForkServer

#: The most that is taken of a file that a test process wrote, in bytes.
_TEXT_LIMIT = 1 << 20
#: Bytes of stacks, asked for time and again, that are not worth their memory.
_MUCH_TRACE = 1 << 18
#: Tests whose reports are read at once, at most about.
_MANY = 64
#: Tests that take about as long as the runner rests between two looks at a group's stream.
_SEVERAL = 8
#: How long a test runs between two looks at what it has written, in seconds: some 0.2 GB at most.
LOOK_EVERY = 0.05
#: How many files an process has once it is forked.
FILES = 3


class State(enum.Enum):
    """Of an process, in order."""

    WAITING = 1  # for a sandbox
    PARKED = 2  # forked, or about to be; waits at its gate
    RUNNING = 3
    ENDED = 4


class TestRun:
    """One test of an process: what its process told of it, and how it ended.

    Attributes:
        process: the one that it is part of; another one once a process before it broke off.
        outcome: None until the test has ended.
        running: the processes when its time was over, a line each.
        exported: whether it has called `sandbox.export`.
        debugged: whether it has asked for the terminal, for a debugger.
    """

    __slots__ = ("process", "debugged", "exported", "frames", "item", "outcome", "running")

    def __init__(self, item: int) -> None:
        self.item = item
        self.process: TestProcess
        self.frames: deque[tuple[str, Any]] = deque()
        self.outcome: Outcome | None = None
        self.running: list[str] = []
        self.exported = False
        self.debugged = False

    def next_frame(self) -> tuple[str, Any]:
        """The first frame, to be handed on; if it stays nowhere, it weighs nothing from now on."""
        frame = self.frames.popleft()
        if self.outcome is None:  # else that is forgotten already
            self.process.decoder.let_go(*frame)
        return frame


class TestProcess:
    """One test process: of one test, or of those that share it (the key ``scope``), in order.

    Args:
        alone: no test follows the last of the *tests*, whatever its group is.
    """

    def __init__(
        self,
        number: int,
        tests: list[TestRun],
        plan: int | None,
        spec: Spec,
        *,
        alone: bool = False,
    ) -> None:
        self.number = number
        self.tests = tests
        self.index = 0  # the test that is on
        self.sent = 0  # how many tests the process has been told to run
        self.requested = 0  # how many the runner has asked for
        self.alone = alone
        self.failed = False  # a test that is over
        self.used = (0.0, 0.0)  # CPU seconds of the tests that are over, user and system
        self.plan = plan
        self.snapshot: Snapshot | None = None  # what it is a fork of
        self.serves: Snapshot | None = None  # what it is itself, if no test
        self.source: ForkServer | None = None  # where its process comes from, once it is forked
        self.channel: socket.socket | None = None  # to a snapshot
        self.spec = spec
        self.state = State.WAITING
        self.sandbox: Sandbox | None = None
        self.budget: Budget | None = None
        self.connection: Connection | None = None
        self.stream = -1
        self.drained = False  # since the last rest something came, and its end was seen
        self.gate = -1
        self.files: list[int] = []  # trace, out, err
        self.decoder = wire.Decoder()
        self.ending: Outcome | None = None  # completed; its guard has not ended yet
        self.pid = 0
        self.left: list[str] = []
        self.deadline: float | None = None
        self.timed_out = False
        self.terminated = False
        self.runaway = False  # it has more processes than a test that is asked to end
        self.stopped_by = 0
        self.held = False  # stopped by the terminal's user, until it goes on
        self.stop_deadline: float | None = None
        self.begin = 0.0  # of the test that is on
        self.next_look = math.inf  # at what it has written, see `floods`
        self.since = 0  # the first moment, as files that are changed then are stamped
        for test in tests:
            test.process = self

    @property
    def test(self) -> TestRun:
        """The test that is on."""
        return self.tests[self.index]

    @property
    def shared(self) -> bool:
        """Whether several tests run in this process."""
        return self.spec.scope != "function" and not self.alone

    @property
    def in_step(self) -> bool:
        """Whether a test may begin only when the one before it is known to be over.

        Else nobody could say which of them has reached a limit.
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

    def start_clock(self, now: float) -> None:
        """The test that is on begins."""
        self.begin = now
        self.next_look = min(self.next_look, now + LOOK_EVERY)
        if self.spec.timeout is not None:
            self.deadline = now + self.spec.timeout

    def debug(self) -> None:
        """A debugger begins in the test that is on: no time counts for the rest of it."""
        self.test.debugged = True
        self.deadline = None

    def overdue(self, now: float) -> bool:
        """Whether the time of the test that is on is over."""
        return self.deadline is not None and now >= self.deadline

    def advance(self, outcome: Outcome, now: float) -> None:
        """The test that was on is over, and the next one is on."""
        self.test.outcome = outcome
        self.used = (
            self.used[0] + (outcome.cpu_user or 0.0),
            self.used[1] + (outcome.cpu_system or 0.0),
        )
        self.index += 1
        self.decoder.forget()
        self.deadline = None
        self.timed_out = self.terminated = False
        self.begin = 0.0
        if self.sent > self.index:
            self.start_clock(now)

    def start_over(self) -> None:
        """It has been let go of, and will be forked once more; nothing of it has run."""
        self.state = State.WAITING
        self.source = None
        self.decoder = wire.Decoder()
        self.test.frames.clear()
        self.sent = 0
        self.since = 0
        self.pid = 0

    def acknowledge(self) -> None:
        """Tell the process that its report has been handed on."""
        if self.gate < 0:
            return
        try:
            os.write(self.gate, b"k")
        except OSError:
            # It has ended; or it goes on without that word, as the gate closes.
            os.close(self.gate)
            self.gate = -1

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
        """Begin anew the file that faulthandler writes to."""
        if self.files:
            os.ftruncate(self.files[0], 0)
            os.lseek(self.files[0], 0, os.SEEK_SET)  # the test process's place as well


def memory_file(*, may_be_sealed: bool = False) -> int:
    """A file without a name, that outlives whoever writes to it."""
    if LINUX:
        flags = os.MFD_ALLOW_SEALING if may_be_sealed else 0
        return os.memfd_create("nsisolate", os.MFD_CLOEXEC | flags)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def text_of(fd: int) -> str:
    """What a file holds: all of it, or its beginning and its end."""
    size = os.fstat(fd).st_size
    if size <= _TEXT_LIMIT:
        return os.pread(fd, size, 0).decode("utf-8", "replace")
    head = os.pread(fd, _TEXT_LIMIT // 2, 0).decode("utf-8", "replace")
    tail = os.pread(fd, _TEXT_LIMIT // 2, size - _TEXT_LIMIT // 2).decode("utf-8", "replace")
    return f"{head}\n... {size - _TEXT_LIMIT} bytes left out ...\n{tail}"
