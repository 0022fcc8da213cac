"""The life of snapshots, as the runner sees it: made on demand, ended when told to.

Their processes are processes like those of tests (`process.TestProcess.serves`), so that
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
from .test_process import State, TestRun

if TYPE_CHECKING:
    from pytest_nsisolate.sandbox.operations.plan import Plan

    from .event_loop import EventLoop
    from .fork_server import ForkServer
    from .test_process import TestProcess

#: How long one may take to tear down when the session breaks off, in seconds.
_END_LIMIT = 5.0


class Snapshots:
    """See the module.

    Args:
        loop: what it is a part of.
        plans: by their numbers.
    """

    def __init__(self, loop: EventLoop, plans: list[Plan]) -> None:
        self._loop = loop
        self._plans = plans
        self._alive: list[Snapshot] = []  # the wider before the narrower

    def source_of(self, snapshot: Snapshot) -> ForkServer | None:
        """Where its tests come from; None if it is not there yet: it will be."""
        if snapshot.source is None and snapshot.broken is None:
            self._make(snapshot)
        return None if snapshot.ending else snapshot.source

    def _make(self, snapshot: Snapshot) -> None:
        loop = self._loop
        if snapshot.process is None:
            test = TestRun(snapshot.items[0])
            process = loop.start([test], snapshot.plan, snapshot.spec, snapshot=snapshot.parent)
            process.serves = snapshot
            snapshot.process = process
            if snapshot.parent is not None:
                self.source_of(snapshot.parent)  # stands before it in the list
            self._alive.append(snapshot)
        process = snapshot.process
        if process.state is State.WAITING and not loop.fork(process):
            loop.want([(snapshot.parent, snapshot.plan)])
        if process.state is State.PARKED and process.channel is not None:
            word = GO.pack(loop.failures(), snapshot.number, SET_UP)
            try:
                process.channel.send(word)
            except ConnectionError:
                return  # it has ended, and its template says how
            except OSError as error:
                code = error.errno or errno.EIO
                outcome = Outcome(Kind.SANDBOX_FAILED, code, "let the snapshot go")
                loop.finish(process, outcome)
                return
            process.start_clock(time.monotonic())
            process.sent = 1
            process.state = State.RUNNING

    def ready(self, process: TestProcess) -> None:
        """It has set up, and takes orders from now on."""
        snapshot, sandbox, channel = process.serves, process.sandbox, process.channel
        if snapshot is None or sandbox is None or channel is None:
            return
        process.deadline = None
        process.timed_out = process.terminated = False
        self.tell(process)
        maker = InnerMaker(socket.socket(fileno=sandbox.another_control()), self._plans)
        process.channel = None
        snapshot.source = self._loop.listen(maker, Template(0, channel))
        snapshot.source.snapshot = snapshot
        self._loop.changed = True

    def tell(self, process: TestProcess) -> None:
        """What it has told by now is for the test that waits for it."""
        if process.serves is not None and not process.serves.ending:
            process.serves.setup_frames.extend(process.test.frames)
            process.test.frames.clear()

    def tear_down(self, snapshot: Snapshot, item: int) -> TestProcess | None:
        """Have it tear down, as after *item*; gives its process, None if there is none."""
        process, source = snapshot.process, snapshot.source
        if process is None or source is None or process.state is not State.RUNNING:
            snapshot.reset()
            return None
        snapshot.ending = True
        process.start_clock(time.monotonic())
        source.template.tear_down(item)
        return process

    def ended(self, snapshot: Snapshot, outcome: Outcome) -> None:
        """Its process has ended."""
        source, ending = snapshot.source, snapshot.ending
        if snapshot in self._alive:
            self._alive.remove(snapshot)
        snapshot.source = None
        if source is not None:
            self._loop.ignore(source)
        if ending:
            snapshot.reset()
        else:
            kind = Kind.EXITED if outcome.kind is Kind.COMPLETED else outcome.kind
            snapshot.broken = replace(outcome, kind=kind, snapshot=snapshot.spec.snapshot or "")
            if source is not None:
                self._loop.break_off(source, snapshot.broken)
        if source is not None:
            source.close()
        self._loop.changed = True

    def forget(self, outcome: Outcome) -> None:
        """Keeper or template are gone, and every snapshot with them; tests that ran end so."""
        for snapshot in reversed(self._alive):
            source, process = snapshot.source, snapshot.process
            if source is not None:
                self._loop.ignore(source)
                self._loop.break_off(source, outcome)
                source.close()
            if process is not None:
                self._loop.release(process)
            snapshot.reset()
        self._alive.clear()

    def close(self) -> None:
        """The session ends: those that are there tear down, the narrowest first, if they can."""
        limit = time.monotonic() + _END_LIMIT
        for snapshot in reversed(self._alive[:]):
            process = self.tear_down(snapshot, snapshot.items[-1])
            if process is None:
                continue
            process.deadline = limit if process.deadline is None else min(limit, process.deadline)
            while process.state is not State.ENDED:
                self._loop.wait()
                while process.test.frames:  # which nobody reports any more
                    if process.test.frames.popleft()[0] == "debugger":
                        self._loop.grant(process)
