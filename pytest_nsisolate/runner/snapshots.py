"""The life of snapshots, as the runner sees it: made on demand, ended when told to.

Their processes are attempts like those of tests (`attempt.Attempt.serves`), so that
they are forked, watched and killed in the same way.
"""

from __future__ import annotations

import errno
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.testprocess.forked import GO, SET_UP
from pytest_nsisolate.testprocess.template import Template

from .fork_server import InnerMaker, Snapshot
from .test_process import State, Turn

if TYPE_CHECKING:
    from pytest_nsisolate.sandbox.operations.plan import Plan

    from .event_loop import Flight
    from .fork_server import Source
    from .test_process import Attempt

#: How long one may take to tear down when the session breaks off, in seconds.
_END_LIMIT = 5.0


class Snapshots:
    """See the module.

    Args:
        flight: what it is a part of.
        plans: by their numbers.
    """

    def __init__(self, flight: Flight, plans: list[Plan]) -> None:
        self._flight = flight
        self._plans = plans
        self._alive: list[Snapshot] = []  # the wider before the narrower

    def source_of(self, snapshot: Snapshot) -> Source | None:
        """Where its tests come from; None if it is not there yet: it will be."""
        if snapshot.source is None and snapshot.broken is None:
            self._make(snapshot)
        return None if snapshot.ending else snapshot.source

    def _make(self, snapshot: Snapshot) -> None:
        flight = self._flight
        if snapshot.attempt is None:
            turn = Turn(snapshot.items[0])
            attempt = flight.start([turn], snapshot.plan, snapshot.spec, snapshot=snapshot.parent)
            attempt.serves = snapshot
            snapshot.attempt = attempt
            if snapshot.parent is not None:
                self.source_of(snapshot.parent)  # stands before it in the list
            self._alive.append(snapshot)
        attempt = snapshot.attempt
        if attempt.state is State.WAITING and not flight.fork(attempt):
            flight.want([(snapshot.parent, snapshot.plan)])
        if attempt.state is State.PARKED and attempt.channel is not None:
            word = GO.pack(flight.failures(), snapshot.number, SET_UP)
            try:
                attempt.channel.send(word)
            except ConnectionError:
                return  # it has ended, and its template says how
            except OSError as error:
                code = error.errno or errno.EIO
                outcome = Outcome(Kind.SANDBOX_FAILED, code, "let the snapshot go")
                flight.finish(attempt, outcome)
                return
            attempt.start_clock(time.monotonic())
            attempt.said = 1
            attempt.state = State.RUNNING

    def ready(self, attempt: Attempt) -> None:
        """It has set up, and takes orders from now on."""
        snapshot, sandbox, channel = attempt.serves, attempt.sandbox, attempt.channel
        if snapshot is None or sandbox is None or channel is None:
            return
        attempt.deadline = None
        attempt.timed_out = attempt.terminated = False
        self.tell(attempt)
        maker = InnerMaker(socket.socket(fileno=sandbox.another_control()), self._plans)
        attempt.channel = None
        snapshot.source = self._flight.listen(maker, Template(0, channel))
        snapshot.source.snapshot = snapshot
        self._flight.changed = True

    def tell(self, attempt: Attempt) -> None:
        """What it has told by now is for the test that waits for it."""
        if attempt.serves is not None and not attempt.serves.ending:
            attempt.serves.told.extend(attempt.turn.frames)
            attempt.turn.frames.clear()

    def tear_down(self, snapshot: Snapshot, item: int) -> Attempt | None:
        """Have it tear down, as after *item*; gives its process, None if there is none."""
        attempt, source = snapshot.attempt, snapshot.source
        if attempt is None or source is None or attempt.state is not State.RUNNING:
            snapshot.reset()
            return None
        snapshot.ending = True
        attempt.start_clock(time.monotonic())
        source.template.tear_down(item)
        return attempt

    def ended(self, snapshot: Snapshot, outcome: Outcome) -> None:
        """Its process has ended."""
        source, ending = snapshot.source, snapshot.ending
        if snapshot in self._alive:
            self._alive.remove(snapshot)
        snapshot.source = None
        if source is not None:
            self._flight.ignore(source)
        if ending:
            snapshot.reset()
        else:
            kind = Kind.EXITED if outcome.kind is Kind.COMPLETED else outcome.kind
            snapshot.broken = replace(outcome, kind=kind, snapshot=snapshot.spec.snapshot or "")
            if source is not None:
                self._flight.break_off(source, snapshot.broken)
        if source is not None:
            source.close()
        self._flight.changed = True

    def forget(self, outcome: Outcome) -> None:
        """Keeper or template are gone, and every snapshot with them; tests that ran end so."""
        for snapshot in reversed(self._alive):
            source, attempt = snapshot.source, snapshot.attempt
            if source is not None:
                self._flight.ignore(source)
                self._flight.break_off(source, outcome)
                source.close()
            if attempt is not None:
                self._flight.release(attempt)
            snapshot.reset()
        self._alive.clear()

    def close(self) -> None:
        """The session ends: those that are there tear down, the narrowest first, if they can."""
        limit = time.monotonic() + _END_LIMIT
        for snapshot in reversed(self._alive[:]):
            attempt = self.tear_down(snapshot, snapshot.items[-1])
            if attempt is None:
                continue
            attempt.deadline = limit if attempt.deadline is None else min(limit, attempt.deadline)
            while attempt.state is not State.ENDED:
                self._flight.wait()
                while attempt.turn.frames:  # which nobody reports any more
                    if attempt.turn.frames.popleft()[0] == "debugger":
                        self._flight.grant(attempt)
