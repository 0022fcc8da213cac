"""The processes in loop: forks them, waits, takes in what they tell, ends them.

The mechanism below `runner.Scheduler`, which says what is to run and when. One poll
waits for all: keeper, template, and the stream of each test process.

Guarantees: every process that was started ends with one `Outcome` for each of its
tests, in bounded time if it has a timeout; a process that breaks off leaves the tests
after the one that was on to another process; `EventLoop.close` leaves no process behind.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import select
import signal
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core import wire
from pytest_nsisolate.core.outcome import RUSAGE, Kind, Outcome, is_amount, relevant
from pytest_nsisolate.core.syscalls import LINUX, StageError
from pytest_nsisolate.sandbox.client import KeeperGone
from pytest_nsisolate.sandbox.init import line_of
from pytest_nsisolate.testprocess import forked
from pytest_nsisolate.testprocess.forked import GO
from pytest_nsisolate.testprocess.prefault import Learner
from pytest_nsisolate.testprocess.template import ENDED, FAILED, LEFT, PACKETS, PID, UP, Template

from .deadlines import GRACE, Deadlines, host_pid
from .floods import Floods
from .fork_server import ForkServer
from .sandbox_pool import Pool
from .snapshots import Snapshots
from .test_process import FILES as PROCESS_FILES
from .test_process import TestProcess, State, TestRun, memory_file, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_nsisolate.cgroups.budget import Budgets
    from pytest_nsisolate.files.artifact_policy import Retention
    from pytest_nsisolate.network.uplink.session import Network
    from pytest_nsisolate.sandbox.client import Keeper, Maker
    from pytest_nsisolate.sandbox.operations.plan import Plan
    from pytest_nsisolate.spec.spec import Spec

    from .fork_server import Snapshot
    from .kept.policy import Keeping
    from .timeline import Watch

#: How long a test process may stay stopped, in seconds.
STOP_LIMIT = 1.0
#: How long it may take to stop what has run away, in seconds; else it is killed as it runs.
_STOP_PATIENCE = 1.0
#: How long the end of a keeper may take to show after its sandboxes are gone, in seconds.
_DEATH_LIMIT = 0.2
#: How often keeper and template are started again.
_RESTARTS = 3
#: Bytes that are read of a stream before it is looked at what else has happened; of a group that
#: has more tests to run fewer, or the reports of many quick ones would keep the next group waiting.
_AT_ONCE, _OF_A_GROUP = 1 << 18, 1 << 14
#: How long to let the reports of a group's tests gather, in seconds: of quick ones, some.
_REST = 0.002
#: Longer than the kernel's coarse clock is ever late, in seconds.
_TICK_LIMIT = 0.1


def _stamp(*, apart: bool) -> int:
    """The time that a file gets which is changed now, in nanoseconds since the epoch.

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


class Lost(Exception):
    """The session can't go on: keeper or template ended and could not be replaced, say.

    Attributes:
        error: what failed, of every test that is still to run.
    """

    def __init__(self, error: StageError) -> None:
        super().__init__(error)
        self.error = error


def _seconds(value: object) -> float:
    """What a test process says of its time, 0 if that makes no sense."""
    return float(value) if is_amount(value) else 0.0


