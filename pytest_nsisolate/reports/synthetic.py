"""Make reports in the runner itself: a failure for how a test ended, a pass, a skip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from _pytest._code.code import (
    ReprEntryNative,
    ReprExceptionInfo,
    ReprFileLocation,
    ReprTraceback,
)
from _pytest.skipping import evaluate_xfail_marks, xfailed_key

from pytest_nsisolate.core.outcome import LEFT_TITLE, Kind, Outcome, left_text
from pytest_nsisolate.core.traceback_text import trim_trace

if TYPE_CHECKING:
    from collections.abc import Callable

#: Title of the section with the processes of a test that ran out of time.
RUNNING_TITLE = "processes at the timeout"


def passed(item: pytest.Item, when: str) -> pytest.TestReport:
    """Make a report for a phase of which no failure is known."""
    return _make(item, when, lambda: None)


def _make(item: pytest.Item, when: Any, function: Callable[[], None]) -> pytest.TestReport:
    call = pytest.CallInfo.from_call(function, when=when)
    report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    return report


def _where(item: pytest.Item) -> str:
    path, line, _ = item.location
    return f"{path}:{(line or 0) + 1}"


def _text(item: pytest.Item, outcome: Outcome) -> str:
    if outcome.refusal:
        return outcome.refusal
    if outcome.kind is Kind.SANDBOX_FAILED:
        from pytest_nsisolate.explain.explain import explain_failure  # noqa: PLC0415 -- only where something fails

        return f"{outcome.headline}\n{explain_failure(outcome)}"
    lines = [outcome.headline, f"{_where(item)}: {outcome.short}", outcome.advice]
    return "\n".join(filter(None, lines))


def longrepr_of(item: pytest.Item, outcome: Outcome, said: str = "") -> ReprExceptionInfo:
    """Make what a failed report shows for *outcome*; *said* is what the test's report said."""
    text = _text(item, outcome)
    line = (item.location[1] or 0) + 1
    crash = ReprFileLocation(str(item.path), line, outcome.headline)
    entry = ReprEntryNative([f"{one}\n" for one in text.splitlines()])
    longrepr = ReprExceptionInfo(ReprTraceback([entry], None, "native"), crash)
    if outcome.running:
        title = RUNNING_TITLE if outcome.kind is Kind.TIMED_OUT else "largest processes"
        longrepr.addsection(title, "\n".join(outcome.running))
    if outcome.trace:
        titles = {
            Kind.TIMED_OUT: "stacks at the timeout",
            Kind.OUT_OF_MEMORY: "stacks when memory ran short",
            Kind.TRUNCATED: "traceback",
        }
        title = titles.get(outcome.kind, "native traceback")
        longrepr.addsection(title, trim_trace(outcome.trace))
    if outcome.written:
        longrepr.addsection("written to the terminal", outcome.written)
    if said:
        longrepr.addsection("how the test failed", said)
    return longrepr


def failure(item: pytest.Item, when: str, outcome: Outcome) -> pytest.TestReport:
    """Make a failed report for *outcome*, an xfailed one if the test is marked so."""
    where = _where(item)
    text = _text(item, outcome)

    def fail() -> None:
        raise pytest.fail.Exception(text, pytrace=False)

    # On the item, as in the test process: the teardown's report shows it too.
    item.add_report_section(when, "stdout", outcome.out)
    item.add_report_section(when, "stderr", outcome.err)
    if next(item.iter_markers("xfail"), None) is not None:
        xfailed = evaluate_xfail_marks(item)
        if xfailed is not None:
            item.stash[xfailed_key] = xfailed
    report = _make(item, when, fail)
    if report.failed:
        report.longrepr = longrepr_of(item, outcome)
    elif hasattr(report, "wasxfail"):
        report.wasxfail = (
            f"reason: {report.wasxfail}; pytest-nsisolate reason: {where}: {outcome.short}"
        )
    if outcome.left:
        report.sections.append((LEFT_TITLE, left_text(outcome.left)))
    return report


def skipped(item: pytest.Item, reason: str) -> pytest.TestReport:
    """Make the report of a skip in the setup phase."""

    def skip() -> None:
        raise pytest.skip.Exception(reason)

    report = _make(item, "setup", skip)
    line = item.location[1]
    report.longrepr = (str(item.path), (line or 0) + 1, f"Skipped: {reason}")
    return report
