"""Record what every test did, for the usage table, the report files and the trace.

Two plugins. `Recorder` is where tests run (in pytest's own process, or in each worker
of xdist): it hands what an isolated test used to the collector, with the next report of
that test. From a worker to the controller the report carries it, as an attribute that is
taken off again before other plugins get the report. `Collector` is where reports arrive: it
makes an entry of each attempt of each test, and writes the files at the end of the session.

`docs/report-schema.md` says what an entry holds. Finished entries are kept compressed,
some hundred bytes each: less than pytest keeps of a report.
"""

from __future__ import annotations

import json
import os
import platform
import zlib
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

import pytest

from pytest_nsisolate import __version__
from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.core.usage import Built, Timing, is_amount
from pytest_nsisolate.spec.keys import Flag, having

from . import chrome_trace, report_files, usage_table

#: The attribute of a report that carries a record.
_RECORD = "ns_record"
_CHUNK = 1 << 16
#: Keys of a spec that limit what a test may use.
_LIMITS = having(Flag.REPORTED)

Entry = dict[str, Any]


class Wanted(NamedTuple):
    """Which reports the user asked for.

    Attributes:
        reports: the files of --ns-report.
        trace: the file of --ns-trace.
        usage: how many tests each part of the table of --ns-usage lists; 0 for no table.
        options: the options that the header of a report names, with the values of keys
            under "keys".
    """

    reports: tuple[str, ...]
    trace: str | None
    usage: int
    options: Mapping[str, Any]


class Recorder:
    """See the module.

    Args:
        collector: that of this process, None in a worker of xdist.
    """

    def __init__(self, collector: Collector | None = None) -> None:
        self._collector = collector
        self._pending: dict[str, Entry] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_nsisolate_outcome(self, item: pytest.Item, outcome: Outcome) -> None:
        """Keep what is known of an attempt until a report of it is handed on."""
        self._pending[str(item.nodeid)] = record_of(outcome)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Hand the record of a test to the collector, from a worker with this report."""
        nodeid, worker = str(report.nodeid), _worker_of(report)
        record = vars(report).pop(_RECORD, None)
        if worker is None:  # what a test process says of itself is not taken
            record = self._pending.pop(nodeid, None)
        if not isinstance(record, dict):
            return
        if self._collector is None:
            setattr(report, _RECORD, record)
        else:
            self._collector.records[worker, nodeid] = record

    @pytest.hookimpl
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hand on the records of tests that ended the session: no report has carried them."""
        left, self._pending = self._pending, {}
        output: Any = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[_RECORD] = left
        if self._collector is not None:
            self._collector.take(None, left)


def record_of(outcome: Outcome) -> Entry:
    """Return what is known of an attempt besides its reports, in a form that JSON can hold."""
    record: Entry = {
        "isolated": True,
        "ending": {"kind": outcome.kind.value, "text": outcome.headline},
    }
    if outcome.timing is not None:
        record |= _placed(outcome.timing)
        record["usage"] = {"source": outcome.source, **outcome.usage.figures()}
    return record


def _placed(timing: Timing) -> Entry:
    limits = {name: getattr(timing.spec, name, None) for name in _LIMITS}
    return {
        "start": timing.begin,
        "wall": timing.wall if timing.begin is not None else None,
        "lane": timing.lane,
        "limits": {name: plain(value) for name, value in limits.items() if value is not None},
        "sandbox": _sandbox(timing.sandbox, timing.built) if timing.built is not None else None,
    }


def _sandbox(number: str, built: Built) -> Entry:
    return {
        "id": number,
        "slot": built.slot,
        "asked": built.asked,
        "begin": built.begin,
        "ready": built.made,
    }


