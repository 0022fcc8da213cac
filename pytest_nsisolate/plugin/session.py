"""One session's isolated tests: who they are, how they are built, and running them."""

from __future__ import annotations

import bisect
import collections
import contextlib
import errno
import functools
import os
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.cgroups import always_on
from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.core.syscalls import LINUX, StageError
from pytest_nsisolate.files.needed_paths import hosts_files
from pytest_nsisolate.reports import coverage as coverage_data
from pytest_nsisolate.reports.replay import Replay
from pytest_nsisolate.reports.synthetic import passed, skipped
from pytest_nsisolate.runner.event_loop import EventLoop
from pytest_nsisolate.runner.helpers import Helpers, Lost
from pytest_nsisolate.runner.memory_tuning import Spared
from pytest_nsisolate.runner.processes import Parts
from pytest_nsisolate.runner.scheduler import Scheduler
from pytest_nsisolate.runner.template_client import Template
from pytest_nsisolate.sandbox.client import Keeper, KeeperGone
from pytest_nsisolate.sandbox.operations.mounts import BindFile
from pytest_nsisolate.spec.holds import Facts, Mode, judge
from pytest_nsisolate.spec.keys import KEYS
from pytest_nsisolate.testprocess import huge_pages, template
from pytest_nsisolate.testprocess.body import STACK_SIGNAL, TIMEOUT_SIGNAL, PytestBody

from . import grouping, markers, pytest_private, xdist
from .options import AUTO, Options
from .plans import Plans
from .session_parts import make_keeping, make_retention, make_witness, overlays_by_item

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from pytest_nsisolate.cgroups.budget import Budgets
    from pytest_nsisolate.files.artifact_policy import Retention
    from pytest_nsisolate.network.topology.per_test import Topologies
    from pytest_nsisolate.network.uplink.session import Network
    from pytest_nsisolate.runner.kept.policy import Keeping
    from pytest_nsisolate.runner.snapshot import Snapshot
    from pytest_nsisolate.runner.timeline import Watch
    from pytest_nsisolate.sandbox.keeper_start import KeeperProcess
    from pytest_nsisolate.sandbox.operations.plan import Plan
    from pytest_nsisolate.spec.holds import Refusal
    from pytest_nsisolate.spec.spec import Spec


#: Options by which a debugger begins in any test, and their names in pytest's configuration.
_DEBUGGERS = (("--pdb", "usepdb"), ("--trace", "trace"))


#: The values of --ns-missing that run a test without a sandbox, and what is said of it.
_MODES = {"fork": Mode.FORK, "run": Mode.RUN}
_MISSING = {
    "skip": "are skipped",
    "fork": "run as forked processes WITHOUT NAMESPACES",
    "run": "run in the runner, NOT ISOLATED",
}
#: How long a test may take to end once the session has, in seconds.
_END_LIMIT = 5.0


