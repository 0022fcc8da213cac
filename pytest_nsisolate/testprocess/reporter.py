"""Report phases, warnings and figures of a test to the runner: what only its process knows."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from _pytest.junitxml import xml_key

from pytest_nsisolate.core import wire
from pytest_nsisolate.core.linux.proc import left_running, line_of
from pytest_nsisolate.core.linux.syscalls import LINUX
from pytest_nsisolate.core.outcome import LEFT_TITLE, TRIED_TITLE, left_text
from pytest_nsisolate.core.usage import Usage, of_this_process
from pytest_nsisolate.reports import other_plugins
from pytest_nsisolate.reports.brief import BRIEF, briefly, may_be_brief
from pytest_nsisolate.reports.serialise import serialised

from . import hints

if TYPE_CHECKING:
    import warnings

    from pytest_nsisolate.files.write_audit import Witness
    from pytest_nsisolate.network.topology.per_test import Topologies
    from pytest_nsisolate.spec.spec import Spec

    from .frame_stream import Sender
    from .terminal import Terminal
    from .timeout import Timeout

# Bound now: a test may patch these names in their modules, and its reports are
# sent while the patch is on.
_getppid, _kill, _read, _clock = os.getppid, os.kill, os.read, time.perf_counter

#: What programs print where an overlay can't copy a file (`foreign_owners`).
_OVERFLOW = os.strerror(errno.EOVERFLOW)

#: How much of a failure's text is searched for the cause of a hint, in characters.
_HINT_LIMIT = 1 << 16


class RunningTest(NamedTuple):
    """The test that a process runs now.

    Attributes:
        number: index of the item in the session.
        following: the next test of this process, None if this is the last one.
        sandboxed: whether the process is in a sandbox.
    """

    item: pytest.Item
    number: int
    spec: Spec
    following: pytest.Item | None
    sandboxed: bool


class Reporter:
    """Sends reports and warnings of the running test.

    Args:
        direct: whether tests write to the terminal themselves: each then waits until
            the runner has printed its report.

    Attributes:
        test: the running test.
        gate: pipe on which the runner answers in that case.
        failed: whether a report of the running test failed.
    """

    test: RunningTest

    def __init__(
        self,
        config: pytest.Config,
        sender: Sender,
        terminal: Terminal,
        timeout: Timeout,
        *,
        direct: bool,
        topologies: Topologies | None,
        witness: Witness | None,
    ) -> None:
        self._config = config
        self._sender = sender
        self._terminal = terminal
        self._timeout = timeout
        self._direct = direct
        self._topologies = topologies
        self._witness = witness
        self._xml = config.stash.get(xml_key, None)
        self._briefly = may_be_brief(config)
        self._keywords: dict[str, Any] | None = None  # in the last brief report of this test
        self.gate = -1
        self.failed = False

    def start_test(self, test: RunningTest) -> None:
        """Report *test* from now on."""
        self.test = test
        self.failed = False
        self._keywords = None

    def end_test(self) -> None:
        """Drop what the test tried outside of its sandbox, if no failure has reported it."""
        if self._witness is not None:
            self._witness.told()

    def tell_report(self, report: pytest.TestReport) -> None:
        """Send a report, also that of a subtest."""
        self._terminal.flush()
        plain_report = type(report) is pytest.TestReport
        self.failed = self.failed or report.failed
        if plain_report:
            self._complete(report)
        if self._witness is not None and report.failed:
            tried = self._witness.told()
            if tried:
                report.sections.append((TRIED_TITLE, tried))
        try:
            data = self._serialise(report, plain_report=plain_report)
            # The frame that ends the test follows the report of the teardown.
            last = plain_report and report.when == "teardown"
            if last:
                measured = other_plugins.take_benchmarks(self._config)
                if measured:
                    self._sender.send("benchmarks", measured, more=True)
            debugging = self._terminal.debugging
            goes_on = self.test.following is not None
            waits = (self._direct or debugging) and (goes_on or not last)
            if debugging:
                self._terminal.send_and_wait("report", data)
            else:
                self._sender.send("report", data, more=last and not waits)
            if waits and self._direct:
                with contextlib.suppress(OSError):
                    _read(self.gate, 1)
        except wire.FrameTooLong as error:
            self._sender.send("too long", [report.when, str(error)])

    def _serialise(self, report: pytest.TestReport, *, plain_report: bool) -> dict[str, Any]:
        if plain_report and self._briefly and not other_plugins.noted(report):
            brief = briefly(report, self.test.item, self._keywords)
            if brief is not None:
                if brief[BRIEF] is not None:
                    self._keywords = dict(report.keywords)
                return brief
        data = serialised(self._config, report)
        if isinstance(data["longrepr"], str) and hasattr(report.longrepr, "toterminal"):
            data["$ns_terminal"] = True
        other_plugins.add_to_report(report, data)
        return data

    def _complete(self, report: pytest.TestReport) -> None:
        """Add to the report of a phase what only this process knows."""
        if report.when == "teardown":
            self._send_xml()
            if self.test.following is None:
                left = [line_of(*one) for one in _left_running()]
                if left:
                    report.sections.append((LEFT_TITLE, left_text(left)))
        if report.when == "call":
            failed = other_plugins.failed_subtests(self.test.item)
            if failed:
                self._sender.send("failed subtests", failed)
        if report.failed:
            self._add_causes(report)
        self._timeout.explain(report)

    def _add_causes(self, report: pytest.TestReport) -> None:
        """Add to a failure what may have caused it."""
        test = self.test
        if test.spec.fs == "overlay":
            _explain_owners(report)
        if self._topologies is not None:
            self._topologies.show(report.sections)
        facts = hints.Facts(sandbox=test.sandboxed, pids=test.spec.pids)
        text = hints.hints(report.longreprtext[:_HINT_LIMIT], facts)
        if text:
            report.sections.append((hints.TITLE, text))

    def _send_xml(self) -> None:
        if self._xml is None:
            return
        for reporter in self._xml.node_reporters.values():
            if reporter.attrs:
                self._sender.send("xml attributes", reporter.attrs)
                reporter.attrs = {}

    def tell_warning(
        self,
        message: warnings.WarningMessage,
        when: str,
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        """Send the parts from which the runner builds the warning again."""
        if not self._sender.is_open:
            return  # recorded before the template was made: pluggy tells each new plugin
        warning = message.message
        category = message.category
        data = {
            "text": str(warning),
            "args": list(warning.args) if isinstance(warning, Warning) else None,
            "class": [type(warning).__module__, type(warning).__qualname__],
            "category": [category.__module__, category.__qualname__],
            "filename": message.filename,
            "lineno": message.lineno,
            "line": message.line,
            "source": None if message.source is None else wire.safe_repr(message.source),
            "when": when,
            "nodeid": str(nodeid),
            "location": location,
        }
        self._sender.send("warning", data)


class Ending:
    """The figures of the current test, and what it changed in the session."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._used: Usage | None = None  # at the end of the test before
        self._begin = 0.0
        self._xml = session.config.stash.get(xml_key, None)
        self._note_properties()
        self.start_process()

    def _note_properties(self) -> None:
        if self._xml is not None:
            self._suite_properties = len(self._xml.global_properties)

    def start_process(self) -> None:
        """Note how the session stands: later changes are those of this process."""
        self._state = (self._session.shouldfail, self._session.shouldstop)

    def end_test(self) -> None:
        """Note what has been sent: the next test sends only its own."""
        self._note_properties()
        self.start_process()

    def start_test(self) -> None:
        """Start the clock of a test."""
        self._begin = _clock()

    def fields(self, item: pytest.Item, *, failed: bool) -> dict[str, Any]:
        """Measure the test that ends now.

        Args:
            failed: whether a report of the test failed.
        """
        used = of_this_process()
        before, self._used = self._used, used
        if before is not None:
            used = used.since(before)
        end: dict[str, Any] = {
            "failed": failed,
            "wall": _clock() - self._begin,
            "usage": used.to_wire(),
        }
        xml = self._xml
        if xml is not None and len(xml.global_properties) > self._suite_properties:
            end["suite properties"] = xml.global_properties[self._suite_properties :]
        state = (self._session.shouldfail, self._session.shouldstop)
        if state != self._state:
            end["session"] = state
        reruns = other_plugins.reruns_state(item)
        if reruns:
            end["reruns"] = reruns
        return end


def _explain_owners(report: pytest.TestReport) -> None:
    """Explain a write that failed because an overlay can't copy the owner of a file."""
    texts = [report.longreprtext, *(text for _, text in report.sections)]
    found = [text for text in texts if _OVERFLOW in text]
    if found:
        from pytest_nsisolate.explain.files import OWNERS_TITLE, owners_text  # noqa: PLC0415 -- a rare failure

        report.sections.append((OWNERS_TITLE, owners_text(found[0])))


def _left_running() -> list[tuple[int, str]]:
    """List what runs besides the test; [] without a pid namespace, where it is unknown."""
    if not LINUX or _getppid() != 0:
        return []
    try:
        _kill(-1, 0)
    except ProcessLookupError:
        return []  # nobody but PID 1 and this process
    except OSError:
        pass
    return left_running()
