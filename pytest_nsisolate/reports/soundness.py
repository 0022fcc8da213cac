"""Check that a report that came over the wire is one that pytest's reporters can show.

What reporters, pytest's and others', raise for such a report is theirs then, and ends the run
as it does in plain pytest. What a test process has made up must not get so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from _pytest._code.code import (
    ExceptionChainRepr,
    ReprEntry,
    ReprEntryNative,
    ReprExceptionInfo,
    ReprFileLocation,
    ReprTraceback,
)
from _pytest.junitxml import xml_key

if TYPE_CHECKING:
    import pytest

_PHASES = ("setup", "call", "teardown")
#: Those of pytest, and the one of pytest-rerunfailures.
_OUTCOMES = ("passed", "failed", "skipped", "rerun")
#: Of a terminal's, and put there by pytest-xdist's controller for the worker it came from.
_NOT_TOLD = frozenset({"node"})


def check_report(report: pytest.TestReport) -> None:
    """Check that *report* is a sound report, and give it lists of its own.

    Raises:
        TypeError, ValueError: it is not.
    """
    # What is neither would count as no failure.
    if report.when not in _PHASES or report.outcome not in _OUTCOMES:
        raise ValueError(f"a report of the phase {report.when!r} with {report.outcome!r}")
    # Unpacked, so that what is no pair is noticed here and not by whoever reads the report.
    report.user_properties = [(name, value) for name, value in report.user_properties]
    report.sections = [(title, text) for title, text in report.sections]
    if not all(isinstance(word, str) for section in report.sections for word in section):
        raise TypeError("a section of a report that is no text")


def check_whole(report: pytest.TestReport, config: pytest.Config) -> None:
    """Check a report as `check_report` does, if all of its attributes came over the wire.

    Raises:
        TypeError, ValueError: it is no report that can be shown.
    """
    check_report(report)
    kind: Any = type(report)
    attributes = vars(report)
    # As attributes these would stand before the methods of that name.
    for name in [one for one in attributes if callable(getattr(kind, one, None))]:
        del attributes[name]
    for name in _NOT_TOLD & attributes.keys():
        del attributes[name]
    path, line, domain = report.location
    _be(str, path, domain, what="a location")
    _be((int, type(None)), line, what="a location")
    # Pytest itself counts with no other time.
    _be((int, float), attributes.get("duration", 0), what="a time")
    if "wasxfail" in attributes:
        _be(str, report.wasxfail, what="the reason of an expected failure")
    elif report.skipped:
        report.longrepr = _skip(report)
    elif report.failed and report.longrepr is None and config.stash.get(xml_key, None) is not None:
        report.longrepr = ""  # what junit's reporter needs
    _check_longrepr(report.longrepr)
    if hasattr(report, "context"):  # of a subtest
        _be(str, report.head_line, what="a subtest's name")


def _be(kind: Any, *values: object, what: str) -> None:
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"{what} that is {value!r:.80}")


def _skip(report: pytest.TestReport) -> tuple[str, int, str]:
    """Return where a test was skipped and why, which reporters take apart."""
    found: Any = report.longrepr
    if not isinstance(found, tuple):  # a plugin's own words, which some reporters choke on
        path, line, _ = report.location
        found = (path, (line or 0) + 1, str(found))
    path, line, reason = found
    _be(str, path, reason, what="where a test was skipped")
    _be((int, type(None)), line, what="where a test was skipped")
    return path, line, reason


def _check_longrepr(longrepr: Any) -> None:
    if not isinstance(longrepr, (ReprExceptionInfo, ExceptionChainRepr)):
        return  # pytest shows whatever it is as text
    chain = getattr(longrepr, "chain", ())
    for traceback, crash, description in chain:
        _check_traceback(traceback)
        _check_location(crash)
        _be((str, type(None)), description, what="a traceback")
    if not chain:
        _check_traceback(longrepr.reprtraceback)
        _check_location(longrepr.reprcrash)
    for title, text, separator in longrepr.sections:
        _be(str, title, text, separator, what="a section of a failure")
        if not separator:
            raise ValueError("a section of a failure without a separator")


def _check_location(where: ReprFileLocation | None) -> None:
    if where is not None:
        _be(str, where.path, where.message, what="where a test failed")
        _be(int, where.lineno, what="where a test failed")


def _check_traceback(traceback: ReprTraceback) -> None:
    _be(str, traceback.style, what="a traceback")
    _be((str, type(None)), traceback.extraline, what="a traceback")
    for entry in traceback.reprentries:
        _check_lines(entry.lines)
        if isinstance(entry, ReprEntryNative):
            continue
        _be(ReprEntry, entry, what="an entry of a traceback")
        _be(str, entry.style, what="an entry of a traceback")
        if entry.reprlocals is not None:
            _check_lines(entry.reprlocals.lines)
        if entry.reprfuncargs is not None:
            for name, _ in entry.reprfuncargs.args:
                _be(str, name, what="an argument")
        _check_location(entry.reprfileloc)


def _check_lines(lines: Any) -> None:
    _be((list, tuple), lines, what="the lines of a traceback")
    for line in lines:
        if not isinstance(line, str):
            raise TypeError("the lines of a traceback that are no text")
