"""The runner's side of isolated tests: which test runs when.

`Scheduler.attempt` is asked for one test after the other, in the order of the
session, and gives that test's frames as they come; meanwhile it asks for
sandboxes, has test processes forked into them, parks these at their gate, and
lets up to ``jobs`` of them run, whose frames wait here for their turn. Tests that
share a process (the key ``scope``) are one attempt with a turn for each; it runs
ahead as far as the order is known. There are no threads; what waits, kills and
reaps is `flight.Flight`.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core.outcome import Kind
from pytest_nsisolate.core.syscalls import StageError

from .debugger_terminal import Console
from .event_loop import Flight, Lost
from .test_process import Attempt, State, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_nsisolate.spec.spec import Spec

    from .fork_server import Snapshot

#: How many tests beyond the running ones are forked and parked: one hides the
#: cost of a fork behind the test before it; more only hold memory.
_AHEAD = 1
#: How many sandboxes beyond the forked tests are kept ready.
_SPARE = 1
#: How many attempts that have ended may wait for one before them.
_WINDOW = 64
#: How many turns a shared process may be ahead of the reports.
_TURNS_AHEAD = 256


class Scheduler:
    """See the module.

    Args:
        flight: forks, waits and kills; this owns it.
        specs: what is to run isolated, by index of the item.
        plans: the number of each item's plan; an item without one gets no sandbox.
        jobs: how many test processes at once.
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
        flight: Flight,
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
        self._flight = flight
        self._specs = specs
        self._plans = dict(plans)
        self._jobs = jobs
        self._upcoming = upcoming
        self._snapshots = snapshots
        self._over = over
        self._follows = follows
        self._acknowledge = acknowledge
        self._interactive = interactive
        self._console = Console(flight.signal_group)
        flight.lend = self._console.lend
        self._queue: dict[int, Turn] = {}  # by item, not asked for yet
        self._on: Turn | None = None  # the one asked for last
        self._asked: set[int] = set()
        self._filled: Attempt | None = None  # for which all was started that could be

    def prove(self) -> dict[int, StageError]:
        """Wait for the first sandbox of each plan; give the plans that failed."""
        return self._flight.prove()

    def without_sandbox(self, items: Sequence[int]) -> None:
        """Run these items in a forked process without namespaces."""
        for item in items:
            self._plans.pop(item, None)

    def close(self) -> None:
        """End everything: tests in flight at once."""
        self._queue.clear()
        running = any(one.state is State.RUNNING for one in self._flight.attempts.values())
        self._console.take_back()
        self._flight.close()
        self._console.take_back(broken=running)
        self._console.close()

    def take_keys_back(self) -> None:
        """Before a process is forked that is to have the signal handlers of the session."""
        self._console.close()

    def attempt(self, item: int) -> Iterator[tuple[str, Any]]:
        """Run the test *item*; give its frames, then ("outcome", Outcome).

        Raises:
            Lost: no test of this session can be run any more.
        """
        try:
            yield from self._attempt(item)
        except OSError as error:
            raise Lost(StageError.of("run the tests", error)) from None

    def hasten(self, seconds: float) -> None:
        """Give the test that is on no more time than that to end."""
        if self._on is not None and self._on.outcome is None:
            attempt, limit = self._on.attempt, time.monotonic() + seconds
            attempt.deadline = limit if attempt.deadline is None else min(limit, attempt.deadline)

    def _attempt(self, item: int) -> Iterator[tuple[str, Any]]:
        turn = self._on = self._queue.get(item) or self._new(item)
        self._queue.pop(item, None)
        self._asked.add(item)
        self._take(turn)
        self._keys_for(turn)
        while True:
            if turn.attempt.snapshot is not None:
                yield from self._told(turn)
            while turn.frames:
                frame = turn.next_frame()
                if frame[0] == "report" and turn.running:
                    yield "ran", turn.running
                yield frame
                if self._acknowledge or turn.debugged:
                    self._answer(turn, frame[0])
            if turn.outcome is not None:
                break
            # As long as a test has a debugger, no other begins.
            if self._flight.changed and not turn.debugged:
                self._flight.changed = False
                self._filled = turn.attempt
                self._fill(turn.attempt, item)
                if self._flight.changed or turn.outcome is not None:
                    continue  # something could not even be started
            self._flight.wait_for(turn.attempt, at_once=self._acknowledge or turn.debugged)
        if self._acknowledge or turn.debugged:
            self._console.take_back(broken=turn.outcome.kind is not Kind.COMPLETED)
        if not self._acknowledge:
            self._go_on(turn.attempt, item)
        if turn.attempt.snapshot is not None:
            yield from self._tear_down(item)
        yield "outcome", turn.outcome

    def _take(self, turn: Turn) -> None:
        """The runner asks for the next turn of an attempt."""
        attempt = turn.attempt
        attempt.taken += 1
        self._learn_more(turn)
        if attempt is self._filled and attempt.state is State.RUNNING:
            # That a group goes on changes nothing for the others.
            self._speak(attempt, turn.item)
        else:
            self._flight.changed = True

    def _go_on(self, attempt: Attempt, item: int) -> None:
        """A test is over: let the next one go before the reports of this one are handed on."""
        if attempt.near_its_end and attempt.state is State.RUNNING:
            # Reports of quick tests wait here meanwhile, and the next process for the end.
            self._flight.drain(attempt)
        if self._flight.changed or attempt.state is not State.RUNNING:
            self._fill(None, item)

    # the terminal

    def _keys_for(self, turn: Turn) -> None:
        """The terminal's keys are for this test, where they are for tests at all."""
        if self._interactive:
            self._console.lend(turn.attempt)
        elif self._acknowledge:
            self._console.watch()

    def _answer(self, turn: Turn, kind: str) -> None:
        """The frame of that kind has been handed on: go on, if it waits for that.

        A debugger gets the terminal only now: when everything before its test has been
        reported. So only one can have it.
        """
        attempt = turn.attempt
        if kind == "debugger":
            self._flight.grant(attempt)
        elif kind == "report":
            if turn.debugged and self._console.attempt is attempt:
                self._flight.heard(attempt)
            if self._acknowledge:
                attempt.acknowledge()

    def _told(self, turn: Turn) -> Iterator[tuple[str, Any]]:
        """What the snapshots of a test tell of their setup."""
        for snapshot in turn.attempt.snapshot.chain if turn.attempt.snapshot else ():
            process = snapshot.attempt
            while process is not None and snapshot.told and snapshot.tells:
                frame = snapshot.told.popleft()
                yield frame
                if frame[0] == "debugger":
                    self._answer(process.turn, "debugger")
            if snapshot.source is not None and self._console.attempt is process is not None:
                self._console.take_back()
                self._keys_for(turn)

    def _tear_down(self, item: int) -> Iterator[tuple[str, Any]]:
        """End the snapshots that nobody needs after *item*; give what they tell of it."""
        for snapshot in self._over(item):
            process = self._flight.tear_down(snapshot, item)
            while process is not None and process.state is not State.ENDED:
                if self._flight.changed and not self._acknowledge:
                    self._flight.changed = False
                    self._fill(None, item)
                self._flight.wait()
                while process.turn.debugged and process.turn.frames:
                    frame = process.turn.frames.popleft()
                    yield frame
                    if frame[0] == "debugger":
                        self._answer(process.turn, "debugger")
            if process is not None:
                self._console.take_back()
                yield from process.turn.frames
                yield "snapshot over", process.turn.outcome

    # groups

    def _new(self, item: int) -> Turn:
        """The turn of *item* in an attempt of its own, or of all that share it from there on."""
        turns = [Turn(item)]
        # Whatever has run once and runs again does so by itself.
        alone = item in self._asked
        following = None if alone else self._follows(item)
        while following is not None and following >= 0 and following not in self._queue:
            turns.append(Turn(following))
            following = self._follows(following)
        self._queue.update((turn.item, turn) for turn in turns)
        plan, snapshot = self._plans.get(item), None
        if plan is not None and not alone and item in self._snapshots:
            snapshot = self._snapshots[item]
            plan = snapshot.item_plan
        self._flight.start(turns, plan, self._specs[item], alone=alone, snapshot=snapshot)
        return turns[0]

    def _learn_more(self, turn: Turn) -> None:
        """Now that *turn* is asked for it may be known what comes after it."""
        attempt = turn.attempt
        if attempt.state is State.ENDED or attempt.alone or attempt.turns[-1] is not turn:
            return
        following = self._follows(turn.item)
        if following is not None and following >= 0 and following not in self._asked:
            after = self._queue[following] = Turn(following)
            after.attempt = attempt
            attempt.turns.append(after)
            self._flight.changed = True

    def _speak(self, attempt: Attempt, item: int) -> None:
        """Tell the process as many turns as are known, and may run by now."""
        while attempt.said < min(len(attempt.turns), attempt.taken + _TURNS_AHEAD):
            turn = attempt.turns[attempt.said]
            if self._acknowledge and turn.item != item:
                return
            if attempt.in_step and attempt.said > attempt.at:
                return
            following: int | None = -1
            if attempt.said + 1 < len(attempt.turns):
                following = attempt.turns[attempt.said + 1].item
            elif not attempt.alone:
                following = self._follows(turn.item)
            if following is None:
                return
            self._flight.say(attempt, following)
            if attempt.state is State.ENDED:
                return

    # order

    def _fill(self, current: Attempt | None, item: int) -> None:
        """Start what can be started: sandboxes, forks, and tests, in order."""
        line, free_to_run, last = self._line_up(current, item)
        self._let_run(line[:free_to_run], item)
        wanted: list[tuple[Snapshot | None, int]] = []
        for attempt in line:
            if attempt.state is State.WAITING:
                waits = not self._flight.fork(attempt)
                if waits and attempt.plan is not None:
                    wanted.append((attempt.snapshot, attempt.plan))
        for index, _ in itertools.islice(self._upcoming(last), _SPARE):
            plan, snapshot = self._plans.get(index), self._snapshots.get(index)
            if plan is not None:
                wanted.append((snapshot, plan if snapshot is None else snapshot.item_plan))
        self._flight.want(wanted)
        self._let_run(line[:free_to_run], item)

    def _let_run(self, line: list[Attempt], item: int) -> None:
        """Let as many of these run as may, and tell those that run what is known by now."""
        running = sum(1 for one in line if one.state is State.RUNNING)
        for attempt in line:
            if attempt.state is State.PARKED and running < self._jobs:
                if attempt.budget is None or not attempt.budget.waits:
                    self._speak(attempt, item)
                    running += attempt.state is State.RUNNING  # type: ignore[comparison-overlap]
            elif attempt.state is State.RUNNING and attempt.said < len(attempt.turns):
                self._speak(attempt, item)

    def _line_up(self, current: Attempt | None, item: int) -> tuple[list[Attempt], int, int]:
        """The attempts that are under way or should be, in order.

        Also how many of them may run by now (no test of the runner's own stands
        before them), and the last one's last item.
        """
        line = [current] if current is not None else []
        free_to_run, blocked = len(line), False
        last = current.turns[-1].item if current is not None else item
        while True:
            active = sum(1 for one in line if one.state is not State.ENDED)
            if active >= self._jobs + _AHEAD or len(line) >= _WINDOW:
                break
            index, barrier = next(self._upcoming(last), (-1, False))
            if index < 0:
                break
            turn = self._queue.get(index)
            if turn is None:
                # First those that are there already: to make another takes its time.
                self._let_run(line[:free_to_run], item)
                turn = self._new(index)
            if turn.attempt in line:
                break  # a worker of xdist knows of no other
            blocked = blocked or barrier
            line.append(turn.attempt)
            last = turn.attempt.turns[-1].item
            if not blocked:
                free_to_run = len(line)
        return line, free_to_run, last
