"""What other plugins note in memory while a test runs, as data: it has to reach the runner.

Everything here goes by what is loaded; nothing is imported for it. Names of other
plugins that are not public are used; where one is gone, nothing is carried.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

_SCENARIO = "$ns_scenario"


def _scenarios() -> Any:
    return getattr(sys.modules.get("pytest_bdd.reporting"), "test_report_context_registry", None)


def _scenario(report: pytest.TestReport) -> Any:
    registry = _scenarios()
    # A subtest's report can't be a key, and is of no scenario.
    return registry.get(report) if registry and isinstance(report, Hashable) else None


def noted(report: pytest.TestReport) -> bool:
    """Whether plugins know something of *report* that is not in it."""
    return _scenario(report) is not None


def add_to_report(report: pytest.TestReport, data: dict[str, Any]) -> None:
    """Add to the serialised *report* what plugins know of it by its identity.

    pytest-bdd notes the scenario and its steps so, for its reporters.
    """
    context = _scenario(report)
    if context is not None:
        data[_SCENARIO] = [context.name, context.scenario]


def note_report(report: pytest.TestReport, data: dict[str, Any]) -> None:
    """Let plugins know of a rebuilt *report* what `add_to_report` gave."""
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
    """What pytest-benchmark measured in this process since the last call."""
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
    """Give the runner's pytest-benchmark what `take_benchmarks` gave."""
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
