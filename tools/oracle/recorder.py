"""A plugin for pytest's own tests: isolate the runs that they make, and record their outcomes.

The outer run stays as it is. ``NS_ORACLE_ADDOPTS`` becomes ``PYTEST_ADDOPTS`` for each run that
a test makes by pytester, in this process or in another; ``NS_ORACLE_OUT`` names the file that
gets a line of JSON for each outcome.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Set the options where pytester has just removed those of the outer run."""
    value: Any = yield
    options = os.environ.get("NS_ORACLE_ADDOPTS")
    if fixturedef.argname == "pytester" and options:
        value._monkeypatch.setenv("PYTEST_ADDOPTS", options)
    return value


class Recorder:
    """Writes down what became of each test."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if type(report) is not pytest.TestReport or (report.passed and report.when != "call"):
            return
        outcome = ("x" if hasattr(report, "wasxfail") else "") + report.outcome
        text = report.longreprtext[-4000:] if report.failed else ""
        with open(os.environ["NS_ORACLE_OUT"], "a", encoding="utf-8") as stream:
            stream.write(json.dumps([str(report.nodeid), f"{report.when} {outcome}", text]) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """Record in the controller alone."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(), "ns-oracle-recorder")
