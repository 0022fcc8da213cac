"""What of a session's tests is kept, made out of what pytest was told."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core.syscalls import getcwd
from pytest_nsisolate.files.artifact_policy import Retention, numbers
from pytest_nsisolate.sandbox.operations.plan import overlays_of

from . import pytest_private

if TYPE_CHECKING:
    import pytest

    from pytest_nsisolate.files.write_audit import Witness
    from pytest_nsisolate.runner.kept.policy import Keeping
    from pytest_nsisolate.sandbox.operations.plan import Plan
    from pytest_nsisolate.spec.spec import Spec

    from .options import Options

#: The directory for artifacts, in pytest's base temporary directory.
FOLDER = "nsisolate-artifacts"


def make_retention(
    session: pytest.Session,
    specs: dict[int, Spec],
    *,
    basetemp: str | None,
    options: Options,
    overlays: dict[int, dict[int, str]],
) -> Retention:
    """What is brought out of which test's sandbox, and to where."""
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
    """What says which sandboxes outlive the session; None if none is to."""
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
    """Who takes down what hermetic tests try; None if there are no such tests."""
    if all(spec.profile is None for spec in specs.values()):
        return None
    from pytest_nsisolate.files.needed_paths import visible  # noqa: PLC0415 -- as above
    from pytest_nsisolate.files.write_audit import Witness  # noqa: PLC0415 -- as above

    from .plans import paths_needed  # noqa: PLC0415 -- only where a test has a profile

    return Witness(visible(paths_needed(config)), basetemp)


def overlays_by_item(
    specs: dict[int, Spec], plans: list[Plan], which: dict[int, int]
) -> dict[int, dict[int, str]]:
    """Of tests with a profile: the overlays that tell what they wrote."""
    found = {number: overlays_of(plan) for number, plan in enumerate(plans)}
    return {
        item: found[number] for item, number in which.items() if specs[item].profile is not None
    }
