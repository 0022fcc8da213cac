"""Make, watch and read the budgets of a session's tests: their control groups and counters.

`Budgets` belongs to the session and knows the limits of each test; a `Budget` belongs
to one attempt. Imported only where a test has a limit or wants counters.

Guarantees: a limit that can't be held is in `Budgets.errors`, by item; closing leaves
no cgroup of the session, or names it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core.linux.proc import largest
from pytest_nsisolate.core.linux.syscalls import StageError
from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.core.usage import Usage
from pytest_nsisolate.spec.limits import LimitError

from . import devices
from .always_on import speaks_of_forks
from .group import Group
from .perf_counters import Counters
from .session import GROUP_PREFIX, Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_nsisolate.spec.limits import Limits
    from pytest_nsisolate.spec.spec import Spec

    from .session import Handover

#: How long after its start a test is looked at first, and the longest time until the next
#: look, in seconds; each takes twice the time of the one before.
_FIRST_LOOK, _INTERVAL = 0.01, 0.1
#: What is measured of a test with limits besides what these take: each hierarchy of cgroup v1
#: costs a directory. (I/O is as well known from wait4.)
_MEASURED = frozenset({"memory", "pids", "cpuacct"})
#: Refused forks that only a fork bomb makes, and within how many seconds: a machine that is slow,
#: or busy with the bomb, refuses some fifty a second, and who waits and tries again asks for less.
_BOMB, _WINDOW = 100, 5
#: How many of a sandbox's processes are named when its memory runs out.
_LARGEST = 3


class Budgets:
    """See the module.

    Args:
        specs: what tests ask for, by index of the item.
        companions: pids that belong to this process: if it has to move to another cgroup, so
            do they.
        most: how many processes a test may have that sets no ``pids``, if a group is to hold
            it to that (`always_on`); where none can, it is not held.
    """

    def __init__(
        self,
        specs: dict[int, Spec],
        companions: Sequence[int] = (),
        *,
        most: int | None = None,
    ) -> None:
        self.errors: dict[int, StageError] = {}
        #: Whether this process may count any event; asked only where a test wants counters.
        self.counts = False
        self._limits: dict[int, Limits] = {}  # by item; equal limits are one object
        self._asked = specs
        if most is not None:
            specs = {
                item: dataclasses.replace(spec, pids=most) if spec.pids is None else spec
                for item, spec in specs.items()
            }
        self._specs = specs
        self._session: Session | None = None
        self._try_counters()
        known: dict[Any, Limits | StageError] = {}
        limited = {item: spec.limits for item, spec in specs.items() if spec.limits}
        if not limited:
            return
        asked = [spec.limits.controllers() for spec in self._asked.values()]
        required = frozenset().union(*asked)
        halts = any(specs[item].timeout or specs[item].pids for item in limited)
        self._session = Session(
            required,
            welcome=_MEASURED | ({"freezer"} if halts else set()),
            companions=companions,
        )
        for item, limits in limited.items():
            found = self._tried(limits, known)
            own = self._asked[item].limits
            if isinstance(found, StageError) and own != limits:
                found = self._tried(own, known) if own else own
            if isinstance(found, StageError):
                self.errors[item] = found
            elif found:
                self._limits[item] = found

    def _tried(self, limits: Limits, known: dict[Any, Limits | StageError]) -> Limits | StageError:
        """Return or raise the result of `_plan`, which is called once for equal limits."""
        key = (*dataclasses.astuple(dataclasses.replace(limits, io=None)), _pairs(limits))
        if key not in known:
            try:
                known[key] = self._plan(limits)
            except StageError as error:
                known[key] = error
        return known[key]

    def _try_counters(self) -> None:
        """Try to count events; if none can be counted, note that as the error of the tests."""
        items = [item for item, spec in self._specs.items() if spec.counters]
        if not items:
            return
        with Counters() as counters:
            self.counts = bool(counters.values())
            if not self.counts:
                self.errors.update(dict.fromkeys(items, next(iter(counters.errors.values()))))

    def holds(self, item: int) -> bool:
        """Return whether a control group will hold all limits of *item*."""
        return item in self._limits

    def _plan(self, limits: Limits) -> Limits:
        """Try *limits* in a group of their own; return them without those held by other means."""
        assert self._session is not None
        try:
            self._session.end(self._session.group(limits))
        except LimitError as error:
            if error.controller != "devices":
                raise
            for path in limits.devices or ():
                try:
                    devices.node(path)
                except OSError as missing:
                    number = missing.errno or errno.ENOENT
                    raise LimitError("devices", error.backend, number, path) from None
            # A controller is the second lock: the sandbox's own /dev is the first.
            limits = dataclasses.replace(limits, devices=None)
            if limits:
                self._session.end(self._session.group(limits))
        return limits

    def descriptors(self) -> frozenset[int]:
        """Return locks, which no process of this session may hold once the runner has ended."""
        return self._session.descriptors() if self._session is not None else frozenset()

    def describe(self, item: int) -> list[str]:
        """Describe the plan of the group of *item*, one line per step."""
        limits = self._limits.get(item)
        if limits is None or self._session is None:
            return []
        return self._session.plan(limits).describe()

    def make(self, item: int) -> Budget | None:
        """Make the budget of one attempt of *item*; return None if it needs none.

        Raises:
            StageError: the group can't be made.
        """
        limits, spec = self._limits.get(item), self._specs[item]
        if limits is None or limits.pids is None:
            spec = self._asked[item]
        if limits is None and not spec.counters:
            return None
        group = None
        if limits is not None and self._session is not None:
            group = self._session.group(limits)
        return Budget(spec, group, self._session)

    def inside(self, item: int) -> Group | None:
        """Return the group of *item*, which this test process is in, to read it."""
        limits = self._limits.get(item)
        if limits is None or self._session is None:
            return None
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as stream:
            names = {line.strip().rpartition("/")[2] for line in stream}
        name = next((one for one in names if one.startswith(GROUP_PREFIX)), None)
        return Group(self._session.plan(limits), name, existing=True) if name else None

    def handover(self) -> Handover | None:
        """Return what a custodian needs to remove the session's cgroups; None if there are none."""
        return self._session.handover() if self._session is not None else None

    def spare(self, directories: list[str]) -> None:
        """Leave these groups, and the locks, to the custodian."""
        if self._session is not None:
            self._session.spare(directories)

    def close(self) -> list[str]:
        """End what is left; return the directories that could not be removed."""
        return self._session.close() if self._session is not None else []


