"""The attempts in flight: forks them, waits, takes in what they tell, ends them.

The mechanism below `runner.Scheduler`, which says what is to run and when. One poll
waits for all: keeper, template, and the stream of each test process.

Guarantees: every attempt that was started ends with one `Outcome` for each of its
turns, in bounded time if it has a timeout; a process that breaks off leaves the turns
after the one that was on to another attempt; `Flight.close` leaves no process behind.
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
from .fork_server import Source
from .sandbox_pool import Pool
from .snapshots import Snapshots
from .test_process import FILES as ATTEMPT_FILES
from .test_process import Attempt, State, Turn, memory_file, text_of

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


class Flight:
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
        attempts: those that have not ended, by number.
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
        self.lend: Callable[[Attempt], None] = lambda attempt: None
        self._numbers = itertools.count(1)
        self.attempts: dict[int, Attempt] = {}
        self.changed = True
        self._poll = select.poll()
        self._by_fd: dict[int, Attempt] = {}
        self._sources: dict[int, Source] = {}  # by the descriptors of their sockets
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
        self._main = self._listen(Source(keeper, template, pool))

    def _pool_of(self, maker: Maker | None) -> Pool | None:
        return None if maker is None else Pool(maker, self._numbers, self._watch)

    def listen(self, maker: Maker | None, template: Template) -> Source:
        """A source of test processes that is heard from now on."""
        return self._listen(Source(maker, template, self._pool_of(maker)))

    def _listen(self, source: Source) -> Source:
        maker, template = source.maker, source.template
        for one in (maker, template):
            if one is not None:
                self._poll.register(one.socket, select.POLLIN)
                self._sources[one.socket.fileno()] = source
        return source

    def ignore(self, source: Source) -> None:
        """Listen to it no more."""
        for fd in [fd for fd, one in self._sources.items() if one is source]:
            self._mute(fd)

    def _mute(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._sources[fd]

    def _descriptors(self) -> list[int]:
        """The runner's own descriptors that no test may have."""
        fds = [fd for one in self.attempts.values() for fd in one.files]
        for attempt in self.attempts.values():
            fds += [fd for fd in (attempt.stream, attempt.gate) if fd >= 0]
            if attempt.channel is not None:
                fds.append(attempt.channel.fileno())
            if attempt.sandbox is not None:
                fds += [attempt.sandbox.pidfd, attempt.sandbox.control]
        for source in set(self._sources.values()):
            fds += source.pool.descriptors() if source.pool is not None else []
        return fds + list(self._sources)

    def close(self) -> None:
        """End everything: tests in flight at once, then sandboxes, template and keeper."""
        for attempt in list(self.attempts.values()):
            if attempt.serves is None:
                self.release(attempt)
        with contextlib.suppress(Lost):
            self._snapshots.close()
        for attempt in list(self.attempts.values()):
            self.release(attempt)
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
        waiting = list(self.attempts.values())
        for attempt in waiting:
            self.release(attempt)
            attempt.start_over()
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
        for attempt in waiting:
            self.attempts[attempt.number] = attempt

    def break_off(self, source: Source, outcome: Outcome) -> None:
        """Whoever forked these processes is gone: those that run end so, others begin anew."""
        for attempt in list(self.attempts.values()):
            if attempt.source is not source:
                continue
            if attempt.state is State.RUNNING:
                self.drain(attempt)
            if attempt.state is State.RUNNING:
                self.finish(attempt, replace(outcome))
            elif attempt.state is State.PARKED:
                self.release(attempt)
                attempt.start_over()
                self.attempts[attempt.number] = attempt

    # attempts

    def start(
        self,
        turns: list[Turn],
        plan: int | None,
        spec: Spec,
        *,
        alone: bool = False,
        snapshot: Snapshot | None = None,
    ) -> Attempt:
        """An attempt to run these tests in one process; it waits for its sandbox."""
        attempt = Attempt(next(self._numbers), turns, plan, spec, alone=alone)
        attempt.snapshot = snapshot
        self.attempts[attempt.number] = attempt
        self.changed = True
        return attempt

    def want(self, wanted: Iterable[tuple[Snapshot | None, int]]) -> None:
        """See to it that a sandbox for each is there or under way: of a snapshot, by a plan."""
        counts: dict[Source, dict[int, int]] = {}
        for snapshot, plan in wanted:
            source = self._main if snapshot is None else snapshot.source
            if source is not None:
                plans = counts.setdefault(source, {})
                plans[plan] = plans.get(plan, 0) + 1
        for source, plans in counts.items():
            if source.pool is not None:
                source.pool.want(plans)

    def fork(self, attempt: Attempt) -> bool:
        """Have the test process forked, if its sandbox is there; whether it is."""
        source: Source | None = self._main
        if attempt.snapshot is not None:
            if attempt.snapshot.broken is not None:
                self.finish(attempt, replace(attempt.snapshot.broken))
                return True
            source = self._snapshots.source_of(attempt.snapshot)
        if source is None:
            return False
        flags = forked.SNAPSHOT if attempt.serves is not None else 0
        if attempt.plan is not None:
            attempt.sandbox = source.pool.take(attempt.plan) if source.pool is not None else None
            if attempt.sandbox is None:
                return False
            flags |= self._plans[attempt.plan].flags
        attempt.source = source
        try:
            if attempt.serves is None:
                self._equip(attempt)
            self._order(attempt, source, flags)
        except (StageError, OSError) as error:
            if not isinstance(error, StageError):
                error = StageError.of("prepare the test process", error)
            outcome = Outcome(Kind.SANDBOX_FAILED, error.errno, error.stage, error.path)
            self.finish(attempt, outcome)
        return True

    def _order(self, attempt: Attempt, source: Source, flags: int) -> None:
        """Ask for the fork."""
        theirs: list[int] = []
        try:
            self._join(attempt, theirs)
            fds = [*theirs, *attempt.files]
            if attempt.sandbox is not None:
                fds.append(attempt.sandbox.pidfd)
            if attempt.budget is not None:
                fds += attempt.budget.join_fds()
            source.template.fork(attempt.number, attempt.turn.item, flags, fds)
        finally:
            for fd in theirs:
                os.close(fd)
        if attempt.budget is not None:
            attempt.budget.joined()
        attempt.state = State.PARKED

    def _join(self, attempt: Attempt, theirs: list[int]) -> None:
        """Make what joins it to its process, whose own ends are added to *theirs*."""
        attempt.stream, stream = os.pipe()
        theirs.append(stream)
        self._by_fd[attempt.stream] = attempt
        self._poll.register(attempt.stream, select.POLLIN)
        os.set_blocking(attempt.stream, False)
        if attempt.serves is None:
            gate, attempt.gate = os.pipe()
        else:
            attempt.channel, channel = socket.socketpair(socket.AF_UNIX, PACKETS)
            gate = channel.detach()
        theirs.append(gate)
        for number in range(ATTEMPT_FILES):
            # Not the first, that this process writes to as well.
            attempt.files.append(memory_file(may_be_sealed=number > 0))

    def _equip(self, attempt: Attempt) -> None:
        """Give the tests what is theirs beside the sandbox: limits, and what leads outside."""
        if self._budgets is not None:
            attempt.budget = self._budgets.make(attempt.turn.item)
        if self._network is not None and attempt.sandbox is not None:
            attempt.connection = self._network.connect(
                attempt.turn.item, attempt.number, attempt.sandbox
            )

    def grant(self, attempt: Attempt) -> None:
        """Let the process, which waits for it, have the terminal for its debugger."""
        self.lend(attempt)
        self.heard(attempt)

    def heard(self, attempt: Attempt) -> None:
        """Tell the process, which waits for it, that what it said has been taken notice of.

        It looks at the permissions of a file that it has anyway: no test has to keep a
        descriptor for the case that it is debugged.
        """
        if attempt.files:
            count = os.fstat(attempt.files[0]).st_mode + 1
            os.fchmod(attempt.files[0], count & 0o777)

    def signal_group(self, attempt: Attempt, number: int) -> None:
        """Send a signal to the process group of a test."""
        with contextlib.suppress(OSError):  # it has ended, and the template says how
            if attempt.sandbox is not None and attempt.source is not None:
                attempt.source.template.kill(attempt.number, -number)
            elif attempt.pid:
                os.killpg(attempt.pid, number)

    def keeps(self, attempt: Attempt) -> bool:
        """Whether the sandbox of *attempt*, which fails, is to be kept as it is."""
        return self._keeping is not None and self._keeping.wants(attempt, failed=True)

    def failures(self) -> int:
        """How many tests have failed by now."""
        return self._word()

    def tear_down(self, snapshot: Snapshot, item: int) -> Attempt | None:
        """End a snapshot, as after *item*; its process, None if there is none."""
        return self._snapshots.tear_down(snapshot, item)

    def say(self, attempt: Attempt, following: int) -> None:
        """Tell the process to run its next turn; the first time, let it go.

        Args:
            following: the item that comes after it in the same process, -1 if there is none.
        """
        first = attempt.state is State.PARKED
        if first:
            # By their times, patterns tell what this test changed from what was changed before.
            apart = self._retention is not None and bool(self._retention.patterns)
            attempt.since = _stamp(apart=apart)
            if self._watch is not None:
                self._watch.goes(attempt)
        # Before it is let go: with one core it may run before this process does again.
        now = time.monotonic()
        if attempt.said == attempt.at:
            attempt.start_clock(now)
        word = GO.pack(self._word(), attempt.turns[attempt.said].item, following)
        try:
            os.write(attempt.gate, word)
        except BrokenPipeError:
            pass  # it has ended, and the template says how
        except OSError as error:
            code = error.errno or errno.EIO
            self.finish(attempt, Outcome(Kind.SANDBOX_FAILED, code, "let the test go"))
            return
        attempt.said += 1
        attempt.state = State.RUNNING
        if first and attempt.budget is not None:
            attempt.budget.begin(now)

    # waiting

    def wait_for(self, attempt: Attempt, *, at_once: bool) -> None:
        """Wait until something happens, most likely in *attempt*, and take it in.

        Args:
            at_once: whether what it tells is to be handed on as soon as it can be.
        """
        if attempt.drained and attempt.ahead and not at_once:
            # It does not wait for this process, and to be woken for each frame costs both.
            attempt.drained = False
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

    def _from_maker(self, source: Source) -> None:
        assert source.pool is not None
        assert source.maker is not None
        self.changed = True
        try:
            # A snapshot's own does not come back as long as its tests wait.
            taken = (one for one in self.attempts.values() if one.serves is None)
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

    def _not_made(self, source: Source, plan: int, error: StageError) -> None:
        waiting = [
            one
            for one in self.attempts.values()
            if one.plan == plan
            and one.state is State.WAITING
            and (self._main if one.snapshot is None else one.snapshot.source) is source
        ]
        if waiting:
            first = min(waiting, key=lambda one: one.turn.item)
            outcome = Outcome(Kind.SANDBOX_FAILED, error.errno, error.stage, error.path)
            self.finish(first, outcome)

    def _from_template(self, source: Source) -> None:
        try:
            kind, number, value, text = source.template.receive()
        except EOFError:
            if source is self._main:
                self._lost("template")
            else:  # the template of the snapshot's process tells how it ended
                self._mute(source.template.socket.fileno())
            return
        attempt = self.attempts.get(number)
        if attempt is None:
            if kind == UP:
                self._up = True
            elif kind == FAILED and number == 0 and self._up:
                self._lost("template", value)
            elif kind == FAILED and number == 0:
                raise Lost(StageError(text.decode("utf-8", "replace"), value))
            return
        if kind == PID:
            self._forked(attempt, value)
        elif kind == FAILED:
            detail = "fork the test process into the sandbox"
            self._not_entered(attempt, Outcome(Kind.SANDBOX_FAILED, value, detail))
        elif kind == LEFT:
            attempt.left = text.decode("utf-8", "replace").splitlines()
        elif kind == ENDED:
            self._status(attempt, value, text)

    def _forked(self, attempt: Attempt, pid: int) -> None:
        attempt.pid = pid
        if attempt.budget is not None:
            if attempt.budget.waits:
                attempt.budget.count(host_pid(attempt))
            self.changed = True

    def _status(self, attempt: Attempt, status: int, usage: bytes) -> None:
        if os.WIFSTOPPED(status):
            if attempt.held:
                return
            attempt.stopped_by = os.WSTOPSIG(status)
            attempt.stop_deadline = time.monotonic() + STOP_LIMIT
            return
        if os.WIFCONTINUED(status):
            attempt.stop_deadline = None
            attempt.held = False
            return
        # What it had sent before is still in the stream.
        self.drain(attempt)
        if attempt.state is State.ENDED:
            return
        if attempt.ending is not None:
            self.finish(attempt, attempt.ending)
            return
        if attempt.timed_out:
            outcome = Outcome(Kind.TIMED_OUT, timeout=attempt.spec.timeout)
        elif attempt.decoder.partial:
            outcome = Outcome(Kind.TRUNCATED, detail="it ends in the middle of a frame")
        else:
            outcome = Outcome.of_status(status)
        if usage:
            outcome.count(*map(float, usage.split()))
            outcome.spend(attempt.used)
        self.finish(attempt, outcome)

    def _not_entered(self, attempt: Attempt, outcome: Outcome) -> None:
        """A sandbox could not be entered: by its own fault, or because the keeper was killed."""
        keeper = self.keeper if attempt.source is self._main else None
        if keeper is not None and select.select([keeper.pidfd], [], [], _DEATH_LIMIT)[0]:
            # The test has not begun: it will, in a sandbox of the next keeper.
            attempt.state = State.PARKED
            self._lost("keeper")
        else:
            self.finish(attempt, outcome)

    def drain(self, attempt: Attempt) -> None:
        """Take in all that it has sent by now."""
        while attempt.state is not State.ENDED and self._read(attempt):
            pass

    def _read(self, attempt: Attempt) -> bool:
        """Take in what the stream holds; whether it may hold more."""
        if attempt.stream < 0:
            return False
        size = _OF_A_GROUP if attempt.ahead else _AT_ONCE
        try:
            data = os.read(attempt.stream, size)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            # The end of the stream is not the end of the process: the template
            # says when that comes, and how.
            self._close_stream(attempt)
            return False
        attempt.drained = len(data) < size
        try:
            for kind, payload in attempt.decoder.feed(data):
                self._take(attempt, kind, payload)
                if attempt.state is State.ENDED or attempt.ending is not None:
                    return False
        except (wire.WireError, AttributeError, TypeError, ValueError) as error:
            self.finish(attempt, Outcome(Kind.TRUNCATED, detail=str(error)))
            return False
        except OSError as error:
            if attempt.turn.outcome is not None:
                raise  # it is of what comes after this test
            code, path = error.errno or errno.EIO, str(error.filename or "")
            self.finish(attempt, Outcome(Kind.SANDBOX_FAILED, code, "take in the report", path))
            return False
        return True

    def _take(self, attempt: Attempt, kind: str, payload: Any) -> None:
        if kind == "end":
            self._completed(attempt, payload)
        elif kind == "turn":
            self._turn_over(attempt, payload)
        elif kind == "failed":
            stage, code, path = payload
            if not (isinstance(stage, str) and isinstance(path, str) and type(code) is int):
                raise wire.WireError("the report stream tells of a failure that makes no sense")
            self._not_entered(attempt, Outcome(Kind.SANDBOX_FAILED, code, stage, path))
        elif kind == "ready" and attempt.serves is not None:
            self._snapshots.ready(attempt)
        elif kind == "pages":
            self._learn(payload)
        elif kind == "exported":
            attempt.turn.exported = True
        elif kind == "debugger":
            attempt.debug()
            attempt.turn.frames.append((kind, payload))
            if attempt.serves is not None:
                self._snapshots.tell(attempt)
        else:
            if kind == "report" and attempt.budget is not None:
                # Asked now: a limit that the next phase reaches is not this one's fault.
                exceeded = attempt.budget.exceeded(payload)
                if exceeded is not None:
                    attempt.turn.frames.append(("exceeded", exceeded))
            attempt.turn.frames.append((kind, payload))

    def _learn(self, payload: object) -> None:
        pages = self._learner.learn(payload)
        if pages is not None:
            # Of snapshots, which are forks of the template, the addresses are the same.
            for source in set(self._sources.values()):
                source.template.tell(pages)

    # endings

    def _turn_over(self, attempt: Attempt, end: Any) -> None:
        """A test has ended, and its process goes on with the next one."""
        if not isinstance(end, dict) or attempt.at + 1 >= len(attempt.turns):
            raise wire.WireError("the report stream ends a test in the middle of nothing")
        # If its time was over, it has ended all the same, just in time.
        outcome = Outcome(Kind.COMPLETED)
        outcome.count(*(end.get(name) for name in RUSAGE))
        outcome.wall = _seconds(end.get("wall"))
        attempt.turn.frames.append(("end", end))
        attempt.failed = attempt.failed or bool(end.get("failed"))
        if attempt.budget is not None:
            attempt.budget.turn(outcome)
            if outcome.kind is not Kind.COMPLETED:
                # What is left of the group goes on where nothing was killed.
                self.finish(attempt, outcome)
                return
        if self._watch is not None:
            outcome.usage = self._watch.turn(attempt, outcome)
        if attempt.turn.exported:
            self._bring_out(attempt, outcome, failed=bool(end.get("failed")), goes_on=True)
        if attempt.timed_out or attempt.said <= attempt.at + 1:
            attempt.forget_trace()
        attempt.advance(outcome, time.monotonic())
        self.changed = self.changed or attempt.in_step

    def _completed(self, attempt: Attempt, end: Any) -> None:
        if not isinstance(end, dict):
            raise wire.WireError("the report stream ends with JSON that is no ending")
        kind = Kind.TIMED_OUT if attempt.timed_out else Kind.COMPLETED
        outcome = Outcome(kind, timeout=attempt.spec.timeout)
        outcome.count(*(end.get(name) for name in RUSAGE))
        attempt.turn.frames.append(("end", end))
        if attempt.sandbox is None:
            # Its guard looks for what it left running, and then ends as it did.
            attempt.ending = outcome
            attempt.deadline = time.monotonic() + GRACE
            return
        if attempt.shared:
            outcome.wall = _seconds(end.get("wall"))
        self.finish(attempt, outcome, failed=attempt.failed or bool(end.get("failed")))

    def finish(self, attempt: Attempt, outcome: Outcome, *, failed: bool = True) -> None:
        """The turn that is on has ended so, and with it the process."""
        if not outcome.wall and attempt.begin:
            outcome.wall = time.monotonic() - attempt.begin
        if outcome.kind is Kind.TIMED_OUT:
            outcome.running = attempt.turn.running
        if attempt.budget is not None:
            attempt.budget.read(outcome, shared=attempt.shared)
        if self._watch is not None and attempt.serves is None:
            outcome.usage = self._watch.ended(attempt, outcome)
        if outcome.kind is not Kind.COMPLETED and len(attempt.files) == ATTEMPT_FILES:
            trace, out, err = (text_of(fd) for fd in attempt.files)
            outcome.trace, outcome.out, outcome.err = relevant(trace, outcome.kind), out, err
        if attempt.sandbox is not None and attempt.serves is None:
            still = not attempt.runaway or self._stopped(attempt)
            if still and outcome.kind is not Kind.COMPLETED:
                outcome.left = [line_of(*one) for one in attempt.sandbox.processes()]
            if still and attempt.since:
                self._bring_out(attempt, outcome, failed=failed)
        outcome.left = outcome.left or attempt.left
        attempt.turn.outcome = outcome
        self._let_go(attempt, outcome, failed=failed)
        if attempt.serves is not None:
            self._snapshots.ended(attempt.serves, outcome)
        rest = attempt.turns[attempt.at + 1 :]
        if rest:
            self.start(rest, attempt.plan, attempt.spec, snapshot=attempt.snapshot)

    def _stopped(self, attempt: Attempt) -> bool:
        """Stop all processes of a test that has run away; whether that could be done."""
        if attempt.budget is not None and attempt.budget.freeze():
            return True
        return attempt.sandbox is not None and attempt.sandbox.stop(_STOP_PATIENCE)

    def _let_go(self, attempt: Attempt, outcome: Outcome, *, failed: bool) -> None:
        if self._keeping is not None:
            self._keeping.consider(attempt, outcome, self._plans, failed=failed)
        self.release(attempt)

    def _bring_out(
        self, attempt: Attempt, outcome: Outcome, *, failed: bool, goes_on: bool = False
    ) -> None:
        if attempt.sandbox is None or self._retention is None:
            return
        outcome.artifacts, outcome.brought, outcome.written_files = self._retention.bring_out(
            attempt.sandbox,
            attempt.turn.item,
            failed=failed,
            exported=attempt.turn.exported,
            since=attempt.since,
            before=[turn.item for turn in attempt.turns[: attempt.at]],
            goes_on=goes_on,
        )

    def release(self, attempt: Attempt) -> None:
        """Let go of the attempt's process, sandbox and descriptors."""
        ended = attempt.state is State.ENDED
        attempt.state = State.ENDED
        self.changed = True
        attempt.deadline = attempt.stop_deadline = None
        self._close_stream(attempt)
        if attempt.sandbox is not None:
            attempt.sandbox.end()
            attempt.sandbox = None
        elif attempt.pid and not ended:
            # With its group: where a test forks without end, its own end may wait for locks of
            # its children. Its guard kills what has left the group.
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(OSError):
                    kill(attempt.pid, signal.SIGKILL)
        if attempt.connection is not None:
            attempt.connection.end()
            attempt.connection = None
        if attempt.budget is not None:
            attempt.budget.end()
        for fd in attempt.files:
            os.close(fd)
        attempt.files = []
        if attempt.gate >= 0:
            os.close(attempt.gate)
            attempt.gate = -1
        if attempt.channel is not None:
            attempt.channel.close()
            attempt.channel = None
        self.attempts.pop(attempt.number, None)

    def _close_stream(self, attempt: Attempt) -> None:
        if attempt.stream >= 0:
            self._poll.unregister(attempt.stream)
            del self._by_fd[attempt.stream]
            os.close(attempt.stream)
            attempt.stream = -1