class EventLoop:
    """See the module.

    Args:
        plans: by which sandboxes are built.
        first: of the plans, those that a sandbox is built by while the template is forked.
        start_keeper: gives a keeper that knows the plans; None for tests without namespaces.
        start_template: forks the template, given the keeper and what names the runner's
            descriptors that are to be closed there.
        timeout_signal: what a test process understands as the end of its time.
        stack_signal: what it understands as the wish to know where it is.
        word: gives the number that a test starts with, see `child.GO`.
        budgets: what holds tests to their limits, if any has one.
        network: what connects sandboxes with the outside, if any test asks for it.
        watch: takes down what ran when, where a report asks for it.
        retention: says which files of a test are brought out of its sandbox.
        keeping: says which sandboxes outlive the session, if any do.

    Attributes:
        processes: those that have not ended, by number.
        changed: set whenever something may be startable that was not before.
        lend: gives the terminal to a process.
    """

    def __init__(
        self,
        *,
        plans: list[Plan],
        first: Sequence[int] = (),
        start_keeper: Callable[[], Keeper | None],
        start_template: Callable[[Keeper | None, Callable[[], list[int]]], Template],
        timeout_signal: int,
        stack_signal: int,
        word: Callable[[], int],
        budgets: Budgets | None = None,
        network: Network | None = None,
        watch: Watch | None = None,
        retention: Retention | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        self._plans = plans
        self._first = first
        self._start_keeper = start_keeper
        self._start_template = start_template
        self._deadlines = Deadlines(self, timeout_signal, stack_signal)
        self._floods = Floods(self)
        self._word = word
        self._budgets = budgets
        self._network = network
        self._watch = watch
        self._retention = retention
        self._keeping = keeping
        self.lend: Callable[[TestProcess], None] = lambda process: None
        self._numbers = itertools.count(1)
        self.processes: dict[int, TestProcess] = {}
        self.changed = True
        self._poll = select.poll()
        self._by_fd: dict[int, TestProcess] = {}
        self._sources: dict[int, ForkServer] = {}  # by the descriptors of their sockets
        self._snapshots = Snapshots(self, plans)
        self._restarts = 0
        self._launch()

    # keeper and template

    def _launch(self) -> None:
        self._learner = Learner()
        self._up = False
        self.keeper = keeper = self._start_keeper()
        pool = self._pool_of(keeper)
        if pool is not None:
            pool.want(dict.fromkeys(self._first, 1))
        template = self._start_template(keeper, self._descriptors)
        self._main = self._listen(ForkServer(keeper, template, pool))

    def _pool_of(self, maker: Maker | None) -> Pool | None:
        return None if maker is None else Pool(maker, self._numbers, self._watch)

    def listen(self, maker: Maker | None, template: Template) -> ForkServer:
        """A source of test processes that is heard from now on."""
        return self._listen(ForkServer(maker, template, self._pool_of(maker)))

    def _listen(self, source: ForkServer) -> ForkServer:
        maker, template = source.maker, source.template
        for one in (maker, template):
            if one is not None:
                self._poll.register(one.socket, select.POLLIN)
                self._sources[one.socket.fileno()] = source
        return source

    def ignore(self, source: ForkServer) -> None:
        """Listen to it no more."""
        for fd in [fd for fd, one in self._sources.items() if one is source]:
            self._mute(fd)

    def _mute(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._sources[fd]

    def _descriptors(self) -> list[int]:
        """The runner's own descriptors that no test may have."""
        fds = [fd for one in self.processes.values() for fd in one.files]
        for process in self.processes.values():
            fds += [fd for fd in (process.stream, process.gate) if fd >= 0]
            if process.channel is not None:
                fds.append(process.channel.fileno())
            if process.sandbox is not None:
                fds += [process.sandbox.pidfd, process.sandbox.control]
        for source in set(self._sources.values()):
            fds += source.pool.descriptors() if source.pool is not None else []
        return fds + list(self._sources)

    def close(self) -> None:
        """End everything: tests in loop at once, then sandboxes, template and keeper."""
        for process in list(self.processes.values()):
            if process.serves is None:
                self.release(process)
        with contextlib.suppress(Lost):
            self._snapshots.close()
        for process in list(self.processes.values()):
            self.release(process)
        if self._main.pool is not None:
            self._main.pool.close()
        self._main.template.end()
        if self.keeper is not None:
            if self._keeping is None or not self._keeping.hand_over(self.keeper, self._budgets):
                self.keeper.close()
            self.keeper = None

    def prove(self) -> dict[int, StageError]:
        """Wait for the sandboxes by the first plans, to be used later; give those that failed."""
        while self._main.pool is not None:
            try:
                failed = self._main.pool.prove()
            except KeeperGone:
                self._lost("keeper")
            except StageError as error:
                raise Lost(error) from None
            else:
                self._first = ()
                return failed
        return {}

    def _lost(self, what: str, number: int = errno.EPIPE) -> None:
        """Keeper or template ended in the middle: start both again, once or twice.

        What ran then has no process any more, and is reported so.

        Args:
            number: the error that it ended of, if it was not killed.
        """
        stage = f"the end of the {what}"
        outcome = Outcome(Kind.SANDBOX_FAILED, number, f"{stage} while the test ran")
        # Where tests still need them they are made again.
        self._snapshots.forget(outcome)
        self.break_off(self._main, outcome)
        waiting = list(self.processes.values())
        for process in waiting:
            self.release(process)
            process.start_over()
        self.ignore(self._main)
        if self._main.pool is not None:
            self._main.pool.close()
        if self._watch is not None:
            self._watch.lost()
        if self._keeping is not None:
            self._keeping.lost()
        self._main.template.end()
        if self.keeper is not None:
            self.keeper.close()
        self._restarts += 1
        if self._restarts > _RESTARTS:
            raise Lost(StageError(f"{stage}, the {self._restarts}th of this session", number))
        try:
            self._launch()
        except StageError as error:
            raise Lost(error) from None
        for process in waiting:
            self.processes[process.number] = process

    def break_off(self, source: ForkServer, outcome: Outcome) -> None:
        """Whoever forked these processes is gone: those that run end so, others begin anew."""
        for process in list(self.processes.values()):
            if process.source is not source:
                continue
            if process.state is State.RUNNING:
                self.drain(process)
            if process.state is State.RUNNING:
                self.finish(process, replace(outcome))
            elif process.state is State.PARKED:
                self.release(process)
                process.start_over()
                self.processes[process.number] = process

    # processes

    def start(
        self,
        tests: list[TestRun],
        plan: int | None,
        spec: Spec,
        *,
        alone: bool = False,
        snapshot: Snapshot | None = None,
    ) -> TestProcess:
        """An process to run these tests in one process; it waits for its sandbox."""
        process = TestProcess(next(self._numbers), tests, plan, spec, alone=alone)
        process.snapshot = snapshot
        self.processes[process.number] = process
        self.changed = True
        return process

    def want(self, wanted: Iterable[tuple[Snapshot | None, int]]) -> None:
        """See to it that a sandbox for each is there or under way: of a snapshot, by a plan."""
        counts: dict[ForkServer, dict[int, int]] = {}
        for snapshot, plan in wanted:
            source = self._main if snapshot is None else snapshot.source
            if source is not None:
                plans = counts.setdefault(source, {})
                plans[plan] = plans.get(plan, 0) + 1
        for source, plans in counts.items():
            if source.pool is not None:
                source.pool.want(plans)

    def fork(self, process: TestProcess) -> bool:
        """Have the test process forked, if its sandbox is there; whether it is."""
        source: ForkServer | None = self._main
        if process.snapshot is not None:
            if process.snapshot.broken is not None:
                self.finish(process, replace(process.snapshot.broken))
                return True
            source = self._snapshots.source_of(process.snapshot)
        if source is None:
            return False
        flags = forked.SNAPSHOT if process.serves is not None else 0
        if process.plan is not None:
            process.sandbox = source.pool.take(process.plan) if source.pool is not None else None
            if process.sandbox is None:
                return False
            flags |= self._plans[process.plan].flags
        process.source = source
        try:
            if process.serves is None:
                self._equip(process)
            self._order(process, source, flags)
        except (StageError, OSError) as error:
            if not isinstance(error, StageError):
                error = StageError.of("prepare the test process", error)
            outcome = Outcome(Kind.SANDBOX_FAILED, error.errno, error.stage, error.path)
            self.finish(process, outcome)
        return True

    def _order(self, process: TestProcess, source: ForkServer, flags: int) -> None:
        """Ask for the fork."""
        theirs: list[int] = []
        try:
            self._join(process, theirs)
            fds = [*theirs, *process.files]
            if process.sandbox is not None:
                fds.append(process.sandbox.pidfd)
            if process.budget is not None:
                fds += process.budget.join_fds()
            source.template.fork(process.number, process.test.item, flags, fds)
        finally:
            for fd in theirs:
                os.close(fd)
        if process.budget is not None:
            process.budget.joined()
        process.state = State.PARKED

    def _join(self, process: TestProcess, theirs: list[int]) -> None:
        """Make what joins it to its process, whose own ends are added to *theirs*."""
        process.stream, stream = os.pipe()
        theirs.append(stream)
        self._by_fd[process.stream] = process
        self._poll.register(process.stream, select.POLLIN)
        os.set_blocking(process.stream, False)
        if process.serves is None:
            gate, process.gate = os.pipe()
        else:
            process.channel, channel = socket.socketpair(socket.AF_UNIX, PACKETS)
            gate = channel.detach()
        theirs.append(gate)
        for number in range(PROCESS_FILES):
            # Not the first, that this process writes to as well.
            process.files.append(memory_file(may_be_sealed=number > 0))

    def _equip(self, process: TestProcess) -> None:
        """Give the tests what is theirs beside the sandbox: limits, and what leads outside."""
        if self._budgets is not None:
            process.budget = self._budgets.make(process.test.item)
        if self._network is not None and process.sandbox is not None:
            process.connection = self._network.connect(
                process.test.item, process.number, process.sandbox
            )

    def grant(self, process: TestProcess) -> None:
        """Let the process, which waits for it, have the terminal for its debugger."""
        self.lend(process)
        self.heard(process)

    def heard(self, process: TestProcess) -> None:
        """Tell the process, which waits for it, that what it said has been taken notice of.

        It looks at the permissions of a file that it has anyway: no test has to keep a
        descriptor for the case that it is debugged.
        """
        if process.files:
            count = os.fstat(process.files[0]).st_mode + 1
            os.fchmod(process.files[0], count & 0o777)

    def signal_group(self, process: TestProcess, number: int) -> None:
        """Send a signal to the process group of a test."""
        with contextlib.suppress(OSError):  # it has ended, and the template says how
            if process.sandbox is not None and process.source is not None:
                process.source.template.kill(process.number, -number)
            elif process.pid:
                os.killpg(process.pid, number)

    def keeps(self, process: TestProcess) -> bool:
        """Whether the sandbox of *process*, which fails, is to be kept as it is."""
        return self._keeping is not None and self._keeping.wants(process, failed=True)

    def failures(self) -> int:
        """How many tests have failed by now."""
        return self._word()

    def tear_down(self, snapshot: Snapshot, item: int) -> TestProcess | None:
        """End a snapshot, as after *item*; its process, None if there is none."""
        return self._snapshots.tear_down(snapshot, item)

    def say(self, process: TestProcess, following: int) -> None:
        """Tell the process to run its next test; the first time, let it go.

        Args:
            following: the item that comes after it in the same process, -1 if there is none.
        """
        first = process.state is State.PARKED
        if first:
            # By their times, patterns tell what this test changed from what was changed before.
            apart = self._retention is not None and bool(self._retention.patterns)
            process.since = _stamp(apart=apart)
            if self._watch is not None:
                self._watch.goes(process)
        # Before it is let go: with one core it may run before this process does again.
        now = time.monotonic()
        if process.sent == process.index:
            process.start_clock(now)
        word = GO.pack(self._word(), process.tests[process.sent].item, following)
        try:
            os.write(process.gate, word)
        except BrokenPipeError:
            pass  # it has ended, and the template says how
        except OSError as error:
            code = error.errno or errno.EIO
            self.finish(process, Outcome(Kind.SANDBOX_FAILED, code, "let the test go"))
            return
        process.sent += 1
        process.state = State.RUNNING
        if first and process.budget is not None:
            process.budget.begin(now)

    # waiting

    def wait_for(self, process: TestProcess, *, at_once: bool) -> None:
        """Wait until something happens, most likely in *process*, and take it in.

        Args:
            at_once: whether what it tells is to be handed on as soon as it can be.
        """
        if process.drained and process.ahead and not at_once:
            # It does not wait for this process, and to be woken for each frame costs both.
            process.drained = False
            time.sleep(_REST)
        self.wait()

    def wait(self) -> None:
        """Wait until something happens, and take it in."""
        moments = [moment for pool in self._pools() for moment in pool.moments()]
        moments += self._deadlines.moments() + self._floods.moments()
        limit = None
        if moments and min(moments) < math.inf:
            limit = max(0, min(moments) - time.monotonic()) * 1000 + 1
        try:
            ready = self._poll.poll(limit)
        except OSError as error:
            raise Lost(StageError.of("wait for test processes", error)) from None
        for fd, _ in ready:
            if fd in self._by_fd:
                self._read(self._by_fd[fd])
            elif fd in self._sources:
                source = self._sources[fd]
                if fd == source.template.socket.fileno():
                    self._from_template(source)
                else:
                    self._from_maker(source)
        if moments:
            now = time.monotonic()
            self._deadlines.check(now)
            self._floods.check(now)
            for pool in self._pools():
                pool.ask_again(now)

    def _pools(self) -> set[Pool]:
        return {source.pool for source in self._sources.values() if source.pool is not None}

    def _from_maker(self, source: ForkServer) -> None:
        assert source.pool is not None
        assert source.maker is not None
        self.changed = True
        try:
            # A snapshot's own does not come back as long as its tests wait.
            taken = (one for one in self.processes.values() if one.serves is None)
            busy = any(one.sandbox is not None for one in taken)
            failure = source.pool.receive(busy=busy)
        except KeeperGone:
            if source is self._main:
                self._lost("keeper")
            else:  # with the sandbox of a snapshot its process ends, which is told
                self._mute(source.maker.socket.fileno())
            return
        if failure is not None:
            plan, error = failure
            self._not_made(source, plan, error)

    def _not_made(self, source: ForkServer, plan: int, error: StageError) -> None:
        waiting = [
            one
            for one in self.processes.values()
            if one.plan == plan
            and one.state is State.WAITING
            and (self._main if one.snapshot is None else one.snapshot.source) is source
        ]
        if waiting:
            first = min(waiting, key=lambda one: one.test.item)
            outcome = Outcome(Kind.SANDBOX_FAILED, error.errno, error.stage, error.path)
            self.finish(first, outcome)

    def _from_template(self, source: ForkServer) -> None:
        try:
            kind, number, value, text = source.template.receive()
        except EOFError:
            if source is self._main:
                self._lost("template")
            else:  # the template of the snapshot's process tells how it ended
                self._mute(source.template.socket.fileno())
            return
        process = self.processes.get(number)
        if process is None:
            if kind == UP:
                self._up = True
            elif kind == FAILED and number == 0 and self._up:
                self._lost("template", value)
            elif kind == FAILED and number == 0:
                raise Lost(StageError(text.decode("utf-8", "replace"), value))
            return
        if kind == PID:
            self._forked(process, value)
        elif kind == FAILED:
            detail = "fork the test process into the sandbox"
            self._not_entered(process, Outcome(Kind.SANDBOX_FAILED, value, detail))
        elif kind == LEFT:
            process.left = text.decode("utf-8", "replace").splitlines()
        elif kind == ENDED:
            self._status(process, value, text)

    def _forked(self, process: TestProcess, pid: int) -> None:
        process.pid = pid
        if process.budget is not None:
            if process.budget.waits:
                process.budget.count(host_pid(process))
            self.changed = True

    def _status(self, process: TestProcess, status: int, usage: bytes) -> None:
        if os.WIFSTOPPED(status):
            if process.held:
                return
            process.stopped_by = os.WSTOPSIG(status)
            process.stop_deadline = time.monotonic() + STOP_LIMIT
            return
        if os.WIFCONTINUED(status):
            process.stop_deadline = None
            process.held = False
            return
        # What it had sent before is still in the stream.
        self.drain(process)
        if process.state is State.ENDED:
            return
        if process.ending is not None:
            self.finish(process, process.ending)
            return
        if process.timed_out:
            outcome = Outcome(Kind.TIMED_OUT, timeout=process.spec.timeout)
        elif process.decoder.partial:
            outcome = Outcome(Kind.TRUNCATED, detail="it ends in the middle of a frame")
        else:
            outcome = Outcome.of_status(status)
        if usage:
            outcome.count(*map(float, usage.split()))
            outcome.spend(process.used)
        self.finish(process, outcome)

    def _not_entered(self, process: TestProcess, outcome: Outcome) -> None:
        """A sandbox could not be entered: by its own fault, or because the keeper was killed."""
        keeper = self.keeper if process.source is self._main else None
        if keeper is not None and select.select([keeper.pidfd], [], [], _DEATH_LIMIT)[0]:
            # The test has not begun: it will, in a sandbox of the next keeper.
            process.state = State.PARKED
            self._lost("keeper")
        else:
            self.finish(process, outcome)

    def drain(self, process: TestProcess) -> None:
        """Take in all that it has sent by now."""
        while process.state is not State.ENDED and self._read(process):
            pass

    def _read(self, process: TestProcess) -> bool:
        """Take in what the stream holds; whether it may hold more."""
        if process.stream < 0:
            return False
        size = _OF_A_GROUP if process.ahead else _AT_ONCE
        try:
            data = os.read(process.stream, size)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            # The end of the stream is not the end of the process: the template
            # says when that comes, and how.
            self._close_stream(process)
            return False
        process.drained = len(data) < size
        try:
            for kind, payload in process.decoder.feed(data):
                self._take(process, kind, payload)
                if process.state is State.ENDED or process.ending is not None:
                    return False
        except (wire.WireError, AttributeError, TypeError, ValueError) as error:
            self.finish(process, Outcome(Kind.TRUNCATED, detail=str(error)))
            return False
        except OSError as error:
            if process.test.outcome is not None:
                raise  # it is of what comes after this test
            code, path = error.errno or errno.EIO, str(error.filename or "")
            self.finish(process, Outcome(Kind.SANDBOX_FAILED, code, "take in the report", path))
            return False
        return True

    def _take(self, process: TestProcess, kind: str, payload: Any) -> None:
        if kind == "end":
            self._completed(process, payload)
        elif kind == "turn":
            self._test_over(process, payload)
        elif kind == "failed":
            stage, code, path = payload
            if not (isinstance(stage, str) and isinstance(path, str) and type(code) is int):
                raise wire.WireError("the report stream tells of a failure that makes no sense")
            self._not_entered(process, Outcome(Kind.SANDBOX_FAILED, code, stage, path))
        elif kind == "ready" and process.serves is not None:
            self._snapshots.ready(process)
        elif kind == "pages":
            self._learn(payload)
        elif kind == "exported":
            process.test.exported = True
        elif kind == "debugger":
            process.debug()
            process.test.frames.append((kind, payload))
            if process.serves is not None:
                self._snapshots.tell(process)
        else:
            if kind == "report" and process.budget is not None:
                # Asked now: a limit that the next phase reaches is not this one's fault.
                exceeded = process.budget.exceeded(payload)
                if exceeded is not None:
                    process.test.frames.append(("exceeded", exceeded))
            process.test.frames.append((kind, payload))

    def _learn(self, payload: object) -> None:
        pages = self._learner.learn(payload)
        if pages is not None:
            # Of snapshots, which are forks of the template, the addresses are the same.
            for source in set(self._sources.values()):
                source.template.tell(pages)

    # endings

    def _test_over(self, process: TestProcess, end: Any) -> None:
        """A test has ended, and its process goes on with the next one."""
        if not isinstance(end, dict) or process.index + 1 >= len(process.tests):
            raise wire.WireError("the report stream ends a test in the middle of nothing")
        # If its time was over, it has ended all the same, just in time.
        outcome = Outcome(Kind.COMPLETED)
        outcome.count(*(end.get(name) for name in RUSAGE))
        outcome.wall = _seconds(end.get("wall"))
        process.test.frames.append(("end", end))
        process.failed = process.failed or bool(end.get("failed"))
        if process.budget is not None:
            process.budget.test_over(outcome)
            if outcome.kind is not Kind.COMPLETED:
                # What is left of the group goes on where nothing was killed.
                self.finish(process, outcome)
                return
        if self._watch is not None:
            outcome.usage = self._watch.test_over(process, outcome)
        if process.test.exported:
            self._bring_out(process, outcome, failed=bool(end.get("failed")), goes_on=True)
        if process.timed_out or process.sent <= process.index + 1:
            process.forget_trace()
        process.advance(outcome, time.monotonic())
        self.changed = self.changed or process.in_step

    def _completed(self, process: TestProcess, end: Any) -> None:
        if not isinstance(end, dict):
            raise wire.WireError("the report stream ends with JSON that is no ending")
        kind = Kind.TIMED_OUT if process.timed_out else Kind.COMPLETED
        outcome = Outcome(kind, timeout=process.spec.timeout)
        outcome.count(*(end.get(name) for name in RUSAGE))
        process.test.frames.append(("end", end))
        if process.sandbox is None:
            # Its guard looks for what it left running, and then ends as it did.
            process.ending = outcome
            process.deadline = time.monotonic() + GRACE
            return
        if process.shared:
            outcome.wall = _seconds(end.get("wall"))
        self.finish(process, outcome, failed=process.failed or bool(end.get("failed")))

    def finish(self, process: TestProcess, outcome: Outcome, *, failed: bool = True) -> None:
        """The test that is on has ended so, and with it the process."""
        if not outcome.wall and process.begin:
            outcome.wall = time.monotonic() - process.begin
        if outcome.kind is Kind.TIMED_OUT:
            outcome.running = process.test.running
        if process.budget is not None:
            process.budget.read(outcome, shared=process.shared)
        if self._watch is not None and process.serves is None:
            outcome.usage = self._watch.ended(process, outcome)
        if outcome.kind is not Kind.COMPLETED and len(process.files) == PROCESS_FILES:
            trace, out, err = (text_of(fd) for fd in process.files)
            outcome.trace, outcome.out, outcome.err = relevant(trace, outcome.kind), out, err
        if process.sandbox is not None and process.serves is None:
            still = not process.runaway or self._stopped(process)
            if still and outcome.kind is not Kind.COMPLETED:
                outcome.left = [line_of(*one) for one in process.sandbox.processes()]
            if still and process.since:
                self._bring_out(process, outcome, failed=failed)
        outcome.left = outcome.left or process.left
        process.test.outcome = outcome
        self._let_go(process, outcome, failed=failed)
        if process.serves is not None:
            self._snapshots.ended(process.serves, outcome)
        rest = process.tests[process.index + 1 :]
        if rest:
            self.start(rest, process.plan, process.spec, snapshot=process.snapshot)

    def _stopped(self, process: TestProcess) -> bool:
        """Stop all processes of a test that has run away; whether that could be done."""
        if process.budget is not None and process.budget.freeze():
            return True
        return process.sandbox is not None and process.sandbox.stop(_STOP_PATIENCE)

    def _let_go(self, process: TestProcess, outcome: Outcome, *, failed: bool) -> None:
        if self._keeping is not None:
            self._keeping.consider(process, outcome, self._plans, failed=failed)
        self.release(process)

    def _bring_out(
        self, process: TestProcess, outcome: Outcome, *, failed: bool, goes_on: bool = False
    ) -> None:
        if process.sandbox is None or self._retention is None:
            return
        outcome.artifacts, outcome.brought, outcome.written_files = self._retention.bring_out(
            process.sandbox,
            process.test.item,
            failed=failed,
            exported=process.test.exported,
            since=process.since,
            before=[test.item for test in process.tests[: process.index]],
            goes_on=goes_on,
        )

    def release(self, process: TestProcess) -> None:
        """Let go of the process's process, sandbox and descriptors."""
        ended = process.state is State.ENDED
        process.state = State.ENDED
        self.changed = True
        process.deadline = process.stop_deadline = None
        self._close_stream(process)
        if process.sandbox is not None:
            process.sandbox.end()
            process.sandbox = None
        elif process.pid and not ended:
            # With its group: where a test forks without end, its own end may wait for locks of
            # its children. Its guard kills what has left the group.
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(OSError):
                    kill(process.pid, signal.SIGKILL)
        if process.connection is not None:
            process.connection.end()
            process.connection = None
        if process.budget is not None:
            process.budget.end()
        for fd in process.files:
            os.close(fd)
        process.files = []
        if process.gate >= 0:
            os.close(process.gate)
            process.gate = -1
        if process.channel is not None:
            process.channel.close()
            process.channel = None
        self.processes.pop(process.number, None)

    def _close_stream(self, process: TestProcess) -> None:
        if process.stream >= 0:
            self._poll.unregister(process.stream)
            del self._by_fd[process.stream]
            os.close(process.stream)
            process.stream = -1
