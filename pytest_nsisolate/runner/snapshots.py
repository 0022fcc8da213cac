"""Own the state of a session's snapshots: when each is made, when it tears down, how it ended.

The process of a snapshot is a test process (`TestProcess.serves`), so it is forked, watched and
killed in the same way. What a change means for other processes is for the event loop to do.
"""

from __future__ import annotations

import errno
import socket
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core.linux.syscalls import StageError
from pytest_nsisolate.core.messages import GO, SET_UP
from pytest_nsisolate.core.outcome import Kind, Outcome

from .servers.fork_server import ForkServer, InnerMaker
from .servers.sandbox_pool import Pool
from .servers.template_client import Template
from .test_process import State, TestRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import Parts, Processes
    from .snapshot import Snapshot
    from .test_process import TestProcess


class Stand:
    """Where one snapshot stands.

    Attributes:
        process: its process, None as long as no test needs it.
        server: what forks its tests, once it has set up.
        broken: how it ended, if it was not told to.
        ending: whether it tears down.
        setup_frames: what its process sent while it set up, for the first test to report.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget its process: the next test that needs it has it made."""
        self.process: TestProcess | None = None
        self.server: ForkServer | None = None
        self.broken: Outcome | None = None
        self.ending = False
        self.setup_frames: deque[tuple[str, Any]] = deque()

    @property
    def reportable(self) -> bool:
        """Whether its frames can be reported: it has set up, or waits for the terminal."""
        waits = self.process is not None and self.process.test.debugged
        return self.server is not None or waits

    @property
    def to_make(self) -> bool:
        """Whether it has not set up, and nothing says that it can't."""
        return self.server is None and self.broken is None

    def run_in(self, process: TestProcess) -> None:
        """Own the process that sets it up."""
        self.process = process

    def serve(self, server: ForkServer) -> None:
        """Fork its tests by *server* from now on: it has set up."""
        self.server = server

    def keep_frames(self, process: TestProcess) -> None:
        """Take over what its process has sent."""
        if not self.ending:
            self.setup_frames.extend(process.test.frames)
            process.test.frames.clear()

    def end(self) -> None:
        """Fork no more tests: it tears down."""
        self.ending = True

    def fail(self, outcome: Outcome) -> None:
        """Note how it ended without an order to end; the tests that need it end so too."""
        self.server = None
        self.broken = outcome


class Snapshots:
    """See the module.

    Args:
        parts: of the session.
        processes: what the processes of the snapshots are created by.
    """

    def __init__(self, parts: Parts, processes: Processes) -> None:
        self._parts = parts
        self._processes = processes
        self._stands: dict[Snapshot, Stand] = {}
        self._alive: list[Snapshot] = []  # the wider before the narrower

    def stand(self, snapshot: Snapshot) -> Stand:
        """Return the state of a snapshot."""
        return self._stands.setdefault(snapshot, Stand())

    def narrowest_first(self) -> Iterator[Snapshot]:
        """Return the snapshots that have a process, narrowest first; they may end meanwhile."""
        return reversed(self._alive[:])

    def broken(self, snapshot: Snapshot) -> Outcome | None:
        """Return how a test ends if its snapshot, or one around that, has ended."""
        stands = [self.stand(one) for one in reversed(snapshot.chain)]
        return next((one.broken for one in stands if one.broken is not None), None)

    def process_of(self, snapshot: Snapshot) -> TestProcess:
        """Return the process of a snapshot; create it if there is none."""
        stand = self.stand(snapshot)
        if stand.process is not None:
            return stand.process
        process = self._processes.create(
            [TestRun(snapshot.items[0])],
            snapshot.plan,
            snapshot.spec,
            snapshot=snapshot.parent,
            serves=snapshot,
        )
        stand.run_in(process)
        self._alive.append(snapshot)
        return process

    def send_set_up(self, process: TestProcess) -> None:
        """Send the parked process of a snapshot the order to set up.

        Raises:
            StageError: it can't be told.
        """
        if process.serves is None or process.channel is None or process.state is not State.PARKED:
            return
        word = GO.pack(self._parts.failures(), process.serves.number, SET_UP)
        try:
            process.channel.send(word)
        except ConnectionError:
            return  # it has ended, and its template says how
        except OSError as error:
            raise StageError("let the snapshot go", error.errno or errno.EIO) from None
        process.sent_set_up(time.monotonic())

    def set_up(self, process: TestProcess) -> ForkServer | None:
        """Note that the process of a snapshot has set up; return what forks its tests now."""
        snapshot, sandbox, channel = process.serves, process.sandbox, process.channel
        if snapshot is None or sandbox is None or channel is None:
            return None
        process.set_up()
        stand = self.stand(snapshot)
        stand.keep_frames(process)
        control = socket.socket(fileno=sandbox.another_control())
        maker = InnerMaker(control, self._parts.plans)
        pool = Pool(maker, self._processes.numbers, self._parts.watch)
        server = ForkServer(maker, Template(0, channel), pool)
        stand.serve(server)
        return server

    def tear_down(self, snapshot: Snapshot, item: int) -> TestProcess | None:
        """Order a snapshot to tear down, as after *item*; return its process, if there is one."""
        stand = self.stand(snapshot)
        process, server = stand.process, stand.server
        if process is None or server is None or not process.running:
            stand.reset()
            return None
        stand.end()
        process.start_clock(time.monotonic())
        server.template.tear_down(item)
        return process

    def ended(self, snapshot: Snapshot, outcome: Outcome) -> Outcome | None:
        """Note that the process of a snapshot has ended; return how its tests end.

        Return None if the runner has ended the snapshot.
        """
        stand = self.stand(snapshot)
        if snapshot in self._alive:
            self._alive.remove(snapshot)
        if stand.ending:
            stand.reset()
            return None
        kind = Kind.EXITED if outcome.kind is Kind.COMPLETED else outcome.kind
        broken = replace(outcome, kind=kind, snapshot=snapshot.spec.snapshot or "")
        stand.fail(broken)
        return broken

    def forget(self, snapshot: Snapshot) -> None:
        """Forget a snapshot that ended with keeper or template: it is made again if needed."""
        self.stand(snapshot).reset()
        self._alive.remove(snapshot)
