"""Carry what other plugins, and pytest's own, note in memory from the test process to the runner.

One function of each pair takes the data in the test process, the other puts it in the
runner. Imports none of these plugins: it uses those that pytest has loaded. It uses
private names; where one is gone, nothing is carried.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

_SCENARIO = "$ns_scenario"
#: Where pytest-rerunfailures keeps its notes on an item.
_RERUN_STATE = ("_test_failed_statuses", "_terminal_errors", "_test_xfailed")


def _scenarios() -> Any:
    return getattr(sys.modules.get("pytest_bdd.reporting"), "test_report_context_registry", None)


def _scenario(report: pytest.TestReport) -> Any:
    registry = _scenarios()
    # A subtest's report can't be a key, and belongs to no scenario.
    return registry.get(report) if registry and isinstance(report, Hashable) else None


def noted(report: pytest.TestReport) -> bool:
    """Return whether a plugin has noted something about *report* outside of it."""
    return _scenario(report) is not None


def add_to_report(report: pytest.TestReport, data: dict[str, Any]) -> None:
    """Add to the serialised *report* what plugins have noted under its identity.

    pytest-bdd notes the scenario and its steps there, for its reporters.
    """
    context = _scenario(report)
    if context is not None:
        data[_SCENARIO] = [context.name, context.scenario]


def note_report(report: pytest.TestReport, data: dict[str, Any]) -> None:
    """Note for plugins under the rebuilt *report* what `add_to_report` took."""
    given = data.get(_SCENARIO)
    registry = _scenarios()
    if given is not None and registry is not None:
        name, scenario = given
        module: Any = sys.modules["pytest_bdd.reporting"]
        registry[report] = module.ReportContext(scenario=scenario, name=name)


def _benchmarks(config: pytest.Config) -> list[Any]:
    found: list[Any] = getattr(getattr(config, "_benchmarksession", None), "benchmarks", [])
    return found


def take_benchmarks(config: pytest.Config) -> list[dict[str, Any]]:
    """Take what pytest-benchmark measured in this process since the last call."""
    found = _benchmarks(config)
    taken = []
    for one in found:
        profile: Any = getattr(one, "cprofile_stats", None)
        taken.append(
            {
                "about": one.as_dict(stats=False),
                "iterations": one.iterations,
                "error": one.has_error,
                "rounds": one.stats.data,
                "profile": [[*key, *value[:4]] for key, value in profile.stats.items()]
                if profile
                else [],
            }
        )
    found.clear()
    return taken


def put_benchmarks(item: pytest.Item, taken: list[dict[str, Any]]) -> None:
    """Add to the runner's pytest-benchmark what `take_benchmarks` took."""
    module: Any = sys.modules.get("pytest_benchmark.stats")
    if module is None:
        return
    call: Any = getattr(item, "callspec", None)
    for one in taken:
        about, profile = one["about"], one["profile"]
        fixture = SimpleNamespace(
            name=about["name"],
            fullname=about["fullname"],
            group=about["group"],
            param=about["param"],
            params=call.params if call is not None else None,
            extra_info=about["extra_info"],
            has_error=one["error"],
            cprofile_stats=SimpleNamespace(
                stats={(row[0], row[1], row[2]): (*row[3:7], {}) for row in profile}
            )
            if profile
            else None,
        )
        measured = module.Metadata(fixture, one["iterations"], about["options"])
        measured.stats.data = one["rounds"]
        _benchmarks(item.config).append(measured)


def _subtests(item: pytest.Item) -> tuple[Any, Any]:
    module: Any = sys.modules.get("_pytest.subtests")  # pytest 9
    counts = item.config.stash.get(module.failed_subtests_key, None) if module else None
    return counts, getattr(item, "id", item.nodeid)


def failed_subtests(item: pytest.Item) -> int:
    """Count the subtests that failed in this process. The test itself fails for them."""
    counts, key = _subtests(item)
    return counts[key] if counts is not None and key in counts else 0


def count_failed_subtests(item: pytest.Item, count: int) -> None:
    """Put in the runner what `failed_subtests` returned in the test process."""
    counts, key = _subtests(item)
    if counts is not None:
        counts[key] = int(count)


def restore_subtest(report: pytest.TestReport, data: dict[str, Any]) -> None:
    """Restore a subtest's parameters, which pytest makes text once more in the runner."""
    context: Any = getattr(report, "context", None)
    given = data.get("_subtest.context")
    if context is not None and given is not None and hasattr(context, "kwargs"):
        object.__setattr__(context, "kwargs", given["kwargs"])


def reruns_handles(item: pytest.Item) -> bool:
    """Return whether pytest-rerunfailures will run the protocol of *item*."""
    module: Any = sys.modules.get("pytest_rerunfailures")
    if module is None or not item.config.pluginmanager.has_plugin("rerunfailures"):
        return False
    excluded = getattr(module, "_is_rerun_path_excluded", None)
    if excluded is not None and excluded(item):
        return False
    return module.get_reruns_count(item) is not None


def reruns_state(item: pytest.Item) -> dict[str, Any]:
    """Take what pytest-rerunfailures noted on the item in the test process."""
    return {
        name: getattr(item, name)
        for name in _RERUN_STATE
        if isinstance(getattr(item, name, 0), dict)
    }


def restore_reruns_state(item: pytest.Item, state: dict[str, Any]) -> None:
    """Put on the runner's item what `reruns_state` took."""
    for name in _RERUN_STATE:
        if name in state or name == _RERUN_STATE[0]:
            setattr(item, name, state.get(name, {}))
    for name in ("_rerun_condition_excinfos", "_rerun_condition_results"):
        setattr(item, name, {})
