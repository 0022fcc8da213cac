"""What each isolated test used, and what ran when: taken down where a report asks for it.

Without a cgroup the figures are those of wait4(2) and getrusage(2): CPU time of the
test process and of the children that were waited for, and the resident memory of the
largest single process. That memory begins with what pytest had when the test was
forked, so a test that allocates nothing does not have 0.

Moments are seconds since the epoch, as in pytest's reports; `Usage.wall` is measured
by the monotonic clock.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsisolate.core.outcome import Outcome
    from pytest_nsisolate.spec.spec import Spec


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """How a sandbox came to be.

    Attributes:
        asked: when the runner asked for it.
        begin: when the keeper had built the one before, and could begin with it.
        made: when the runner heard that it is ready.
        slot: the lowest number that no other sandbox had at that time.
    """

    asked: float
    begin: float
    made: float
    slot: int


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """What one process of one isolated test used; None is not known.

    Attributes:
        source: where the figures come from: "cgroup" or "wait4".
        peak_memory: bytes.
        cpu_user, cpu_system: seconds.
        pids_peak: processes and threads at once.
        io_read, io_written: bytes.
        begin: when the test was let go; None if it never was.
        wall: seconds from there to its end.
        lane: the lowest number that no other running test had; None if it never ran.
        sandbox: `sandbox.id` of the fixture.
        built: its sandbox; None if it had none.
        spec: what it asked for.
    """

    source: str
    peak_memory: int | None
    cpu_user: float | None
    cpu_system: float | None
    pids_peak: int | None
    io_read: int | None
    io_written: int | None
    begin: float | None
    wall: float
    lane: int | None
    sandbox: str
    built: Built | None
    spec: Spec


class Watch:
    """Is told by the scheduler what it does.

    Assumes that the keeper builds one sandbox after the other, in the order of asking.
    """

    def __init__(self) -> None:
        self._asked: dict[int, float] = {}
        self._made = 0.0
        self._built: dict[int, Built] = {}
        self._running: dict[int, tuple[float, int]] = {}

    def asked(self, number: int) -> None:
        """A sandbox was asked for under this number."""
        self._asked[number] = time.time()

    def made(self, number: int) -> None:
        """It is ready."""
        now = time.time()
        asked = self._asked.get(number, now)
        for other in [one for one in self._asked if one <= number]:
            del self._asked[other]  # those before it, if any is left, have failed
        slot = _lowest(one.slot for one in self._built.values())
        self._built[number] = Built(asked, max(asked, self._made), now, slot)
        self._made = now

    def lost(self) -> None:
        """Every sandbox is gone, and what was asked for will not come."""
        self._asked.clear()
        self._built.clear()

    def goes(self, number: int) -> None:
        """Record that a test process was let go."""
        lane = _lowest(lane for _, lane in self._running.values())
        self._running[number] = (time.time(), lane)

    def ended(self, number: int, sandbox: int, outcome: Outcome, spec: Spec) -> Usage:
        """Record that a test process ended, or failed to begin; what its last test used.

        Args:
            number: of the process.
            sandbox: the number of its sandbox, -1 if it had none.
        """
        begin, lane = self._running.pop(number, (None, None))
        return self._usage(number, outcome, spec, begin, lane, self._built.pop(sandbox, None))

    def test_over(self, number: int, sandbox: int, outcome: Outcome, spec: Spec) -> Usage:
        """Record that a test ended, and its process goes on; the parameters are those of `ended`."""
        begin, lane = self._running[number]
        self._running[number] = (min(time.time(), begin + outcome.wall), lane)
        return self._usage(number, outcome, spec, begin, lane, self._built.get(sandbox))

    @staticmethod
    def _usage(
        number: int,
        outcome: Outcome,
        spec: Spec,
        begin: float | None,
        lane: int | None,
        built: Built | None,
    ) -> Usage:
        return Usage(
            source=outcome.source,
            peak_memory=outcome.peak_memory,
            cpu_user=outcome.cpu_user,
            cpu_system=outcome.cpu_system,
            pids_peak=outcome.pids_peak,
            io_read=outcome.io_read,
            io_written=outcome.io_written,
            begin=begin,
            # Not past this moment, when the lane is free again.
            wall=0.0 if begin is None else max(0.0, min(outcome.wall, time.time() - begin)),
            lane=lane,
            sandbox=f"{number}",
            built=built,
            spec=spec,
        )


def _lowest(taken: Iterable[int]) -> int:
    """The lowest number from 0 up that is not *taken*."""
    numbers = set(taken)
    return next(number for number in range(len(numbers) + 1) if number not in numbers)
