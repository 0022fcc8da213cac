"""Wait for test processes and their helpers, handle what happens, and carry out what is due.

The scheduler says what is to run and when. One poll waits for all: keeper, template, snapshots,
and the stream of each test process. What comes in are events (`events`), what time makes due are
actions (`deadlines`); both are handled here, and nothing below calls back.

Guarantees: every process that was created ends with one `Outcome` for each of its tests, in
bounded time if it has a timeout; a process that breaks off leaves the tests after the current one
to another process; `EventLoop.close` leaves no process behind.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import signal
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_nsisolate.core.linux.syscalls import StageError
from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.sandbox.client import KeeperGone

from . import deadlines, endings, floods, frame_intake
from .debugger_terminal import DebuggerTerminal
from .endings import Endings
from .events import (
    Completed,
    DebuggerStarts,
    Forked,
    Gone,
    LeftRunning,
    NotEntered,
    NotForked,
    NotMade,
    Reported,
    SandboxMade,
    SetUp,
    TemplateFailed,
    TestOver,
    Waited,
)
from .processes import Processes
from .servers.fork_server import ForkServers
from .servers.helpers import Lost
from .snapshots import Snapshots
from .test_process import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsisolate.spec.spec import Spec

    from .deadlines import Action
    from .events import FrameEvent, ServerEvent
    from .processes import Parts
    from .servers.fork_server import ForkServer
    from .servers.helpers import Helpers
    from .snapshot import Snapshot
    from .test_process import TestProcess, TestRun

#: How long the end of a keeper may take to show after its sandboxes are gone, in seconds.
_DEATH_LIMIT = 0.2
#: How long a snapshot may take to tear down when the session breaks off, in seconds.
_TEAR_DOWN_LIMIT = 5.0
#: How long to let the reports of a group's tests gather, in seconds: of quick ones, some.
_REST = 0.002


# One class: each method is an order of the scheduler, or a step of one pass of the loop.
class EventLoop:
    """See the module.

    Args:
        helpers: start the keeper and the template.
        parts: of the session.
        timeout_signal: what a test process understands as the end of its time.
        stack_signal: what it understands as the wish to know where it is.

    Attributes:
        snapshots: where the snapshots stand.
        terminal: lends the terminal's keys to a test.
        changed: whether something may be startable that was not before.
    """

    def __init__(
        self, helpers: Helpers, parts: Parts, *, timeout_signal: int, stack_signal: int
    ) -> None:
        self._helpers = helpers
        self._parts = parts
        self._timeout_signal = timeout_signal
        self._stack_signal = stack_signal
        self._poll = select.poll()
        self._processes = Processes(parts, self._poll)
        self._servers = ForkServers(self._poll)
        self._endings = Endings(parts, self._processes)
        self.snapshots = Snapshots(parts, self._processes)
        self.terminal = DebuggerTerminal(self._processes.signal_group)
        self.changed = True
        self._main = self._start_helpers()

    def _start_helpers(self) -> ForkServer:
        own = self._processes.descriptors() + self._servers.descriptors()
        server = self._helpers.start(self._processes.numbers, self._parts.watch, own)
        self._servers.listen(server)
        return server

    # orders

    def note_change(self) -> None:
        """Note that something may be startable that was not before."""
        self.changed = True

    def take_change(self) -> bool:
        """Return whether something may have become startable since the last call."""
        changed, self.changed = self.changed, False
        return changed

    @property
    def busy(self) -> bool:
        """Whether a test runs."""
        return any(one.running for one in self._processes.alive.values())

    @property
    def idle(self) -> bool:
        """Whether no test process is left."""
        return not self._processes.alive

    def create(
        self,
        tests: list[TestRun],
        plan: int | None,
        spec: Spec,
        *,
        alone: bool = False,
        snapshot: Snapshot | None = None,
    ) -> TestProcess:
        """Create a process for these tests, which waits for its sandbox."""
        self.changed = True
        return self._processes.create(tests, plan, spec, alone=alone, snapshot=snapshot)

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
                self._helpers.proved()
                return failed
        return {}

    def want(self, wanted: Iterable[tuple[Snapshot | None, int]]) -> None:
        """Make sure that a sandbox for each is ready or requested: of a snapshot, by a plan."""
        counts: dict[ForkServer, dict[int, int]] = {}
        for snapshot, plan in wanted:
            server = self._main if snapshot is None else self.snapshots.stand(snapshot).server
            if server is not None:
                plans = counts.setdefault(server, {})
                plans[plan] = plans.get(plan, 0) + 1
        for server, plans in counts.items():
            if server.pool is not None:
                server.pool.want(plans)

    def fork(self, process: TestProcess) -> bool:
        """Order the fork of a process, if its sandbox is ready; return False if it has to wait."""
        if process.snapshot is None:
            return self._fork(process, self._main)
        broken = self.snapshots.broken(process.snapshot)
        if broken is not None:
            self._end(process, replace(broken))
            return True
        server = self._server_of(process.snapshot)
        return server is not None and self._fork(process, server)

    def _fork(self, process: TestProcess, server: ForkServer) -> bool:
        forker = None
        if process.snapshot is not None:
            forker = self.snapshots.stand(process.snapshot).process
        try:
            return self._processes.fork(process, server, forker)
        except StageError as error:
            self._end(process, Outcome.failed(error))
            return True

    def _server_of(self, snapshot: Snapshot) -> ForkServer | None:
        """Return what forks the tests of a snapshot; if it is missing, make it and return None."""
        for one in reversed(snapshot.chain):
            if self.snapshots.stand(one).to_make:
                self._make(one)
            if self.snapshots.stand(one).server is None:
                return None  # those inside it have to wait for it
        stand = self.snapshots.stand(snapshot)
        return None if stand.ending else stand.server

    def _make(self, snapshot: Snapshot) -> None:
        """Start to make a snapshot, as far as possible by now; the one around it is there."""
        self.changed = self.changed or self.snapshots.stand(snapshot).process is None
        process, parent = self.snapshots.process_of(snapshot), snapshot.parent
        if process.state is State.WAITING:
            server = self._main if parent is None else self.snapshots.stand(parent).server
            if server is None or not self._fork(process, server):
                self.want([(parent, snapshot.plan)])
        try:
            self.snapshots.send_set_up(process)
        except StageError as error:
            self._end(process, Outcome.failed(error))

    def send_next(self, process: TestProcess, following: int) -> None:
        """Send a process the order to run its next test; the first one lets it start.

        Args:
            following: the item that comes after it in the same process, -1 if there is none.
        """
        try:
            self._processes.send_next(process, following)
        except StageError as error:
            self._end(process, Outcome.failed(error))

    def grant(self, process: TestProcess) -> None:
        """Let a process, which waits for it, have the terminal for its debugger."""
        self.terminal.lend(process)
        process.heard()

    def tear_down(self, snapshot: Snapshot, item: int) -> TestProcess | None:
        """End a snapshot, as after *item*; return its process, None if there is none."""
        return self.snapshots.tear_down(snapshot, item)

    # waiting

    def wait_for(self, process: TestProcess, *, at_once: bool) -> None:
        """Wait until something happens, most likely in *process*, and handle it.

        Args:
            at_once: whether what it sends is to be handed on as soon as it can be.
        """
        if process.drained and process.ahead and not at_once:
            # It does not wait for this process, and to be woken for each frame costs both.
            process.was_drained(drained=False)
            time.sleep(_REST)
        self.wait()

    def wait(self) -> None:
        """Wait until something happens, and handle it."""
        pools, alive = self._servers.pools(), self._processes.alive.values()
        moments = [moment for pool in pools for moment in pool.moments()]
        moments += [*deadlines.moments(alive), *floods.moments(alive)]
        limit = None
        if moments and min(moments) < math.inf:
            limit = max(0, min(moments) - time.monotonic()) * 1000 + 1
        try:
            ready = self._poll.poll(limit)
        except OSError as error:
            raise Lost(StageError.of("wait for test processes", error)) from None
        for fd, _ in ready:
            process, server = self._processes.with_stream(fd), self._servers.with_socket(fd)
            if process is not None:
                self._read(process)
            elif server is not None:
                event = server.receive(fd, busy=self._processes.busy)
                if event is not None:
                    self._handle_message(server, fd, event)
        if moments:
            self._keep_time(time.monotonic())

    def drain(self, process: TestProcess) -> None:
        """Handle all that a process has sent by now."""
        while not process.ended and self._read(process):
            pass

    def _read(self, process: TestProcess) -> bool:
        """Handle what the stream of a process holds; return whether it may hold more."""
        data = self._processes.receive(process)
        if not data:
            return False
        test = process.test
        try:
            for event in frame_intake.events(process, data):
                test = process.test
                self._handle_frame(process, event)
        except OSError as error:
            if test.outcome is not None:
                raise  # it is of what comes after this test
            code, path = error.errno or errno.EIO, str(error.filename or "")
            self._end(process, Outcome(Kind.SANDBOX_FAILED, code, "take in the report", path))
        return not process.over

    def _handle_frame(self, process: TestProcess, event: FrameEvent) -> None:
        """Handle what a test process has sent."""
        if isinstance(event, Reported):
            self._check_limits(process, event)
        elif isinstance(event, (TestOver, Completed)):
            self._test_ended(process, event)
        elif isinstance(event, DebuggerStarts):
            process.debug()
            if process.serves is not None:
                self.snapshots.stand(process.serves).keep_frames(process)
        elif isinstance(event, SetUp):
            server = self.snapshots.set_up(process)
            if server is not None:
                self._servers.listen(server)
                self.changed = True
        elif isinstance(event, NotEntered):
            self._not_entered(process, event.error)
        else:
            self._end(process, event.outcome)

    def _check_limits(self, process: TestProcess, event: Reported) -> None:
        """Note the limit that a phase reached: one that the next phase reaches is not its fault."""
        exceeded = process.budget.exceeded(event.report) if process.budget is not None else None
        if exceeded is not None:
            process.test.frames.append(("exceeded", exceeded))

    def _test_ended(self, process: TestProcess, event: TestOver | Completed) -> None:
        """End a test, and with the last one of a process the process."""
        if isinstance(event, TestOver):
            outcome, failed = self._endings.test_over(process, event.end), True
            self.changed = self.changed or process.in_step
        else:
            outcome = self._endings.completed(process, event.end)
            failed = process.failed
        if outcome is not None:
            self._end(process, outcome, failed=failed)

    def _handle_message(self, server: ForkServer, fd: int, event: ServerEvent) -> None:
        """Handle what a keeper or template has sent."""
        if isinstance(event, (SandboxMade, NotMade)):
            self.changed = True
            if isinstance(event, NotMade):
                self._not_made(server, event)
        elif isinstance(event, TemplateFailed):
            raise Lost(event.error)
        elif isinstance(event, Gone):
            if server is self._main:
                self._lost(event.what, event.number)
            else:  # with the sandbox of a snapshot its process ends, whose template says how
                self._servers.mute(fd)
        else:
            process = self._processes.alive.get(event.number)
            if process is not None:
                self._handle_change(process, event)

    def _handle_change(
        self, process: TestProcess, event: Forked | NotForked | LeftRunning | Waited
    ) -> None:
        """Handle what a template says of one of its forks."""
        if isinstance(event, Forked):
            process.forked(event.pid)
            if process.budget is not None:
                if process.budget.waits:
                    process.budget.count(deadlines.host_pid(process))
                self.changed = True
        elif isinstance(event, NotForked):
            self._not_entered(process, event.error)
        elif isinstance(event, LeftRunning):
            process.left_running(event.lines)
        else:
            self._waited(process, event)

    def _waited(self, process: TestProcess, event: Waited) -> None:
        if os.WIFSTOPPED(event.status):
            limit = time.monotonic() + deadlines.STOP_LIMIT
            process.stopped(os.WSTOPSIG(event.status), limit)
        elif os.WIFCONTINUED(event.status):
            process.continued()
        else:
            # What it had sent before is still in the stream.
            self.drain(process)
            if not process.ended:
                outcome = process.ending or endings.of_status(process, event.status, event.usage)
                self._end(process, outcome)

    def _not_made(self, server: ForkServer, event: NotMade) -> None:
        """End the first process that waits for a sandbox of a plan by which none can be built."""
        waiting = [
            one
            for one in self._processes.alive.values()
            if one.plan == event.plan
            and one.state is State.WAITING
            and (self._main if one.snapshot is None else self.snapshots.stand(one.snapshot).server)
            is server
        ]
        if waiting:
            self._end(min(waiting, key=lambda one: one.test.item), Outcome.failed(event.error))

    def _not_entered(self, process: TestProcess, error: StageError) -> None:
        """Handle a sandbox that could not be entered, by its own fault or a killed keeper."""
        keeper = self._helpers.keeper if process.server is self._main else None
        if keeper is not None and select.select([keeper.pidfd], [], [], _DEATH_LIMIT)[0]:
            # The test has not begun: it will, in a sandbox of the next keeper.
            process.stay_parked()
            self._lost("keeper")
        else:
            self._end(process, Outcome.failed(error))

    # time

    def _keep_time(self, now: float) -> None:
        """Carry out the actions that are due."""
        for process in list(self._processes.alive.values()):
            if process.overdue(now):
                self.drain(process)
            for action in deadlines.due(process, now, self._parts.keeping):
                self._carry_out(action, now)
        for process in list(self._processes.alive.values()):
            outcome = floods.found(process, now)
            if outcome is not None:
                self._carry_out(deadlines.End(process, outcome), now)
        for pool in self._servers.pools():
            pool.ask_again(now)

    def _carry_out(self, action: Action, now: float) -> None:
        process = action.process
        if isinstance(action, deadlines.End):
            if process.ending is None:
                self.drain(process)  # it may have ended just in time
            if not process.ended:
                self._end(process, action.outcome)
        elif isinstance(action, deadlines.Interrupt):
            deadlines.interrupted(process, action.running)
            self._processes.signal(process, self._timeout_signal)
        elif isinstance(action, deadlines.Terminate):
            process.terminate(now + deadlines.TERM_GRACE)
            if process.sandbox is not None:
                process.sandbox.terminate()
            else:
                self._processes.signal(process, signal.SIGTERM)
        else:
            process.mark_trace()
            self._processes.signal(process, self._stack_signal)

    # endings

    def _end(self, process: TestProcess, outcome: Outcome, *, failed: bool = True) -> None:
        """End a process, and whatever ends with it.

        With a snapshot end the tests that are forks of it, and the snapshots inside it.
        """
        todo = deque([(process, outcome, failed)])
        closing = []
        while todo:
            process, outcome, failed = todo.popleft()
            if process.ended:
                continue
            self._endings.end(process, outcome, failed=failed)
            self.changed = True
            if process.serves is not None:
                server = self.snapshots.stand(process.serves).server
                broken = self.snapshots.ended(process.serves, outcome)
                if server is not None:
                    self._servers.ignore(server)
                    closing.append(server)
                    if broken is not None:
                        todo.extend((one, replace(broken), True) for one in self._forks_of(server))
            rest = process.tests[process.index + 1 :]
            if rest:
                self.create(rest, process.plan, process.spec, snapshot=process.snapshot)
        for server in closing:
            server.close()

    def _forks_of(self, server: ForkServer) -> list[TestProcess]:
        """Return the processes that ran when *server* ended; let the parked ones start over."""
        found = []
        for process in list(self._processes.alive.values()):
            if process.server is not server:
                continue
            if process.running:
                self.drain(process)
            if process.running:
                found.append(process)
            elif process.state is State.PARKED:
                self._processes.start_over(process)
        return found

    def _lost(self, what: str, number: int = errno.EPIPE) -> None:
        """Start keeper and template again, up to some times, after one of them has ended.

        Each test that ran then has lost its process, and is reported so.

        Args:
            number: the error that it ended of, if it was not killed.

        Raises:
            Lost: they can't be started again.
        """
        stage = f"the end of the {what}"
        outcome = Outcome(Kind.SANDBOX_FAILED, number, f"{stage} while the test ran")
        for snapshot in self.snapshots.narrowest_first():
            stand = self.snapshots.stand(snapshot)
            if stand.server is not None:
                self._servers.ignore(stand.server)
                for one in self._forks_of(stand.server):
                    self._end(one, replace(outcome))
                stand.server.close()
            if stand.process is not None:
                self._processes.release(stand.process)
            self.snapshots.forget(snapshot)
        for one in self._forks_of(self._main):
            self._end(one, replace(outcome))
        for one in list(self._processes.alive.values()):
            self._processes.start_over(one)
        self.changed = True
        self._servers.ignore(self._main)
        if self._main.pool is not None:
            self._main.pool.close()
        if self._parts.watch is not None:
            self._parts.watch.lost()
        if self._parts.keeping is not None:
            self._parts.keeping.lost()
        self._main.template.end()
        self._helpers.close_keeper()
        self._helpers.count_restart(stage, number)
        try:
            self._main = self._start_helpers()
        except StageError as error:
            raise Lost(error) from None

    def close(self) -> None:
        """End everything: first running tests, then snapshots, sandboxes, template and keeper."""
        for process in list(self._processes.alive.values()):
            if process.serves is None:
                self._processes.release(process)
        with contextlib.suppress(Lost):
            self._tear_down_all()
        for process in list(self._processes.alive.values()):
            self._processes.release(process)
        if self._main.pool is not None:
            self._main.pool.close()
        self._main.template.end()
        keeper, keeping = self._helpers.keeper, self._parts.keeping
        if keeper is not None and keeping is not None:
            outlives = keeping.hand_over(keeper, self._parts.budgets)
            if outlives:
                self._helpers.give_keeper_away()
        self._helpers.close_keeper()

    def _tear_down_all(self) -> None:
        """Have the snapshots tear down, the narrowest first, if they can."""
        limit = time.monotonic() + _TEAR_DOWN_LIMIT
        for snapshot in self.snapshots.narrowest_first():
            process = self.snapshots.tear_down(snapshot, snapshot.items[-1])
            if process is None:
                continue
            process.limit_time(limit)
            while not process.ended:
                self.wait()
                while process.test.frames:  # which nobody reports any more
                    if process.test.frames.popleft()[0] == "debugger":
                        self.grant(process)
