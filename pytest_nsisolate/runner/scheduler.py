"""Decide which test runs when, and yield the frames of one test after the other.

`Scheduler.run` is called for each test, in the order of the session. Meanwhile it asks for
sandboxes, orders forks, parks test processes at their gates, and lets up to ``jobs`` of them run;
their frames wait until the runner asks for their tests. Tests that share a process (the key
``scope``) run ahead of the reports as far as the order is known. There are no threads:
`event_loop.EventLoop` waits, kills and reaps.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core.linux.syscalls import StageError
from pytest_nsisolate.core.outcome import Kind

from .servers.helpers import Lost
from .test_process import State, TestProcess, TestRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_nsisolate.spec.spec import Spec

    from .event_loop import EventLoop
    from .snapshot import Snapshot

#: How many tests beyond the running ones are forked and parked: one hides the
#: cost of a fork behind the test before it; more only hold memory.
_AHEAD = 1
#: How many sandboxes beyond the forked tests are kept ready.
_SPARE = 1
#: How many processes that have ended may wait for one before them.
_WINDOW = 64
#: How many tests a shared process may be ahead of the reports.
_TESTS_AHEAD = 256


class Scheduler:
    """See the module.

    Args:
        loop: forks, waits and kills; this owns it.
        specs: what is to run isolated, by index of the item.
        plans: the number of each item's plan; an item without one gets no sandbox.
        jobs: how many test processes run in parallel.
        upcoming: gives the items after one, in order, as (index, whether a test of
            the runner's own stands before it).
        snapshots: that of each item which is to be a fork of one.
        over: the snapshots, the narrowest first, that no test after an item needs.
        follows: the item that runs after one in the same process: -1 if there is none,
            None if that is not known yet.
        acknowledge: whether a test waits for a byte after each report, because it
            writes to the same terminal as the runner.
        interactive: whether the terminal's keys are for the tests.
    """

    def __init__(
        self,
        *,
        loop: EventLoop,
        specs: dict[int, Spec],
        plans: dict[int, int],
        jobs: int,
        upcoming: Callable[[int], Iterator[tuple[int, bool]]],
        snapshots: dict[int, Snapshot],
        over: Callable[[int], list[Snapshot]],
        follows: Callable[[int], int | None],
        acknowledge: bool = False,
        interactive: bool = False,
    ) -> None:
        self._loop = loop
        self._specs = specs
        self._plans = dict(plans)
        self._jobs = jobs
        self._upcoming = upcoming
        self._snapshots = snapshots
        self._over = over
        self._follows = follows
        self._acknowledge = acknowledge
        self._interactive = interactive
        self._queue: dict[int, TestRun] = {}  # by item, not asked for yet
        self._on: TestRun | None = None  # the one asked for last
        self._asked: set[int] = set()
        self._filled: TestProcess | None = None  # for which all was started that could be

    def prove(self) -> dict[int, StageError]:
        """Wait for the first sandbox of each plan; give the plans that failed."""
        return self._loop.prove()

    def without_sandbox(self, items: Sequence[int]) -> None:
        """Run these items in a forked process without namespaces."""
        for item in items:
            self._plans.pop(item, None)

    def close(self) -> None:
        """End everything, running tests immediately."""
        self._queue.clear()
        busy = self._loop.busy
        self._loop.terminal.take_back()
        self._loop.close()
        self._loop.terminal.take_back(broken=busy)
        self._loop.terminal.close()

    def take_keys_back(self) -> None:
        """Take the keys back, before the fork of a process that needs the session's handlers."""
        self._loop.terminal.close()

    def run(self, item: int) -> Iterator[tuple[str, Any]]:
        """Run the test *item*; give its frames, then ("outcome", Outcome).

        Raises:
            Lost: no test of this session can be run any more.
        """
        try:
            yield from self._run(item)
        except OSError as error:
            raise Lost(StageError.of("run the tests", error)) from None

    def hasten(self, seconds: float) -> None:
        """Give the current test at most *seconds* more to end."""
        if self._on is not None and self._on.outcome is None:
            self._on.process.limit_time(time.monotonic() + seconds)

    def _run(self, item: int) -> Iterator[tuple[str, Any]]:
        test = self._on = self._queue.get(item) or self._new(item)
        self._queue.pop(item, None)
        self._asked.add(item)
        self._take_next(test)
        self._keys_for(test)
        while True:
            if test.process.snapshot is not None:
                yield from self._setup_frames_of(test)
            while test.frames:
                frame = test.next_frame()
                if frame[0] == "report" and test.running:
                    yield "ran", test.running
                yield frame
                if self._acknowledge or test.debugged:
                    self._answer_frame(test, frame[0])
            if test.outcome is not None:
                break
            # As long as a test has a debugger, no other begins.
            if not test.debugged and self._loop.take_change():
                self._filled = test.process
                self._fill(test.process, item)
                if self._loop.changed or test.outcome is not None:
                    continue  # something could not even be started
            self._loop.wait_for(test.process, at_once=self._acknowledge or test.debugged)
        if self._acknowledge or test.debugged:
            self._loop.terminal.take_back(broken=test.outcome.kind is not Kind.COMPLETED)
        if not self._acknowledge:
            self._go_on(test.process, item)
        if test.process.snapshot is not None:
            yield from self._tear_down(item)
        yield "outcome", test.outcome

    def _take_next(self, test: TestRun) -> None:
        """Note that the runner asks for *test*, and let its process go on."""
        process = test.process
        process.request()
        self._append_next(test)
        if process is self._filled and process.state is State.RUNNING:
            # That a group goes on changes nothing for the others.
            self._send_known(process, test.item)
        else:
            self._loop.note_change()

    def _go_on(self, process: TestProcess, item: int) -> None:
        """Start the next test, after one is over, before the reports of this one are handed on."""
        if process.near_its_end and process.state is State.RUNNING:
            # Reports of quick tests wait here meanwhile, and the next process for the end.
            self._loop.drain(process)
        if self._loop.changed or process.state is not State.RUNNING:
            self._fill(None, item)

    # the terminal

    def _keys_for(self, test: TestRun) -> None:
        """Lend the terminal's keys to this test, if tests get them at all."""
        if self._interactive:
            self._loop.terminal.lend(test.process)
        elif self._acknowledge:
            self._loop.terminal.watch()

    def _answer_frame(self, test: TestRun, kind: str) -> None:
        """Let the process go on if it waits until this kind of frame has been handed on.

        A debugger gets the terminal only now: when everything before its test has been
        reported. So only one can have it.
        """
        process = test.process
        if kind == "debugger":
            self._loop.grant(process)
        elif kind == "report":
            if test.debugged and self._loop.terminal.process is process:
                process.heard()
            if self._acknowledge:
                process.acknowledge()

    def _setup_frames_of(self, test: TestRun) -> Iterator[tuple[str, Any]]:
        """Yield the frames that the snapshots of a test have sent of their setup."""
        for snapshot in test.process.snapshot.chain if test.process.snapshot else ():
            stand = self._loop.snapshots.stand(snapshot)
            process = stand.process
            while process is not None and stand.setup_frames and stand.reportable:
                frame = stand.setup_frames.popleft()
                yield frame
                if frame[0] == "debugger":
                    self._answer_frame(process.test, "debugger")
            if stand.server is not None and self._loop.terminal.process is process is not None:
                self._loop.terminal.take_back()
                self._keys_for(test)

    def _tear_down(self, item: int) -> Iterator[tuple[str, Any]]:
        """End the snapshots that no test after *item* needs; yield their frames of that."""
        for snapshot in self._over(item):
            process = self._loop.tear_down(snapshot, item)
            while process is not None and process.state is not State.ENDED:
                if not self._acknowledge and self._loop.take_change():
                    self._fill(None, item)
                self._loop.wait()
                while process.test.debugged and process.test.frames:
                    frame = process.test.frames.popleft()
                    yield frame
                    if frame[0] == "debugger":
                        self._answer_frame(process.test, "debugger")
            if process is not None:
                self._loop.terminal.take_back()
                yield from process.test.frames
                yield "snapshot over", process.test.outcome

    # groups

    def _new(self, item: int) -> TestRun:
        """Create the process of *item* and of the tests after it that share it; return its test."""
        tests = [TestRun(item)]
        # Whatever has run once and runs again does so by itself.
        alone = item in self._asked
        following = None if alone else self._follows(item)
        while following is not None and following >= 0 and following not in self._queue:
            tests.append(TestRun(following))
            following = self._follows(following)
        self._queue.update((test.item, test) for test in tests)
        plan, snapshot = self._plans.get(item), None
        if plan is not None and not alone and item in self._snapshots:
            snapshot = self._snapshots[item]
            plan = snapshot.item_plan
        self._loop.create(tests, plan, self._specs[item], alone=alone, snapshot=snapshot)
        return tests[0]

    def _append_next(self, test: TestRun) -> None:
        """Append the test after *test* to its process, if it is known by now."""
        process = test.process
        if process.state is State.ENDED or process.alone or process.tests[-1] is not test:
            return
        following = self._follows(test.item)
        if following is not None and following >= 0 and following not in self._asked:
            after = self._queue[following] = TestRun(following)
            process.append(after)
            self._loop.note_change()

    def _send_known(self, process: TestProcess, item: int) -> None:
        """Send the process as many tests as are known, and may run by now."""
        while process.sent < min(len(process.tests), process.requested + _TESTS_AHEAD):
            test = process.tests[process.sent]
            if self._acknowledge and test.item != item:
                return
            if process.in_step and process.sent > process.index:
                return
            following: int | None = -1
            if process.sent + 1 < len(process.tests):
                following = process.tests[process.sent + 1].item
            elif not process.alone:
                following = self._follows(test.item)
            if following is None:
                return
            self._loop.send_next(process, following)
            if process.state is State.ENDED:
                return

    # order

    def _fill(self, current: TestProcess | None, item: int) -> None:
        """Start what can be started: sandboxes, forks, and tests, in order."""
        line, free_to_run, last = self._line_up(current, item)
        self._let_run(line[:free_to_run], item)
        wanted: list[tuple[Snapshot | None, int]] = []
        for process in line:
            if process.state is State.WAITING:
                waits = not self._loop.fork(process)
                if waits and process.plan is not None:
                    wanted.append((process.snapshot, process.plan))
        for index, _ in itertools.islice(self._upcoming(last), _SPARE):
            plan, snapshot = self._plans.get(index), self._snapshots.get(index)
            if plan is not None:
                wanted.append((snapshot, plan if snapshot is None else snapshot.item_plan))
        self._loop.want(wanted)
        self._let_run(line[:free_to_run], item)

    def _let_run(self, line: list[TestProcess], item: int) -> None:
        """Let as many of these run as may, and send running ones the tests known by now."""
        running = sum(1 for one in line if one.state is State.RUNNING)
        for process in line:
            if process.state is State.PARKED and running < self._jobs:
                if process.budget is None or not process.budget.waits:
                    self._send_known(process, item)
                    running += process.state is State.RUNNING  # type: ignore[comparison-overlap]
            elif process.state is State.RUNNING and process.sent < len(process.tests):
                self._send_known(process, item)

    def _line_up(
        self, current: TestProcess | None, item: int
    ) -> tuple[list[TestProcess], int, int]:
        """Return the processes that are under way or should be, in order.

        Return also how many of them may run by now (no test of the runner's own stands
        before them), and the last one's last item.
        """
        line = [current] if current is not None else []
        free_to_run, blocked = len(line), False
        last = current.tests[-1].item if current is not None else item
        while True:
            active = sum(1 for one in line if one.state is not State.ENDED)
            if active >= self._jobs + _AHEAD or len(line) >= _WINDOW:
                break
            index, barrier = next(self._upcoming(last), (-1, False))
            if index < 0:
                break
            test = self._queue.get(index)
            if test is None:
                # First those that are there already: to make another takes its time.
                self._let_run(line[:free_to_run], item)
                test = self._new(index)
            if test.process in line:
                break  # a worker of xdist knows of no other
            blocked = blocked or barrier
            line.append(test.process)
            last = test.process.tests[-1].item
            if not blocked:
                free_to_run = len(line)
        return line, free_to_run, last
