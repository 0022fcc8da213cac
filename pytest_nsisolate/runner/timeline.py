"""Record when and where each isolated test ran, if a report asks for it.

Moments are seconds since the epoch, as in pytest's reports; `Timing.wall` is measured
by the monotonic clock.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pytest_nsisolate.core.usage import Built, Timing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsisolate.core.outcome import Outcome
    from pytest_nsisolate.spec.spec import Spec


class Watch:
    """Records what the pool of sandboxes and the event loop report.

    Assumes: the keeper builds one sandbox after the other, in the order of the requests.
    """

    def __init__(self) -> None:
        self._asked: dict[int, float] = {}
        self._made = 0.0
        self._built: dict[int, Built] = {}
        self._running: dict[int, tuple[float, int]] = {}

    def asked(self, number: int) -> None:
        """Record that the runner requested the sandbox of this number."""
        self._asked[number] = time.time()

    def made(self, number: int) -> None:
        """Record that a sandbox is ready."""
        now = time.time()
        asked = self._asked.get(number, now)
        for other in [one for one in self._asked if one <= number]:
            del self._asked[other]  # earlier requests that are still open have failed
        slot = _lowest(one.slot for one in self._built.values())
        self._built[number] = Built(asked, max(asked, self._made), now, slot)
        self._made = now

    def lost(self) -> None:
        """Forget all sandboxes and requests: the keeper has ended."""
        self._asked.clear()
        self._built.clear()

    def goes(self, number: int) -> None:
        """Record that a parked test process starts its first test."""
        lane = _lowest(lane for _, lane in self._running.values())
        self._running[number] = (time.time(), lane)

    def ended(self, number: int, sandbox: int, outcome: Outcome, spec: Spec) -> Timing:
        """Record that a test process ended, or failed to begin; when its last test ran.

        Args:
            number: of the process.
            sandbox: the number of its sandbox, -1 if it had none.
        """
        begin, lane = self._running.pop(number, (None, None))
        built = self._built.pop(sandbox, None)
        wall = _wall(begin, outcome)
        return Timing(begin, wall, lane, sandbox=f"{number}", built=built, spec=spec)

    def test_over(self, number: int, sandbox: int, outcome: Outcome, spec: Spec) -> Timing:
        """Record that a test ended, and its process goes on; the parameters are as in `ended`."""
        begin, lane = self._running[number]
        self._running[number] = (min(time.time(), begin + outcome.wall), lane)
        built = self._built.get(sandbox)
        wall = _wall(begin, outcome)
        return Timing(begin, wall, lane, sandbox=f"{number}", built=built, spec=spec)


def _wall(begin: float | None, outcome: Outcome) -> float:
    """Return the seconds from *begin* on, not past this moment, when the lane is free again."""
    return 0.0 if begin is None else max(0.0, min(outcome.wall, time.time() - begin))


def _lowest(taken: Iterable[int]) -> int:
    """Return the lowest number from 0 up that is not *taken*."""
    numbers = set(taken)
    return next(number for number in range(len(numbers) + 1) if number not in numbers)
