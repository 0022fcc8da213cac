"""One session's isolated tests: start what they need, run them one by one, and end it all.

Order of a session: `Isolation.of` when collection is done, `start_keeper` at once, so that the
keeper comes up while the rest is imported, `start` when the tests begin, `run` for each attempt
of a test, `close` at the end.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core.linux.syscalls import LINUX, StageError
from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.reports import coverage as coverage_data
from pytest_nsisolate.reports.replay import Replay
from pytest_nsisolate.reports.synthetic import passed, skipped
from pytest_nsisolate.runner.event_loop import EventLoop
from pytest_nsisolate.runner.processes import Parts
from pytest_nsisolate.runner.scheduler import Scheduler
from pytest_nsisolate.runner.servers.helpers import Helpers, Lost
from pytest_nsisolate.testprocess.body import PytestBody
from pytest_nsisolate.testprocess.timeout import STACK_SIGNAL, TIMEOUT_SIGNAL

from . import grouping, markers, pytest_private, xdist
from .missing import Missing
from .order import Order
from .plans import Plans, describe_part, describe_plans
from .session_parts import (
    Jobs,
    choose_jobs,
    make_budgets,
    make_keeping,
    make_network,
    make_retention,
    make_topologies,
    make_witness,
    overlays_by_item,
)
from .starters import Starters

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from pytest_nsisolate.cgroups.budget import Budgets
    from pytest_nsisolate.files.artifact_policy import Retention
    from pytest_nsisolate.network.topology.per_test import Topologies
    from pytest_nsisolate.network.uplink.session import Network
    from pytest_nsisolate.runner.kept.policy import Keeping
    from pytest_nsisolate.runner.servers.template_client import Template
    from pytest_nsisolate.runner.timeline import Watch
    from pytest_nsisolate.sandbox.client import Keeper
    from pytest_nsisolate.sandbox.keeper_start import KeeperProcess
    from pytest_nsisolate.sandbox.operations.plan import Plan
    from pytest_nsisolate.spec.spec import Spec

    from .options import Options

#: How long a test may take to end once the session has, in seconds.
_END_LIMIT = 5.0


# One class: the life of a session, each step of which is called by a hook.
class Isolation:
    """See the module.

    Args:
        specs: of the isolated tests, by index of the item.
        watch: records what ran when, where a report asks for it.
    """

    def __init__(
        self,
        session: pytest.Session,
        options: Options,
        specs: dict[int, Spec],
        watch: Watch | None = None,
    ) -> None:
        self._session = session
        self._config = session.config
        self.options = options
        self._specs = specs
        self._watch = watch
        self._jobs = Jobs(1, [], None)
        self._missing = Missing(session.items, options, specs)
        self._tree: grouping.Tree | None = None
        if any(spec.snapshot is not None for spec in specs.values()):
            self._tree = grouping.tree(session.items, specs)
        self._order = Order(session, specs, self._missing, self._tree)
        self._starters = Starters(specs)
        self._scheduler: Scheduler | None = None
        self._replay: Replay | None = None  # of the test that has run last
        self._lost: StageError | None = None
        self._budgets: Budgets | None = None
        self._network: Network | None = None
        self._topologies: Topologies | None = None
        self._retention: Retention | None = None
        self._keeping: Keeping | None = None
        self._exported = 0  # tests with artifacts
        self._plans: list[Plan] = []
        self._shown: dict[int, int] = {}  # the plan that each test is to run by

    @classmethod
    def of(
        cls, session: pytest.Session, options: Options, watch: Watch | None = None
    ) -> Isolation | None:
        """Make the isolation of this session; return None if no test asks for it.

        Raises:
            pytest.UsageError: what tests ask for is wrong; names them all.
        """
        specs = markers.specs_of(session, options)
        return cls(session, options, specs, watch) if specs else None

    def isolates(self, item: pytest.Item) -> bool:
        """Return whether *item* runs in a process of its own."""
        return self._order.isolates(item)

    def next_in_runner(self, item: pytest.Item) -> pytest.Item | None:
        """Return the test that the runner itself will run after *item*, as far as it is known."""
        return self._order.next_in_runner(item)

    @property
    def header(self) -> list[str]:
        """What the session's header has to say: what was chosen, and what is missing here."""
        return self._jobs.header + self._missing.lines()

    # start

    def start_keeper(self, process: KeeperProcess | None) -> None:
        """Bring the keeper up, and meanwhile make what connects and limits the tests.

        Args:
            process: its, if it could be started; this owns it.
        """
        self._jobs = choose_jobs(self._config, self.options, self._specs)
        if not LINUX:
            self._missing.add(self._specs, StageError("unshare", errno.ENOSYS))
            return
        # Before the keeper makes namespaces: in cgroup v2 this process has to move first.
        self._set_budgets([] if process is None else [process.pid])
        try:
            self._starters.start_first_keeper(process)
        except StageError as error:
            if self.options.missing == "fork" and self._budgets is None:
                self._set_budgets([], sandbox=False)
            self._missing.add(self._specs, error)
        else:
            self._network = make_network(self._specs, self.options.ranges, self._jobs.number)
            if self._network is not None:
                self._missing.add_each(self._network.errors)
        self._topologies = make_topologies(self._specs, self._basetemp())
        if self._topologies is not None:
            self._missing.add_each(self._topologies.errors)

    def _set_budgets(self, companions: list[int], *, sandbox: bool = True) -> None:
        self._budgets = make_budgets(self._specs, companions, sandbox=sandbox)
        self._missing.limit_by(self._budgets)
        if self._budgets is not None:
            self._missing.add_each(self._budgets.errors)

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
        if self._order.all_isolated:
            self._starters.spare_collections()

    def _set_up(self) -> None:
        basetemp = self._basetemp()
        for item in self._specs:
            # Worked out once, here, and not again in each fork.
            _ = self._session.items[item].location
        keeper = self._starters.keeper
        if keeper is None and self.options.missing != "fork":
            self._apply_missing()
            return
        numbers: dict[int, int] = {}
        outer: list[int] = []
        if keeper is not None:
            numbers, outer = self._make_plans(keeper, basetemp)
        self._retention = make_retention(
            self._session,
            self._specs,
            basetemp=basetemp,
            options=self.options,
            overlays=overlays_by_item(self._specs, self._plans, numbers),
        )
        self._keeping = make_keeping(self._session, self._specs, self.options)
        self._scheduler = self._make_scheduler(numbers, outer)
        failed = self._scheduler.prove()
        for number, error in failed.items():
            self._missing.add([item for item, plan in numbers.items() if plan == number], error)
        self._apply_missing()

    def _make_scheduler(self, numbers: dict[int, int], outer: list[int]) -> Scheduler:
        """Start keeper and template, and give them to a scheduler.

        Args:
            numbers: of each test's plan, by index of the item.
            outer: of the plans, those that the keeper builds itself.
        """
        loop = EventLoop(
            Helpers(self._starters.start_keeper, self._start_template, outer),
            Parts(
                plans=self._plans,
                failures=lambda: self._session.testsfailed,
                budgets=self._budgets,
                network=self._network,
                watch=self._watch,
                retention=self._retention,
                keeping=self._keeping,
            ),
            timeout_signal=TIMEOUT_SIGNAL,
            stack_signal=STACK_SIGNAL,
        )
        return Scheduler(
            loop=loop,
            specs=self._specs,
            plans=numbers,
            jobs=self._jobs.number,
            upcoming=self._order.upcoming,
            snapshots=self._tree.of if self._tree is not None else {},
            over=self._order.over,
            follows=self._order.follows,
            acknowledge=self._direct,
            interactive=self._jobs.debugger is not None,
        )

    def _apply_missing(self) -> None:
        """Handle tests that can't be isolated as --ns-missing says."""
        for line in self._missing.lines():
            pytest_private.write_line(self._config, line)  # what became known after the header
        if self.options.missing == "run":
            self._order.take_out(self._missing.take_runnable())
        elif self.options.missing == "fork" and self._scheduler is not None:
            self._scheduler.without_sandbox(self._missing.take_runnable())

    def _make_plans(self, keeper: Keeper, basetemp: str | None) -> tuple[dict[int, int], list[int]]:
        """Plan the sandboxes.

        Returns:
            The number of each test's plan, by index of the item; of the plans, those that the
            keeper builds itself.
        """
        plans = Plans(self._config, keeper.maps, basetemp)
        topologies = self._topologies
        numbers = {
            item: plans.number(
                spec, hosts=topologies.hosts_name(item) if topologies is not None else None
            )
            for item, spec in self._specs.items()
        }
        self._shown = dict(numbers)
        if self._tree is not None:
            plans.settle(self._tree.snapshots)
            for item, snapshot in self._tree.of.items():
                self._shown[item] = snapshot.item_plan
        self._plans = plans.all
        self._starters.plan(plans.all, plans.outer, topologies)
        return numbers, plans.outer

    def _start_template(self, keeper: Keeper | None, own: list[int]) -> Template:
        """Fork the template.

        Args:
            own: descriptors of the event loop that are to be closed there.
        """
        if self._scheduler is not None:
            self._scheduler.take_keys_back()
        close = list(own)
        for part in (self._budgets, self._network):
            if part is not None:
                close += part.descriptors()
        return self._starters.start_template(keeper, close, self._make_body)

    def _make_body(self) -> PytestBody:
        """Make what test processes run."""
        return PytestBody(
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

    @property
    def _direct(self) -> bool:
        """Whether a test process writes to the terminal itself."""
        # Without the plugin of that name nothing is captured either.
        passes = self._config.getoption("capture", default="no") in ("no", "tee-sys")
        return self._jobs.number == 1 and (passes or self._jobs.debugger is not None)

    def _basetemp(self) -> str | None:
        factory: Any = getattr(self._config, "_tmp_path_factory", None)
        return None if factory is None else str(factory.getbasetemp())

    def describe(self) -> list[str]:
        """Describe the plans, and what else is made for tests, one line per step."""
        names = [item.nodeid for item in self._session.items]
        lines = describe_plans(self._plans, self._shown, names)
        parts = (
            ("control groups", self._budgets),
            ("network", self._network),
            ("topology", self._topologies),
        )
        for title, part in parts:
            if part is not None:
                lines += describe_part(title, part.describe, self._specs, names)
        return lines

    # running

    def run(
        self, item: pytest.Item, nextitem: pytest.Item | None, *, log: bool = True
    ) -> list[pytest.TestReport]:
        """Run one attempt of *item*; give its reports.

        Args:
            log: whether to log the reports; those of subtests always are.
        """
        index = self._order.begin(item, nextitem)
        replay = Replay(item, log=log, properties=self.options.properties)
        self._replay = replay
        error = self._missing.error(index)
        if error is not None:
            self._report_missing(replay, item, index, error)
            return replay.reports
        if self._scheduler is None or self._lost is not None:
            error = self._lost or StageError("start the session", errno.EPIPE)
            replay.finish(Outcome.failed(error))
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
                    self._report_missing(replay, item, index, error)
                else:
                    self._exported += bool(payload.artifacts)
                    replay.finish(payload)
        except Lost as lost:
            self._lost = lost.error
            replay.finish(Outcome.failed(lost.error))
        return replay.reports

    def _let_tear_down(self, replay: Replay, frames: Iterator[tuple[str, Any]]) -> None:
        """Let a test tear down its fixtures when the session ends in the middle of it."""
        assert self._scheduler is not None
        warns = any(report.when == "call" for report in replay.reports)
        self._scheduler.hasten(_END_LIMIT)
        # What else it sends is of what would not have come to pass.
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
        """Run a test as `run` does, warnings included, in place of pytest's ``runtestprotocol``."""
        try:
            return self.run(item, nextitem, log=log)
        finally:
            self.hand_on_warnings()

    def _report_missing(
        self, replay: Replay, item: pytest.Item, index: int, error: StageError
    ) -> None:
        """Report a test that can't be isolated, and is not run without a sandbox."""
        if self.options.missing != "skip":
            replay.finish(self._missing.outcome(index, error))
            return
        from pytest_nsisolate.explain.explain import one_line  # noqa: PLC0415 -- only where something fails

        reason = f"can't be isolated here: {one_line(error)}"
        replay.finish_with(skipped(item, reason), passed(item, "teardown"))

    # end

    def close(self) -> None:
        """End what runs; nothing of the session is left."""
        self._starters.resume_collections()
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
        self._starters.close()
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