def _pairs(limits: Limits) -> tuple[tuple[str, int], ...] | None:
    return None if limits.io is None else tuple(sorted(limits.io.items()))


class Budget:
    """What one attempt is held to, and what is noticed of it."""

    def __init__(self, spec: Spec, group: Group | None, session: Session | None) -> None:
        self._spec = spec
        self._group = group
        self._session = session
        self._counters: Counters | None = None
        self._killed = self._denied = 0
        self._before = (0, 0)  # killed and denied in tests before, of those that share the group
        self._window = (0.0, 0)  # when it began, and how many forks had been refused by then
        self._peak: int | None = None
        self._largest: list[str] = []
        #: Whether the test must wait until its process is counted.
        self.waits = spec.counters
        self.next_look = float("inf")
        self._interval = _FIRST_LOOK
        #: Whether over half of the memory was in use at the last look.
        self.nearly = False

    def join_fds(self) -> list[int]:
        """Return the descriptors by which the test process joins; `joined` closes them."""
        return self._group.join_fds() if self._group is not None else []

    def joined(self) -> None:
        """Close the descriptors of `join_fds`, which have been sent."""
        if self._group is not None:
            self._group.close()

    def count(self, pid: int) -> None:
        """Count the events of the test process, which has not begun yet; pid 0 is unknown."""
        if self.waits and pid:
            self._counters = Counters(pid)
        self.waits = False

    # while it runs

    def begin(self, now: float) -> None:
        """Start to watch the test, which begins at *now*."""
        self._window = now, 0
        if self._group is not None and (self._spec.memory or self._spec.pids):
            self.next_look = now + self._interval

    def look(self, now: float) -> Outcome | None:
        """Check the budget; return an outcome if the test has to be ended for it."""
        self._interval = min(2 * self._interval, _INTERVAL)
        self.next_look = now + self._interval
        group = self._group
        if group is None:
            return None
        group.sample()
        self.nearly = self._spec.memory is not None and group.memory_now() > self._spec.memory // 2
        if self.nearly:
            self._largest = largest(group.processes(), _LARGEST)
        self._count_refusals()
        begin, before = self._window
        if self._denied - before >= _BOMB:
            return self._too_many()
        if now - begin >= _WINDOW:
            self._window = now, self._denied
        return None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[bool]:
        """Hold the test's processes still, by the freezer; return whether they are held."""
        try:
            yield self._group is not None and self._group.freeze(patience=0.2)
        finally:
            if self._group is not None:
                self._group.thaw()

    def freeze(self) -> bool:
        """Hold the test's processes still until the end; return whether a freezer did."""
        return self._group is not None and self._group.freeze(patience=0.5)

    def exceeded(self, report: dict[str, Any]) -> Outcome | None:
        """Return the limit that a phase reached, or None; *report* is what the test process sent.

        Forks that were refused are no fault by themselves: a test may try again. They are
        if it failed and its report speaks of them. Its `Outcome.number` counts on, so that
        a later phase can be told from this one.
        """
        # A brief one passed, and doesn't say so.
        if report.get("when") == "setup" and report.get("outcome", "passed") == "passed":
            return None
        self._count_refusals()
        if self._killed:
            return self._out_of_memory()
        if (
            self._denied
            and report.get("outcome") == "failed"
            and speaks_of_forks(str(report.get("longrepr")))
        ):
            return self._too_many()
        return None

    def _count_refusals(self) -> None:
        if self._group is not None:
            if self._spec.memory is not None:
                self._killed = self._group.oom_kills() - self._before[0]
                self._peak = self._group.usage().peak_memory if self._killed else None
            if self._spec.pids is not None:
                self._denied = self._group.pids_denied() - self._before[1]

    def _out_of_memory(self) -> Outcome:
        limit = self._spec.memory
        return self._reached(Kind.OUT_OF_MEMORY, self._killed, limit, self._largest)

    def _too_many(self) -> Outcome:
        pids = self._group.processes() if self._group is not None else []
        running = largest(pids, _LARGEST) or self._largest
        return self._reached(Kind.TOO_MANY_PROCESSES, self._denied, self._spec.pids, running)

    def _reached(self, kind: Kind, count: int, limit: int | None, running: list[str]) -> Outcome:
        group = self._spec.scope if self._spec.scope != "function" else ""
        usage = Usage(peak_memory=self._peak)
        return Outcome(kind, count, limit=limit or 0, group=group, running=running, usage=usage)

    # the end

    def test_over(self, outcome: Outcome) -> None:
        """Read the budget after a test; the next test of its process goes on with the same one."""
        self.read(outcome, shared=True)
        self._before = (self._before[0] + self._killed, self._before[1] + self._denied)
        self._killed = self._denied = 0
        self._window = self._window[0], 0

    def read(self, outcome: Outcome, *, shared: bool = False) -> None:
        """Put what was used into *outcome*, and the limit that was reached over its kind.

        Args:
            shared: other tests used it as well, so CPU time and I/O stay as they were
                measured in the process; memory and processes are the group's until now.
        """
        if self._counters is not None:
            with contextlib.suppress(OSError):
                outcome.counters = self._counters.values()
        if self._group is None:
            return
        usage = self._group.usage()
        outcome.source = "cgroup"
        # What this kernel's groups have no measure of stays as wait4 has it.
        outcome.usage = (usage.memory_and_pids() if shared else usage).filled(outcome.usage)
        self._count_refusals()
        if self._killed and outcome.kind is not Kind.SANDBOX_FAILED:
            exceeded = self._out_of_memory()
            outcome.kind, outcome.limit = exceeded.kind, exceeded.limit
            outcome.group = exceeded.group
            outcome.number, outcome.running = exceeded.number, exceeded.running

    def keep(self) -> list[str]:
        """Leave the group to a kept sandbox and return its directories; kill a fork bomb."""
        group, self._group = self._group, None
        if group is None:
            return []
        group.close()
        if self._denied >= _BOMB:
            group.kill()
        return group.directories

    def end(self) -> None:
        """Release the group of a sandbox that has ended. What was noticed stays known."""
        self.next_look = float("inf")
        if self._counters is not None:
            self._counters.close()
        if self._group is not None and self._session is not None:
            self._session.end(self._group)
            self._group = None
