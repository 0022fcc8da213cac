"""Turn the frames of an isolated test into reports, and hand them to pytest in the runner."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from types import FunctionType
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.junitxml import xml_key

from pytest_nsisolate.core.outcome import (
    BROUGHT_TITLE,
    KEPT_TITLE,
    LEFT_TITLE,
    WRITTEN_TITLE,
    Kind,
    Outcome,
    left_of,
    left_text,
)

from . import coverage as coverage_data
from . import other_plugins
from .brief import BRIEF, restored
from .serialise import rebuild_report, rebuild_warning, share
from .soundness import check_report
from .synthetic import RUNNING_TITLE, failure, longrepr_of, passed

if TYPE_CHECKING:
    from collections.abc import Callable

#: How much of what a test wrote to the terminal its failure shows, in characters.
_WRITTEN_LIMIT = 1 << 18
#: Limits of a control group.
_LIMITS = (Kind.OUT_OF_MEMORY, Kind.TOO_MANY_PROCESSES)
#: Endings after which there may be a report of each phase.
_TOLD = (Kind.TIMED_OUT, *_LIMITS)
#: Of pytest's `pytest_warning_recorded`.
_STAGES = ("config", "collect", "runtest")


# One class: it has one method for each kind of frame.
class Replay:
    """Hands the frames of one attempt to the hooks of the runner.

    Args:
        item: the test.
        log: whether to call ``pytest_runtest_logreport``; else the reports are
            only collected, for a plugin that logs them itself.
        properties: whether to add the outcome and its figures to ``user_properties``.
    """

    def __init__(self, item: pytest.Item, *, log: bool, properties: bool = False) -> None:
        self._item = item
        self._config = item.config
        self._hook: Any = item.ihook
        self._log = log
        self._properties = properties
        self.reports: list[pytest.TestReport] = []
        self._teardown: pytest.TestReport | None = None
        self._latest: Any = None
        self._keywords: dict[str, Any] | None = None  # of the last brief report
        self._failed = False
        self._broken: Outcome | None = None
        self._exceeded: Outcome | None = None
        self._running: list[str] = []
        self._counted = 0  # `Outcome.number` of the last that a report answers for
        self._written = ""
        self.end: dict[str, Any] = {}
        self._warnings: list[dict[str, Any]] = []
        self._raised: pytest.ExceptionInfo[BaseException] | None = None  # for a subtest's report
        self._handlers: dict[str, Callable[[Any], Callable[[], object] | None]] = {
            "report": self._take_report,
            "warning": self._take_warning,
            "write": self._take_write,
            "output": self._take_output,
            "xml attributes": self._take_xml_attributes,
            "too long": self._take_too_long,
            "failed subtests": self._take_failed_subtests,
            "coverage": coverage_data.put,
            "benchmarks": lambda taken: other_plugins.put_benchmarks(item, taken),
            "end": self._take_end,
            "debugger": self._take_debugger,
            "finalised": self._take_finalised,
            "snapshot over": self._take_snapshot_over,
            # of the scheduler, among the frames
            "exceeded": self._take_exceeded,
            "ran": self._take_ran,
        }

    def take(self, kind: str, payload: Any) -> None:
        """Take one frame, and hand on to pytest what is in it.

        Raises:
            BaseException: what a hook that it is handed to raises: pytest is to see it.
        """
        try:
            hand_on = self._handlers[kind](payload)
        # That nothing but a plugin raises, which reads its own reports.
        except (pytest.UsageError, pytest.exit.Exception):
            raise
        # Whatever a forged frame makes of pytest's own code: it is this test's failure.
        except Exception as error:  # noqa: BLE001 -- as said above
            if self._broken is None:
                text = f"a frame makes no sense: {type(error).__name__}: {error}"
                self._broken = Outcome(Kind.TRUNCATED, detail=text)
            return
        if hand_on is not None:
            hand_on()

    # Each reads a frame of its kind, and gives what hands it on, if anything does.

    def _take_report(self, data: dict[str, Any]) -> Callable[[], object] | None:
        report = self._rebuild(data)
        self._written = ""
        self._latest = report
        self._failed = self._failed or report.failed
        if self._running and type(report) is pytest.TestReport and report.failed:
            report.sections.append((RUNNING_TITLE, "\n".join(self._running)))
            self._running = []
        if self._exceeded is not None and type(report) is pytest.TestReport:
            self._blame(report, self._exceeded)
        if type(report) is not pytest.TestReport:
            return functools.partial(self._log_subtest, report)
        if report.when == "teardown":
            self._teardown = report
            return None
        return functools.partial(self._hand_on, report)

    def _log_subtest(self, report: pytest.TestReport) -> None:
        """Log it; in plain pytest that is a part of the test, which fails for what is raised."""
        try:
            self._hook.pytest_runtest_logreport(report=report)
        except pytest.exit.Exception:
            raise
        except Exception:  # noqa: BLE001 -- raised in the test, as far as that can be
            self._raised = pytest.ExceptionInfo.from_current()

    def _rebuild(self, data: dict[str, Any]) -> pytest.TestReport:
        if BRIEF in data:
            report = restored(data, self._item, self._keywords)
            check_report(report)
            self._keywords = dict(report.keywords)
            return report
        report = rebuild_report(self._config, data)
        # An item may have a nodeid of its own beside the one that pytest gave it.
        if report.nodeid not in (self._item.nodeid, str(getattr(self._item, "id", ""))):
            raise ValueError(f"a report of {report.nodeid!r}")
        share(report, self._item)
        return report

    def _take_exceeded(self, outcome: Outcome) -> None:
        """Note that a limit was reached: the report of the phase in which it was fails for it."""
        if not isinstance(outcome, Outcome):
            raise TypeError("a test process says that it reached a limit")
        self._exceeded = outcome

    def _take_ran(self, processes: list[str]) -> None:
        """Note the processes that ran at the timeout: a section of the report that fails for it."""
        self._running = [str(one) for one in processes]

    def _blame(self, report: pytest.TestReport, outcome: Outcome) -> None:
        # A setup that passed was over before; what counted already is no fault of this phase.
        if outcome.number <= self._counted or (report.when == "setup" and report.passed):
            return
        self._counted = outcome.number
        if hasattr(report, "wasxfail"):
            return  # what is expected to fail has done so
        said = report.longreprtext if report.failed else ""
        report.outcome = "failed"
        report.longrepr = longrepr_of(self._item, outcome, said)

    def _hand_on(self, report: pytest.TestReport) -> None:
        self._item.user_properties[:] = report.user_properties
        if self._raised is not None and report.when == "call":
            if report.passed:
                report.outcome = "failed"
                report.longrepr = self._item.repr_failure(self._raised)
            self._raised = None
        self.reports.append(report)
        if self._log:
            self._hook.pytest_runtest_logreport(report=report)

    def _take_warning(self, data: dict[str, Any]) -> None:
        location = data["location"]
        if location is not None:
            path, line, function = location
            location = (str(path), int(line), str(function))
        if data["when"] not in _STAGES:
            raise ValueError(f"a warning of the stage {data['when']!r}")
        warning = {
            "warning_message": rebuild_warning(data),
            "when": data["when"],
            "nodeid": str(data["nodeid"]),
            "location": location,
        }
        self._warnings.append(warning)

    def hand_on_warnings(self) -> None:
        """Hand on the warnings, when all else is over, as pytest does."""
        warnings, self._warnings = self._warnings, []
        for one in warnings:
            self._hook.pytest_warning_recorded.call_historic(kwargs=one)

    def _take_write(self, text: str) -> Callable[[], object]:
        self._written = (self._written + text)[-_WRITTEN_LIMIT:]
        return functools.partial(self._write, text)

    def _write(self, text: str) -> None:
        terminal: Any = self._config.pluginmanager.getplugin("terminalreporter")
        if terminal is not None:
            terminal._tw.write(text, flush=True)

    def _take_debugger(self, method: str) -> Callable[[], object]:
        """Make way for a test that will write to the terminal: pending output comes first."""
        if method == "post_mortem" and self._latest is not None:
            self._latest._pdbshown = True  # so pytest won't show the failure once more
        return functools.partial(self._make_way, method)

    def _make_way(self, method: str) -> None:
        terminal: Any = self._config.pluginmanager.getplugin("terminalreporter")
        if terminal is not None:
            terminal._tw.flush()
            if method == "post_mortem":  # where pytest has the same writer end the line
                terminal._tw._current_line = ""

    def _take_output(self, payload: list[str]) -> Callable[[], object]:
        name, text = payload
        text.encode("utf-8")  # what can't be written is no text of a test's stream
        stream = sys.stderr if name == "stderr" else sys.stdout
        return lambda: stream.write(text)

    def _take_xml_attributes(self, attributes: dict[str, str]) -> None:
        xml = self._config.stash.get(xml_key, None)
        if xml is not None:
            found = {_words(name): _words(value) for name, value in attributes.items()}
            xml.node_reporter(self._item.nodeid).attrs.update(found)

    def _take_too_long(self, payload: list[str]) -> None:
        self._broken = Outcome(Kind.TRUNCATED, detail=str(payload[1]))

    def _take_failed_subtests(self, count: int) -> None:
        other_plugins.count_failed_subtests(self._item, count)

    def _take_end(self, end: dict[str, Any]) -> None:
        if "exit" in end:
            reason, code = end["exit"]
            end["exit"] = (str(reason), None if code is None else int(code))
        if "internal" in end:
            end["internal"] = str(end["internal"])
        properties = [(_words(name), _words(one)) for name, one in end.get("suite properties", ())]
        state = end.get("reruns", {})
        if not all(isinstance(one, dict) for one in (state, *state.values())):
            raise TypeError("a state of reruns that is none")
        fails, stops = end.get("session", (False, False))
        self.end = end
        session = self._item.session
        # What has been set here meanwhile, by a hook or by -x, stays.
        if fails:
            session.shouldfail = fails if isinstance(fails, bool) else str(fails)
        if stops:
            session.shouldstop = stops if isinstance(stops, bool) else str(stops)
        xml = self._config.stash.get(xml_key, None)
        if xml is not None:
            xml.global_properties += properties
        if other_plugins.reruns_handles(self._item):
            other_plugins.restore_reruns_state(self._item, state)

    def _take_finalised(self, data: dict[str, Any]) -> None:
        """Add the snapshot's teardown to that of the last test."""
        report, mine = rebuild_report(self._config, data), self._teardown
        self._failed = self._failed or report.failed
        if mine is None:
            return
        mine.sections += report.sections
        if not report.failed:
            return
        if mine.failed:
            mine.sections.append(("teardown of the snapshot", report.longreprtext))
        else:
            mine.outcome, mine.longrepr = report.outcome, report.longrepr

    def _take_snapshot_over(self, outcome: Outcome) -> None:
        """Fail the last test's teardown if the process of the snapshot did not end well."""
        mine = self._teardown
        if mine is not None and outcome.kind is not Kind.COMPLETED:
            said = mine.longreprtext if mine.failed else ""
            mine.outcome = "failed"
            mine.longrepr = longrepr_of(self._item, outcome, said)

    def _settled(self, outcome: Outcome) -> Outcome:
        """Return how the process ended, corrected by what it reported and what it did not."""
        if self._broken is None and self.end.get("failed") and not self._failed:
            lost = "it ends with a failure that no report tells of"
            self._broken = Outcome(Kind.TRUNCATED, detail=lost)
        if self._broken is not None and outcome.kind is Kind.COMPLETED:
            outcome = replace(outcome, kind=Kind.TRUNCATED, detail=self._broken.detail)
        if "internal" in self.end:
            detail = "pytest failed in the test process"
            trace = self.end["internal"]
            outcome = replace(outcome, kind=Kind.TRUNCATED, detail=detail, trace=trace)
        return outcome

    def finish(self, outcome: Outcome) -> None:
        """Hand on what is still missing, so that the test has its setup, call and teardown."""
        outcome = self._settled(outcome)
        item = self._item
        if item.config.hook.pytest_nsisolate_outcome.get_hookimpls():
            if not outcome.left and self._teardown is not None:
                # A test that ended by itself has told in its report.
                outcome = replace(outcome, left=left_of(self._teardown.sections))
            item.ihook.pytest_nsisolate_outcome(item=item, outcome=outcome)
        aborted = "exit" in self.end or "interrupt" in self.end
        if outcome.kind is Kind.COMPLETED or (outcome.kind in _TOLD and self._teardown is not None):
            if self._teardown is not None:
                if outcome.kind in _LIMITS:
                    self._blame(self._teardown, outcome)
                # Known outside only, where there is no pid namespace.
                told = any(title == LEFT_TITLE for title, _ in self._teardown.sections)
                if outcome.left and not told:
                    self._teardown.sections.append((LEFT_TITLE, left_text(outcome.left)))
                self._last(self._teardown, outcome)
            elif not aborted:
                self._failed_phases(Outcome(Kind.TRUNCATED, detail="there is no report"))
        else:
            self._failed_phases(outcome)
        if "exit" in self.end:
            reason, code = self.end["exit"]
            raise pytest.exit.Exception(reason, code)
        if "interrupt" in self.end:
            _interrupt(self.end["interrupt"])

    def finish_with(self, *reports: pytest.TestReport) -> None:
        """Hand on reports that were made here."""
        for report in reports:
            self._hand_on(report)

    def _last(self, report: pytest.TestReport, outcome: Outcome) -> None:
        if outcome.brought:
            report.sections.append((BROUGHT_TITLE, "\n".join(outcome.brought)))
        if outcome.written_files:
            report.sections.append((WRITTEN_TITLE, "\n".join(outcome.written_files)))
        if outcome.kept:
            text = f"once the session has ended: nsisolate enter {outcome.kept}"
            report.sections.append((KEPT_TITLE, text))
        if self._properties:
            report.user_properties = [*report.user_properties, *_properties_of(outcome)]
        self._hand_on(report)

    def _failed_phases(self, outcome: Outcome) -> None:
        """Report the failure of the phase that was running, and the phases after it."""
        outcome.written = self._written
        if not self.reports:
            # A sandbox that could not be built is no fault of the test's code;
            # a process that ended before its first report was setting up.
            self._hand_on(failure(self._item, "setup", outcome))
            self._last(passed(self._item, "teardown"), outcome)
            return
        # Other plugins' makereport hooks expect every phase, from setup on.
        self._item._report_sections[:] = _item_sections(self.reports[-1])
        passed(self._item, "setup")
        if self.reports[-1].when == "setup" and self.reports[-1].passed:
            self._hand_on(failure(self._item, "call", outcome))
            self._last(passed(self._item, "teardown"), outcome)
        else:
            self._last(failure(self._item, "teardown", outcome), outcome)


