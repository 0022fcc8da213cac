"""Make the parts of a session that its tests need, from what they ask for and pytest's options."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_nsisolate.cgroups import always_on
from pytest_nsisolate.core.linux.syscalls import getcwd
from pytest_nsisolate.files.artifact_policy import Retention, numbers
from pytest_nsisolate.sandbox.operations.plan import overlays_of

from . import pytest_private
from .options import AUTO

if TYPE_CHECKING:
    import pytest

    from pytest_nsisolate.cgroups.budget import Budgets
    from pytest_nsisolate.files.write_audit import Witness
    from pytest_nsisolate.network.topology.per_test import Topologies
    from pytest_nsisolate.network.uplink.addresses import Ranges
    from pytest_nsisolate.network.uplink.session import Network
    from pytest_nsisolate.runner.kept.policy import Keeping
    from pytest_nsisolate.sandbox.operations.plan import Plan
    from pytest_nsisolate.spec.spec import Spec

    from .options import Options

#: Options by which a debugger begins in any test, and their names in pytest's configuration.
_DEBUGGERS = (("--pdb", "usepdb"), ("--trace", "trace"))
#: The directory for artifacts, in pytest's base temporary directory.
FOLDER = "nsisolate-artifacts"


class Jobs(NamedTuple):
    """How many test processes run in parallel.

    Attributes:
        header: what the session's header says of it.
        debugger: the option by which a debugger begins in any test, if there is one.
    """

    number: int
    header: list[str]
    debugger: str | None


def choose_jobs(config: pytest.Config, options: Options, specs: dict[int, Spec]) -> Jobs:
    """Choose it from the options, the machine and the tests' limits."""
    debugger = next(
        (option for option, name in _DEBUGGERS if config.getoption(name, default=False)), None
    )
    if debugger is not None:
        header = []
        if options.jobs != 1:
            asked = "auto" if options.jobs == AUTO else options.jobs
            one = f"{debugger} runs one test at a time"
            header = [f"nsisolate: {one}: --ns-jobs is 1 instead of {asked}"]
        return Jobs(1, header, debugger)
    if options.jobs != AUTO:
        return Jobs(options.jobs, [], None)
    from pytest_nsisolate.runner import job_count  # noqa: PLC0415 -- only where it is asked for

    worker: Any = getattr(config, "workerinput", {})
    limits = [spec.memory for spec in specs.values() if spec.memory is not None]
    number, reason = job_count.choose(
        workers=int(worker.get("workercount", 1)), largest=max(limits, default=None)
    )
    return Jobs(number, [f"nsisolate: --ns-jobs auto is {number} ({reason})"], None)


def make_budgets(specs: dict[int, Spec], companions: list[int], *, sandbox: bool) -> Budgets | None:
    """Make what holds tests to their limits; return None if they have none.

    Args:
        companions: processes that move to the session's control group with the runner.
        sandbox: whether the tests have sandboxes.
    """
    grouped = always_on.way(sandbox=sandbox) is always_on.Way.GROUP
    most = always_on.processes() if grouped else None
    if most is None and not any(spec.limits or spec.counters for spec in specs.values()):
        return None
    from pytest_nsisolate.cgroups.budget import Budgets  # noqa: PLC0415 -- only where a test has limits

    return Budgets(specs, companions, most=most)


def make_network(specs: dict[int, Spec], ranges: Ranges | None, jobs: int) -> Network | None:
    """Make what connects sandboxes to the host; return None if no test asks for it."""
    if not any(spec.outward for spec in specs.values()):
        return None
    from pytest_nsisolate.network.uplink.addresses import Ranges  # noqa: PLC0415 -- as above
    from pytest_nsisolate.network.uplink.session import Network  # noqa: PLC0415 -- as above

    return Network(specs, ranges or Ranges(), jobs)


def make_topologies(specs: dict[int, Spec], basetemp: str | None) -> Topologies | None:
    """Make the networks of tests; return None if no test has one.

    The modules that build them are imported here, once.
    """
    if not any(spec.topology or spec.pcap for spec in specs.values()):
        return None
    from pytest_nsisolate.network.topology.per_test import Topologies  # noqa: PLC0415 -- as above

    return Topologies(specs, basetemp)


def make_retention(
    session: pytest.Session,
    specs: dict[int, Spec],
    *,
    basetemp: str | None,
    options: Options,
    overlays: dict[int, dict[int, str]],
) -> Retention:
    """Decide what is brought out of which test's sandbox, and to where."""
    config, items = session.config, session.items
    folder = options.artifacts_dir
    if not folder:
        # One directory for all workers of xdist, whose own are below the controller's.
        above = basetemp
        if basetemp is not None and hasattr(config, "workerinput"):
            above = os.path.dirname(basetemp)
        folder = os.path.join(above or str(config.rootpath), FOLDER)
    names = (
        (index, item.name)
        for index, item in enumerate(items)
        if not {"tmp_path", "tmpdir"}.isdisjoint(getattr(item, "fixturenames", ()))
    )
    return Retention(
        basetemp=basetemp,
        policy="all" if options.keep == "all" else pytest_private.retention_policy(config),
        patterns=options.artifacts,
        folder=folder,
        directory=getcwd(),
        nodeids={index: str(items[index].nodeid) for index in specs},
        numbers=numbers(names),
        overlays=overlays,
    )


def make_keeping(
    session: pytest.Session, specs: dict[int, Spec], options: Options
) -> Keeping | None:
    """Make what decides which sandboxes outlive the session; return None if none does."""
    if options.keep == "none":
        return None
    from pytest_nsisolate.runner.kept.policy import MOST, Keeping  # noqa: PLC0415 -- only where it is asked for

    worker: Any = getattr(session.config, "workerinput", {})
    return Keeping(
        options.keep,
        limit=options.keep_limit,
        most=max(1, MOST // int(worker.get("workercount", 1))),
        nodeids={index: str(session.items[index].nodeid) for index in specs},
    )


def make_witness(
    config: pytest.Config, specs: dict[int, Spec], basetemp: str | None
) -> Witness | None:
    """Make what records the attempts of hermetic tests; return None if there are no such tests."""
    if all(spec.profile is None for spec in specs.values()):
        return None
    from pytest_nsisolate.files.needed_paths import visible  # noqa: PLC0415 -- as above
    from pytest_nsisolate.files.write_audit import Witness  # noqa: PLC0415 -- as above

    from .plans import paths_needed  # noqa: PLC0415 -- only where a test has a profile

    return Witness(visible(paths_needed(config)), basetemp)


def overlays_by_item(
    specs: dict[int, Spec], plans: list[Plan], which: dict[int, int]
) -> dict[int, dict[int, str]]:
    """Return, for tests with a profile, the overlays that show what they wrote."""
    found = {number: overlays_of(plan) for number, plan in enumerate(plans)}
    return {
        item: found[number] for item, number in which.items() if specs[item].profile is not None
    }
