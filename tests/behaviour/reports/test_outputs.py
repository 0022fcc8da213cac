"""What a session writes besides the terminal: junit files, durations, the cache."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

from helpers.plugins import load
from helpers.run import same
from helpers.samples import MIXED

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.run import Run

pytestmark = [pytest.mark.python, pytest.mark.needs("sandbox")]


def junit(path: Path) -> list[str]:
    """A junit file as lines, without times."""
    root = ET.parse(path).getroot()
    lines = []
    for element in root.iter():
        attributes = {
            name: value
            for name, value in element.attrib.items()
            if name not in {"time", "timestamp", "hostname"}
        }
        text = re.sub(r"0x[0-9a-f]+", "0x", (element.text or "").strip())
        lines.append(f"{element.tag} {sorted(attributes.items())} {text}")
    return lines


@pytest.mark.parametrize("family", ["xunit1", "xunit2"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_junit(run: Run, jobs: int, family: str) -> None:
    """The junit file is the same, recorded properties and attributes included."""
    run.tests(
        MIXED,
        """
    def test_records(record_property, record_xml_attribute, record_testsuite_property):
        record_property("key", 3)
        record_xml_attribute("assertions", 7)
        record_testsuite_property("suite", "value")
    """,
    )
    logging = ("-o", "junit_logging=all", "-W", "ignore::pytest.PytestWarning")
    options = (*logging, "-o", f"junit_family={family}")
    run(*options, "--junitxml=plain.xml")
    run.isolated(f"--ns-jobs={jobs}", *options, "--junitxml=isolated.xml")
    assert junit(run.path / "isolated.xml") == junit(run.path / "plain.xml")


SPY = """
    import os

    def pytest_runtest_logreport(report):
        if "PYTEST_XDIST_WORKER" not in os.environ:
            # What pytest itself puts on each report that comes from another process.
            names = sorted(vars(report).keys() - {"$report_type"})
            with open("attributes.txt", "a") as stream:
                print(report.nodeid, report.when, names, file=stream)
"""


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_reports_have_the_attributes_of_a_plain_run(run: Run, workers: tuple[str, ...]) -> None:
    """Other reporters see what they see in a plain run, also where --ns-report collects figures."""
    if workers:
        load(run, "xdist")
    run.write("conftest.py", SPY)
    run.tests("""
    def test_passes(record_property): record_property("key", 1)
    def test_fails(): assert 0
    """)
    seen = []
    isolated = ("--ns-isolate", "--ns-report=report.json", "--ns-usage=1", "--ns-trace=trace.json")
    for options in ((), isolated):
        result = run(*workers, *options).expect(passed=1, failed=1)
        assert [one.properties for one in result.phases if one.properties] == [[["key", 1]]] * 2
        attributes = run.path / "attributes.txt"
        seen.append(sorted(attributes.read_text("utf-8").splitlines()))
        attributes.unlink()
    assert seen[0] == seen[1]
    tests = json.loads((run.path / "report.json").read_text("utf-8"))["tests"]
    assert [one["ending"]["kind"] for one in tests] == ["completed"] * 2
    assert all(one["usage"]["peak_memory"] for one in tests)


def test_junit_of_a_crash(run: Run) -> None:
    """A crash is one test case, with its output and properties."""
    run.tests("""
    def test_crash(record_property):
        print("said before")
        record_property("key", "value")
        ctypes.string_at(0)
    """)
    run.isolated("--ns-properties", "--junitxml=junit.xml", "-o", "junit_logging=all")
    (case,) = ET.parse(run.path / "junit.xml").getroot().iter("testcase")
    (failure,) = case.findall("failure")
    assert "CRASHED with signal 11 (SIGSEGV)" in (failure.get("message") or "")
    assert not case.findall("error")
    assert "said before" in "".join(element.text or "" for element in case.findall("system-out"))
    names = [element.get("name") for element in case.iter("property")]
    assert "ns_outcome" in names


def test_doctests(run: Run) -> None:
    """Doctests of modules and text files are isolated like other tests."""
    run.write(
        "mod.py",
        '''
        def double(x):
            """
            >>> double(2)
            4
            >>> double(3)
            7
            """
            return 2 * x
    ''',
    )
    run.write("text.txt", ">>> import socket\n>>> socket.gethostname()\n'isolated'\n")
    same_options = ("--doctest-modules", "--doctest-glob=*.txt", "mod.py")
    same(run, *same_options)
    result = run.isolated("--doctest-glob=*.txt", "text.txt")
    assert list(result.verdicts.values()) == ["passed"], str(result)


def test_durations(run: Run) -> None:
    """--durations lists what took long, in the phase that it took."""
    run.tests("""
    import select

    @pytest.fixture
    def slow():
        select.select([], [], [], 0.3)

    def test_slow_setup(slow):
        pass
    """)
    result = run.isolated("--durations=1", "--durations-min=0.2")
    assert re.search(r"0\.[3-9]\d*s setup +test_it\.py::test_slow_setup", result.out), result.out


def test_cache(run: Run) -> None:
    """--lf, --ff and config.cache know what happened inside."""
    run.tests("""
    def test_good(pytestconfig):
        pytestconfig.cache.set("mine/value", {"seen": 1})

    def test_bad():
        assert 0
    """)
    run.isolated().expect(passed=1, failed=1)
    again = run.isolated("--lf")
    assert again.verdicts == {"test_bad": "failed"}
    shown = run("--cache-show")
    assert "mine/value" in shown.out
    assert "'seen': 1" in shown.out