def _properties_of(outcome: Outcome) -> list[tuple[str, object]]:
    """Return what ``--ns-properties`` adds to the last report of a test, in a fixed order."""
    properties: list[tuple[str, object]] = [
        ("ns_outcome", outcome.kind.value),
        ("ns_wall", round(outcome.wall, 4)),
    ]
    if outcome.cpu is not None:
        properties.append(("ns_cpu", round(outcome.cpu, 4)))
    if outcome.peak_memory is not None:
        properties.append(("ns_peak_memory", outcome.peak_memory))
    if outcome.artifacts:
        properties.append(("ns_artifacts", outcome.artifacts))
    if outcome.kept:
        properties.append(("ns_kept", outcome.kept))
    return properties + [(f"ns_{name}", count) for name, count in outcome.counters.items()]


def _item_sections(report: pytest.TestReport) -> list[tuple[str, str, str]]:
    """Return the captured output in *report* as the item keeps it: phase, stream, text."""
    found = []
    for title, text in report.sections:
        words = title.split()
        if len(words) == 3 and words[0] == "Captured":
            found.append((words[2], words[1], text))
    return found


def _words(text: object) -> str:
    """Return *text* if it can be written to a file; raise an error if not."""
    if not isinstance(text, str):
        raise TypeError(f"{text!r:.80} for a text")
    text.encode("utf-8")
    return text


def _raise_interrupt() -> None:
    raise KeyboardInterrupt


def _interrupt(where: object) -> None:
    """End the session as the test would from that file and line, which pytest shows."""
    code = _raise_interrupt.__code__  # it raises on its second line
    match where:
        case [str(file), int(line)] if file.isprintable() and 0 < line < 1 << 31:
            code = code.replace(co_filename=file, co_firstlineno=line - 1)
    FunctionType(code, globals())()