def plain(value: Any) -> Any:
    """Return a value of a key in a form that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (tuple, list, set, frozenset)):
        return [plain(one) for one in value]
    return value if isinstance(value, (int, float, str, type(None))) else str(value)


class Spool:
    """Entries in the order they came, compressed."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._lines: list[bytes] = []
        self._size = 0

    def add(self, entry: Entry) -> None:
        """Keep one."""
        line = json.dumps(entry).encode("ascii")
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _CHUNK:
            self._chunks.append(zlib.compress(b"\n".join(self._lines)))
            self._lines, self._size = [], 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield each entry, decoded anew."""
        for chunk in self._chunks:
            yield from map(json.loads, zlib.decompress(chunk).split(b"\n"))
        yield from map(json.loads, self._lines)


class _Test:
    """An attempt of which reports are still coming."""

    def __init__(self, nodeid: str, worker: str | None) -> None:
        self.nodeid = nodeid
        self.worker = worker
        self.phases: dict[str, pytest.TestReport] = {}
        self.subtest_failed = False
        self.record: Entry | None = None

    def outcome(self) -> str:
        """Return the word that pytest's terminal has for the test's outcome."""
        # pytest-rerunfailures has an outcome of its own.
        if any(str(report.outcome) == "rerun" for report in self.phases.values()):
            return "rerun"
        result = "interrupted"
        for when, report in self.phases.items():
            xfail = hasattr(report, "wasxfail")
            if report.failed:
                if result != "failed":
                    result = "failed" if when not in ("setup", "teardown") else "error"
            elif report.skipped:
                result = "xfailed" if xfail else "skipped"
            elif when == "call":
                result = "xpassed" if xfail else "passed"
        return "failed" if self.subtest_failed and result == "passed" else result

    def entry(self) -> Entry:
        """Return what is known of the test, in the form of the schema."""
        record = self.record or {}
        entry: Entry = {
            "nodeid": self.nodeid,
            "outcome": self.outcome(),
            "isolated": False,
            "worker": self.worker,
            "ending": None,
            "start": None,
            "wall": None,
            "phases": None,
            "lane": None,
            "limits": None,
            "usage": None,
            "sandbox": None,
            **record,
        }
        if record:
            entry["phases"] = self._phases(entry)
        return entry

    def _phases(self, entry: Entry) -> dict[str, Entry | None]:
        sandbox = entry["sandbox"]
        phases: dict[str, Entry | None] = {
            "sandbox": sandbox and _phase(sandbox["begin"], sandbox["ready"]),
            "setup": None,
            "call": None,
            "teardown": None,
        }
        if entry["start"] is None:
            return phases
        now, end = entry["start"], entry["start"] + entry["wall"]
        completed = entry["ending"]["kind"] == Kind.COMPLETED.value
        for when, report in self.phases.items():
            if when not in phases:
                continue
            if not (is_amount(report.start) and is_amount(report.duration)):
                continue  # a test process can claim anything
            if completed or report.start < end:
                phases[when] = {"start": report.start, "seconds": report.duration}
                now = report.start + report.duration
                continue
            # Made by the runner for a test that had ended: it ended in this phase,
            # and did not live to see the next.
            phases[when] = _phase(now, end)
            break
        return phases


def _phase(start: float, end: float) -> Entry:
    return {"start": start, "seconds": max(0.0, end - start)}


class Collector:
    """See the module.

    Attributes:
        records: what isolated tests used, by worker and node id, until the report arrives
            that is being handed on.

    Raises:
        files.Unwritable: a file can't be written.
    """

    def __init__(self, config: pytest.Config, wanted: Wanted) -> None:
        self._config = config
        self._wanted = wanted
        self.records: dict[tuple[str | None, str], Entry] = {}
        self._open: dict[tuple[str | None, str], _Test] = {}
        self._spool = Spool()
        self._begin = datetime.now(timezone.utc)
        self._totals = _Totals()
        self._workers: set[str] = set()
        self._reports = [report_files.Target("--ns-report", path) for path in wanted.reports]
        self._trace = report_files.Target("--ns-trace", wanted.trace) if wanted.trace else None
        targets = [*self._reports, *([self._trace] if self._trace else [])]
        report_files.check(targets)
        self._notes: list[tuple[str, bool]] = []

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add a report to the attempt that it belongs to."""
        nodeid = str(report.nodeid)
        worker = _worker_of(report)
        if worker is not None:
            self._workers.add(worker)
        key = (worker, nodeid)
        subtest = type(report) is not pytest.TestReport
        if report.when == "setup" and not subtest and key in self._open:
            self._close(key)  # run again
        test = self._open.setdefault(key, _Test(nodeid, worker))
        test.record = self.records.pop(key, test.record)
        if subtest:
            test.subtest_failed = test.subtest_failed or report.failed
            return
        test.phases[str(report.when)] = report
        if report.when == "teardown":
            self._close(key)

    def _close(self, key: tuple[str | None, str]) -> None:
        entry = self._open.pop(key).entry()
        self._totals.add(entry)
        self._spool.add(entry)

    def take(self, worker: str | None, left: dict[str, Entry]) -> None:
        """Add records of tests that ended the session."""
        for nodeid, record in left.items():
            test = self._open.setdefault((worker, nodeid), _Test(nodeid, worker))
            test.record = record

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take the record of a worker of pytest-xdist that has ended."""
        self.take(str(node.gateway.id), getattr(node, "workeroutput", {}).get(_RECORD, {}))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the requested reports, however the session ended."""
        for key in list(self._open):
            self._close(key)
        if self._config.option.collectonly:
            return
        header = self._header(int(exitstatus))
        for target in self._reports:
            page = target.suffix == ".html"
            self._write(target, report_files.page if page else report_files.report, header)
        if self._trace is not None:
            self._write(self._trace, chrome_trace.write, header)
        if any(failed for _, failed in self._notes) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _write(
        self, target: report_files.Target, write: report_files.Writer, header: Entry
    ) -> None:
        try:
            target.write(lambda stream: write(stream, header, self._spool))
        except OSError as error:
            text = f"could not write {target.path}: {error.strerror or error}"
            self._notes.append((f"ERROR: nsisolate: option {target.option}: {text}", True))
        else:
            self._notes.append((f"nsisolate: {target.option} written to {target.path}", False))

    def _header(self, status: int) -> Entry:
        keys = {
            key: sorted(value) if isinstance(value, Mapping) else plain(value)
            for key, value in self._wanted.options["keys"].items()
        }
        return {
            "started": self._begin.isoformat(),
            "start": self._begin.timestamp(),
            "seconds": (datetime.now(timezone.utc) - self._begin).total_seconds(),
            "exit_status": status,
            "versions": {
                "pytest_nsisolate": __version__,
                "pytest": pytest.__version__,
                "python": platform.python_version(),
            },
            "host": {
                "system": platform.system(),
                "kernel": platform.release(),
                "machine": platform.machine(),
                "cpus": os.cpu_count(),
            },
            "options": {**self._wanted.options, "keys": keys},
            "workers": sorted(self._workers),
            "totals": self._totals.as_json(),
        }

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Show the table, and where the files are."""
        terminal = terminalreporter
        if self._wanted.usage:
            width: int = terminal._tw.fullwidth
            title, *lines = usage_table.table(self._spool, self._wanted.usage, width)
            terminal.write_sep("=", title)
            for line in lines:
                terminal.write_line(line)
        for note, failed in self._notes:
            terminal.write_line(note, red=failed)


def _worker_of(report: Any) -> str | None:
    """Return the xdist worker that a report comes from; None outside of the controller."""
    gateway = getattr(getattr(report, "node", None), "gateway", None)
    return None if gateway is None else str(gateway.id)


class _Totals:
    """Sums over all attempts."""

    def __init__(self) -> None:
        self._attempts = self._isolated = 0
        self._outcomes: dict[str, int] = {}
        self._sums = {"wall": 0.0, "cpu_user": 0.0, "cpu_system": 0.0}
        self._peak: int | None = None

    def add(self, entry: Entry) -> None:
        """Count one."""
        self._attempts += 1
        self._isolated += entry["isolated"]
        word = entry["outcome"]
        self._outcomes[word] = self._outcomes.get(word, 0) + 1
        usage = entry["usage"] or {}
        for name in self._sums:
            self._sums[name] += (entry if name == "wall" else usage).get(name) or 0.0
        peak = usage.get("peak_memory")
        if peak is not None:
            self._peak = max(peak, self._peak or 0)

    def as_json(self) -> Entry:
        """Return the totals for the header."""
        return {
            "attempts": self._attempts,
            "isolated": self._isolated,
            "outcomes": self._outcomes,
            **self._sums,
            "peak_memory": self._peak,
        }


def install(config: pytest.Config, wanted: Wanted) -> None:
    """Register the recorder and, except in a worker of xdist, the collector.

    Raises:
        pytest.UsageError: a file can't be written.
    """
    collector = None
    if not hasattr(config, "workerinput"):
        try:
            collector = Collector(config, wanted)
        except report_files.Unwritable as error:
            raise pytest.UsageError(str(error)) from None
        config.pluginmanager.register(collector, "nsisolate-collector")
    config.pluginmanager.register(Recorder(collector), "nsisolate-recorder")