class Isolation:
    """See the module. Made when collection is done, if any test is to be isolated."""

    def __init__(self, session: pytest.Session, options: Options, specs: dict[int, Spec]) -> None:
        self._session = session
        self._config = session.config
        self.options = options
        self.jobs = options.jobs
        self._jobs_reason = ""
        self._debugger = next(
            (
                option
                for option, name in _DEBUGGERS
                if session.config.getoption(name, default=False)
            ),
            None,
        )
        if self._debugger is not None:
            self.jobs = 1
        self._specs = specs
        self._items: dict[pytest.Item, int] = {
            item: index for index, item in enumerate(session.items)
        }
        self._in_order = sorted(specs)
        self._worker = hasattr(session.config, "workerinput")
        self._current = -1
        self._next: int | None = None
        self._scheduler: Scheduler | None = None
        self._replay: Replay | None = None  # of the test that has run last
        self._keeper: Keeper | None = None
        self._failures: dict[int, StageError] = {}  # by item
        self._refusals: dict[int, list[Refusal]] = {}  # by item
        self._told: set[int] = set()  # of the failures, those that the header names
        self._lost: StageError | None = None
        self._budgets: Budgets | None = None
        self._retention: Retention | None = None
        self._keeping: Keeping | None = None
        self._exported = 0  # tests with artifacts
        self._network: Network | None = None
        self._topologies: Topologies | None = None
        self._subordinate = False
        self._spared: Spared | None = None
        self.watch: Watch | None = None
        self.plans: list[Plan] = []
        self._outer: list[int] = []  # of the plans, those that the keeper builds
        self._shown: dict[int, int] = {}  # the plan that each test is to run by
        self._tree: grouping.Tree | None = None
        if any(spec.snapshot is not None for spec in specs.values()):
            self._tree = grouping.tree(session.items, specs)

    @classmethod
    def of(cls, session: pytest.Session, options: Options) -> Isolation | None:
        """The isolation of this session, None if no test asks for it.

        Raises:
            pytest.UsageError: what tests ask for is wrong; names them all.
        """
        specs = markers.specs_of(session, options)
        return cls(session, options, specs) if specs else None

    def isolates(self, item: pytest.Item) -> bool:
        """Whether *item* runs in a process of its own."""
        return self._items.get(item, -1) in self._specs

    # start and end

    def start_keeper(self, process: KeeperProcess | None) -> None:
        """Bring the keeper up.

        Args:
            process: its, if it could be started; this owns it.
        """
        if self.jobs == AUTO:
            self._choose_jobs()
        if not LINUX:
            self._miss(list(self._specs), StageError("unshare", errno.ENOSYS))
        else:
            self._set_budgets([] if process is None else [process.pid])
            self._subordinate = any(spec.user == "root" for spec in self._specs.values())
            try:
                self._keeper = Keeper(process, subordinate=self._subordinate)
            except StageError as error:
                if self.options.missing == "fork" and self._budgets is None:
                    self._set_budgets([], sandbox=False)
                self._miss(list(self._specs), error)
            else:
                self._set_network()
            self._set_topologies()

    def _choose_jobs(self) -> None:
        from pytest_nsisolate.runner import job_count  # noqa: PLC0415 -- only where it is asked for

        worker: Any = getattr(self._config, "workerinput", {})
        limits = [spec.memory for spec in self._specs.values() if spec.memory is not None]
        self.jobs, self._jobs_reason = job_count.choose(
            workers=int(worker.get("workercount", 1)), largest=max(limits, default=None)
        )

    def _set_topologies(self) -> None:
        """While the keeper comes up: what building them takes is imported once, here."""
        if not any(spec.topology or spec.pcap for spec in self._specs.values()):
            return
        from pytest_nsisolate.network.topology.per_test import Topologies  # noqa: PLC0415 -- only where a test has one

        self._topologies = Topologies(self._specs, self._basetemp())
        for item, error in self._topologies.errors.items():
            self._miss([item], error)

    def _set_budgets(self, companions: list[int], *, sandbox: bool = True) -> None:
        """Before the keeper makes namespaces: in cgroup v2 this process has to move first."""
        grouped = always_on.way(sandbox=sandbox) is always_on.Way.GROUP
        most = always_on.processes() if grouped else None
        if most is None and not any(spec.limits or spec.counters for spec in self._specs.values()):
            return
        from pytest_nsisolate.cgroups.budget import Budgets  # noqa: PLC0415 -- only where a test has limits

        self._budgets = Budgets(self._specs, companions, most=most)
        for item, error in self._budgets.errors.items():
            self._miss([item], error)

    def _set_network(self) -> None:
        if not any(spec.outward for spec in self._specs.values()):
            return
        from pytest_nsisolate.network.uplink.addresses import Ranges  # noqa: PLC0415 -- only where a test asks for the outside
        from pytest_nsisolate.network.uplink.session import Network  # noqa: PLC0415 -- as above

        ranges = self.options.ranges or Ranges()
        self._network = Network(self._specs, ranges, self.jobs)
        for item, error in self._network.errors.items():
            self._miss([item], error)

    @property
    def header(self) -> list[str]:
        """What the session's header has to say: what was chosen, and what is missing here."""
        chosen = []
        if self._debugger is not None and self.options.jobs != 1:
            asked = "auto" if self.options.jobs == AUTO else self.options.jobs
            one = f"{self._debugger} runs one test at a time"
            chosen = [f"nsisolate: {one}: --ns-jobs is 1 instead of {asked}"]
        if self._jobs_reason:
            chosen = [f"nsisolate: --ns-jobs auto is {self.jobs} ({self._jobs_reason})"]
        return chosen + self._missing_lines()

    def _missing_lines(self) -> list[str]:
        """A line for each reason why tests can't be isolated, of tests that none was told of."""
        items = [item for item in self._failures if item not in self._told]
        self._told.update(items)
        if self.options.missing == "error" or not items:
            return []
        from pytest_nsisolate.explain.explain import one_line  # noqa: PLC0415 -- only where something fails

        counts: collections.Counter[tuple[str, bool]] = collections.Counter()
        keys: dict[tuple[str, bool], set[str]] = {}
        for item in items:
            refused = self._refused(item)
            group = one_line(self._failures[item]), bool(refused)
            counts[group] += 1
            keys.setdefault(group, set()).update(one.key for one in refused)
        lines = []
        option = f"--ns-missing={self.options.missing}"
        for group, count in counts.items():
            what = f"they {_MISSING[self.options.missing]} ({option})"
            if group[1]:
                names = ", ".join(key for key in KEYS if key in keys[group])
                what = f"they fail: {option} can't hold {names}"
            lines.append(
                f"nsisolate: {count} of {len(self._specs)} isolated tests can't be isolated here "
                f"({group[0]}); {what}"
            )
        return lines

    def _refused(self, item: int) -> list[Refusal]:
        """The keys of *item* that the way chosen for tests without a sandbox can't hold."""
        if self.options.missing not in _MODES:
            return []
        if item not in self._refusals:
            spec, budgets = self._specs[item], self._budgets
            facts = Facts(
                linux=LINUX,
                root=hasattr(os, "geteuid") and os.geteuid() == 0,
                group=budgets is not None and budgets.holds(item),
                counts=budgets is not None and budgets.counts,
                cpus=frozenset(os.sched_getaffinity(0)) if LINUX else frozenset(),
            )
            found = judge(spec.asked, _MODES[self.options.missing], facts)
            if any(one.key == "profile" for one in found):
                # The keys of its bundle were not asked for one by one.
                place = functools.partial(
                    markers.source_of, self._session.items[item], self.options
                )
                found = [one for one in found if place(one.key)]
            self._refusals[item] = found
        return self._refusals[item]

    def _miss(self, items: list[int], error: StageError) -> None:
        for item in items:
            self._failures.setdefault(item, error)

    def start(self) -> None:
        """Build the plans, fork the template, and see that each plan works here.

        What fails here fails each isolated test, with a text that says what it was.
        """
        try:
            self._set_up()
        except Lost as lost:
            self._lost = lost.error
        except StageError as error:
            self._lost = error
        except OSError as error:
            self._lost = StageError.of("start the session", error)
        if len(self._specs) == len(self._items):
            self._spared = Spared()

    def _set_up(self) -> None:
        basetemp = self._basetemp()
        for item in self._specs:
            # Worked out once, here, and not again in each fork.
            _ = self._session.items[item].location
        if self._keeper is None and self.options.missing != "fork":
            self._apply_missing()
            return
        numbers: dict[int, int] = {}
        if self._keeper is not None:
            numbers = self._make_plans(basetemp)
        self._retention = make_retention(
            self._session,
            self._specs,
            basetemp=basetemp,
            options=self.options,
            overlays=overlays_by_item(self._specs, self.plans, numbers),
        )
        self._keeping = make_keeping(self._session, self._specs, self.options)
        loop = EventLoop(
            Helpers(self._teach_keeper, self._start_template, self._outer),
            Parts(
                plans=self.plans,
                failures=lambda: self._session.testsfailed,
                budgets=self._budgets,
                network=self._network,
                watch=self.watch,
                retention=self._retention,
                keeping=self._keeping,
            ),
            timeout_signal=TIMEOUT_SIGNAL,
            stack_signal=STACK_SIGNAL,
        )
        self._scheduler = Scheduler(
            loop=loop,
            specs=self._specs,
            plans=numbers,
            jobs=self.jobs,
            upcoming=self._upcoming,
            snapshots=self._tree.of if self._tree is not None else {},
            over=self._over,
            follows=self._follows,
            acknowledge=self._direct,
            interactive=self._debugger is not None,
        )
        failed = self._scheduler.prove()
        for number, error in failed.items():
            self._miss([item for item, plan in numbers.items() if plan == number], error)
        self._apply_missing()

    def _apply_missing(self) -> None:
        for line in self._missing_lines():
            pytest_private.write_line(self._config, line)  # what became known after the header
        items = [item for item in self._failures if not self._refused(item)]
        if self.options.missing == "run":
            for item in items:
                del self._specs[item]
            self._in_order = sorted(self._specs)
        elif self.options.missing == "fork" and self._scheduler is not None:
            self._scheduler.without_sandbox(items)
        else:
            return
        for item in items:
            del self._failures[item]

    def _teach_keeper(self) -> Keeper | None:
        """A keeper that knows the plans."""
        if self._keeper is None and self.plans:
            # The one before was killed.
            self._keeper = Keeper(subordinate=self._subordinate)
        if self._keeper is not None:
            try:
                self._teach(self._keeper)
            except KeeperGone:
                raise StageError("start the keeper", errno.EPIPE) from None
        return self._keeper

    def _resume_collections(self) -> None:
        if self._spared is not None:
            self._spared.resume()
            self._spared = None

    def _start_template(self, keeper: Keeper | None, own: list[int]) -> Template:
        if self._scheduler is not None:
            self._scheduler.take_keys_back()
        self._resume_collections()  # tests inherit how it is
        close = list(own)
        if self._budgets is not None:
            close += self._budgets.descriptors()
        if self._network is not None:
            close += self._network.descriptors()
        if keeper is not None:
            close += [keeper.socket.fileno(), keeper.pidfd]
        body = PytestBody(
            self._session,
            self._specs,
            self._budgets,
            self._network,
            self._topologies,
            direct=self._direct,
            at_start=pytest_private.AT_START,
            snapshots=self._tree.settings if self._tree is not None else (),
            retention=self._retention,
            witness=make_witness(self._config, self._specs, self._basetemp()),
        )
        huge_pages.gather(len(self._specs))
        pid, control = template.start(
            keeper.pidfd if keeper is not None else None,
            close,
            lambda: body.descriptors,
            body.prepare,
            collect=len(self._specs) >= huge_pages.WORTH_IT,
        )
        self._keeper = None  # the scheduler owns it now
        return Template(pid, control)

    def _teach(self, keeper: Keeper) -> None:
        """Tell a new keeper what to build sandboxes by."""
        files = hosts_files({spec.hostname for spec in self._specs.values()})
        if self._topologies is not None:
            files |= self._topologies.hosts_files(files)
        # Where they are kept, a suite may live: then no plan that has overlays binds them.
        bound = (one for plan in self.plans for one in (*plan.ground, *plan.operations))
        if any(isinstance(one, BindFile) for one in bound):
            keeper.store(files)
        for number in self._outer:
            keeper.add_plan(number, self.plans[number])

    @property
    def _direct(self) -> bool:
        """Whether a test process writes to the terminal itself."""
        # Without the plugin of that name nothing is captured either.
        passes = self._config.getoption("capture", default="no") in ("no", "tee-sys")
        return self.jobs == 1 and (passes or self._debugger is not None)

    def close(self) -> None:
        """End what runs; nothing of the session is left."""
        self._resume_collections()
        if self._exported and self._retention is not None:
            tests = f"{self._exported} test{'s' if self._exported > 1 else ''}"
            line = f"nsisolate: artifacts of {tests} are in {self._retention.folder}"
            pytest_private.write_line(self._config, line)
            self._exported = 0
        if self._scheduler is not None:
            self._scheduler.close()
            self._scheduler = None
            coverage_data.combine()
        if self._keeping is not None:
            xdist.print_at_end(self._config, self._keeping.lines())
            self._keeping = None
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
        if self._network is not None:
            self._network.close()
            self._network = None
        if self._budgets is not None:
            for directory in self._budgets.close():
                pytest_private.write_line(
                    self._config,
                    f"nsisolate: the control group {directory} could not be removed: a process in "
                    "it does not end; `nsisolate gc` tries again",
                )
            self._budgets = None

    # plans

    def _basetemp(self) -> str | None:
        factory: Any = getattr(self._config, "_tmp_path_factory", None)
        return None if factory is None else str(factory.getbasetemp())

    def _make_plans(self, basetemp: str | None) -> dict[int, int]:
        assert self._keeper is not None
        plans = Plans(self._config, self._keeper.maps, basetemp)
        topologies = self._topologies
        numbers = {
            item: plans.number(
                spec, hosts=topologies.hosts_name(item) if topologies is not None else None
            )
            for item, spec in self._specs.items()
        }
        if self._tree is not None:
            plans.settle(self._tree.snapshots)
            for item, snapshot in self._tree.of.items():
                self._shown[item] = snapshot.item_plan
        self._shown = {**numbers, **self._shown}
        self.plans, self._outer = plans.all, plans.outer
        return numbers

    def describe(self) -> list[str]:
        """The plans, a line a step."""
        lines = []
        for number, plan in enumerate(self.plans):
            tests = [self._session.items[i].nodeid for i, n in self._shown.items() if n == number]
            if not tests:
                lines.append(f"sandbox plan {number + 1}, for snapshots:")
                lines += [f"  {step:2}. {line}" for step, line in enumerate(plan.describe(), 1)]
                continue
            lines.append(f"sandbox plan {number + 1}, for {len(tests)} tests ({tests[0]} ...):")
            lines += [f"  {step:2}. {line}" for step, line in enumerate(plan.describe(), 1)]
        parts = (
            ("control groups", self._budgets),
            ("network", self._network),
            ("topology", self._topologies),
        )
        for title, part in parts:
            groups: dict[tuple[str, ...], list[int]] = {}
            if part is not None:
                for item in self._specs:
                    groups.setdefault(tuple(part.describe(item)), []).append(item)
            for steps, items in groups.items():
                if steps:
                    first = self._session.items[items[0]].nodeid
                    lines.append(f"{title}, for {len(items)} tests ({first} ...):")
                    lines += [f"  {step:2}. {line}" for step, line in enumerate(steps, 1)]
        return lines

    # running

    def _upcoming(self, item: int) -> Iterator[tuple[int, bool]]:
        """The isolated tests after *item*, and whether one of the runner's stands before it."""
        if self._worker:
            # Which test comes after the next one is not known yet.
            if self._next is not None and self._next in self._specs:
                yield self._next, False
            return
        before = item
        for position in range(bisect.bisect_right(self._in_order, item), len(self._in_order)):
            index = self._in_order[position]
            if index not in self._failures:
                yield index, index != before + 1
            before = index

    def _follows(self, item: int) -> int | None:
        """The item that runs after *item* in the same process: -1 for none, None if unknown."""
        if self._specs[item].scope == "function":
            return -1
        after: int | None = item + 1
        if self._worker:
            if item != self._current:
                return None
            after = self._next
        if after is None or not grouping.together(self._session.items, self._specs, item, after):
            return -1
        return after

    def _over(self, item: int) -> list[Snapshot]:
        """The snapshots, the narrowest first, that no test after *item* needs."""
        of = self._tree.of if self._tree is not None else {}
        chain = of[item].chain if item in of else []
        if not self._worker:
            return [one for one in chain if one.last == item]
        kept = of[self._next].chain if self._next in of else []
        return [one for one in chain if one not in kept]

    def next_in_runner(self, item: pytest.Item) -> pytest.Item | None:
        """The test that the runner itself will run after *item*, as far as it is known.

        A worker of xdist knows no further than the next test; it keeps the
        session's fixtures and nothing else.
        """
        if self._worker:
            session: Any = self._session
            return session  # type: ignore[no-any-return]
        for index in range(self._items[item] + 1, len(self._session.items)):
            if index not in self._specs:
                return self._session.items[index]
        return None

    def run(
        self, item: pytest.Item, nextitem: pytest.Item | None, *, log: bool = True
    ) -> list[pytest.TestReport]:
        """Run one attempt of *item*; give its reports.

        Args:
            log: whether to log the reports; those of subtests always are.
        """
        index = self._items[item]
        self._current = index
        self._next = self._items.get(nextitem) if nextitem is not None else None
        replay = Replay(item, log=log, properties=self.options.properties)
        self._replay = replay
        if index in self._failures:
            self._missing(replay, item, self._failures[index])
            return replay.reports
        if self._scheduler is None or self._lost is not None:
            replay.finish(_lost(self._lost or StageError("start the session", errno.EPIPE)))
            return replay.reports
        try:
            frames = self._scheduler.run(index)
            for kind, payload in frames:
                # A test process may send a frame of that name.
                if kind != "outcome" or not isinstance(payload, Outcome):
                    try:
                        replay.take(kind, payload)
                    except BaseException:
                        self._let_tear_down(replay, frames)
                        raise
                    continue
                # A test that had begun was isolated, and is not to be skipped for what came then.
                missing = payload.kind is Kind.SANDBOX_FAILED and not payload.wall
                if missing and self.options.missing == "skip":
                    error = StageError(payload.detail, payload.number, payload.path)
                    self._missing(replay, item, error)
                else:
                    self._exported += bool(payload.artifacts)
                    replay.finish(payload)
        except Lost as lost:
            self._lost = lost.error
            replay.finish(_lost(lost.error))
        return replay.reports

    def _let_tear_down(self, replay: Replay, frames: Iterator[tuple[str, Any]]) -> None:
        """The session ends amid a test: its fixtures are torn down as they would be here."""
        assert self._scheduler is not None
        warns = any(report.when == "call" for report in replay.reports)
        self._scheduler.hasten(_END_LIMIT)
        # What else it tells is of what would not have come to pass.
        with contextlib.suppress(Lost):
            for kind, payload in frames:
                if kind == "warning" and warns:
                    replay.take(kind, payload)

    def hand_on_warnings(self) -> None:
        """Hand on the warnings of the test that has run last: pytest does when all is over."""
        replay, self._replay = self._replay, None
        if replay is not None:
            replay.hand_on_warnings()

    def rerun(
        self, item: pytest.Item, nextitem: pytest.Item | None, *, log: bool
    ) -> list[pytest.TestReport]:
        """As `run`, warnings included, in the place of pytest's ``runtestprotocol``."""
        try:
            return self.run(item, nextitem, log=log)
        finally:
            self.hand_on_warnings()

    def _missing(self, replay: Replay, item: pytest.Item, error: StageError) -> None:
        from pytest_nsisolate.explain import explain  # noqa: PLC0415 -- only where something fails

        if self.options.missing == "skip":
            reason = f"can't be isolated here: {explain.one_line(error)}"
            replay.finish_with(skipped(item, reason), passed(item, "teardown"))
            return
        outcome = Outcome(Kind.SANDBOX_FAILED, error.errno, error.stage, error.path)
        refused = self._refused(self._items[item])
        if refused:
            placed = [(one, markers.source_of(item, self.options, one.key)) for one in refused]
            mode = _MODES[self.options.missing]
            outcome.refusal = explain.explain_refusal(error, placed, mode)
        replay.finish(outcome)


def _lost(error: StageError) -> Outcome:
    return Outcome(Kind.SANDBOX_FAILED, error.errno, error.stage, error.path)
