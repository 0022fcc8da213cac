"""The timeline of ``--ns-trace``, held against the rules of the trace event format."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]

TESTS = """
    import select

    @pytest.fixture
    def slow():
        yield
        select.select([], [], [], 0.02)

    @pytest.mark.parametrize("n", range(8))
    def test_it(n, slow):
        select.select([], [], [], 0.01 * (n % 3))

    def test_crashes():
        ctypes.string_at(0)

    @pytest.mark.isolated(timeout=0.3)
    def test_deaf():
        import itertools
        sum(itertools.repeat(0))

    @pytest.mark.isolated(net="host")
    def test_other_sandbox():
        pass

    @pytest.mark.isolated(False)
    def test_plain():
        pass
"""
ISOLATED = 11

Event = dict[str, Any]


def events(run: Run) -> list[Event]:
    """The events of a trace, each of which has what the format asks for."""
    trace = json.loads((run.path / "trace.json").read_text("ascii"))
    assert isinstance(trace["traceEvents"], list)
    assert trace["displayTimeUnit"] in ("ms", "ns")
    for event in trace["traceEvents"]:
        assert event["ph"] in ("X", "M"), event
        assert isinstance(event["name"], str)
        for key in ("ts", "pid", "tid") + (("dur",) if event["ph"] == "X" else ()):
            assert isinstance(event[key], int), event
            assert event[key] >= 0, event
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            wanted = "sort_index" if event["name"].endswith("sort_index") else "name"
            assert list(event["args"]) == [wanted]
    found: list[Event] = trace["traceEvents"]
    return found


def check_rows(found: list[Event]) -> None:
    """In a row, two events are disjoint or nested; and every row has its name."""
    rows: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in found:
        if event["ph"] == "X":
            rows[event["pid"], event["tid"]].append(event)
    for row in rows.values():
        open_ends: list[int] = []
        for event in sorted(row, key=lambda one: (one["ts"], -one["dur"])):
            end = event["ts"] + event["dur"]
            while open_ends and open_ends[-1] <= event["ts"]:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1], event
            open_ends.append(end)
    named = Counter((one["pid"], one["tid"]) for one in found if one["name"] == "thread_name")
    assert named == Counter(rows.keys())
    groups = Counter(one["pid"] for one in found if one["name"] == "process_name")
    assert groups == Counter({pid for pid, _ in rows})


def group_names(found: list[Event]) -> list[str]:
    return sorted(one["args"]["name"] for one in found if one["name"] == "process_name")


def of(found: list[Event], category: str) -> list[Event]:
    return [one for one in found if one["ph"] == "X" and one["cat"] == category]


def check_content(found: list[Event]) -> None:
    """Each isolated test has its sandbox, its run and its phases."""
    tests = {one["name"].partition("::")[2]: one for one in of(found, "test")}
    assert len(tests) == len(of(found, "test")) == ISOLATED
    assert len(of(found, "keeper")) == len(of(found, "sandbox")) == ISOLATED
    assert tests["test_crashes"]["args"]["ending"] == "CRASHED with signal 11 (SIGSEGV)"
    assert tests["test_deaf"]["args"]["ending"] == "TIMED OUT after 0.3 s"
    assert tests["test_deaf"]["dur"] > 300_000
    for name, test in tests.items():
        inside = {
            one["name"]: one["dur"]
            for one in of(found, "phase")
            if (one["pid"], one["tid"]) == (test["pid"], test["tid"])
            and test["ts"] <= one["ts"] <= one["ts"] + one["dur"] <= test["ts"] + test["dur"]
        }
        assert {"setup", "call"} <= inside.keys(), name
        if name.startswith("test_it["):
            assert inside["teardown"] >= 20_000
            assert inside["call"] >= 10_000 * (int(name[8]) % 3)


@pytest.mark.parametrize("jobs", [1, 2])
def test_rows(run_as_each: Run, jobs: int) -> None:
    """Keeper, sandboxes and tests, in as many lanes as there were jobs."""
    run_as_each.tests(TESTS)
    run_as_each.isolated("--ns-trace=trace.json", f"--ns-jobs={jobs}")
    found = events(run_as_each)
    check_rows(found)
    check_content(found)
    assert group_names(found) == ["keeper", "sandboxes", "tests"]
    assert len({one["tid"] for one in of(found, "test")}) == jobs


def test_under_xdist(run: Run) -> None:
    """Every worker has rows of its own, in the one trace of the controller."""
    pytest.importorskip("xdist")
    run.plugins += ("xdist",)
    run.tests(TESTS)
    run.isolated("-n2", "--ns-trace=trace.json")
    found = events(run)
    check_rows(found)
    check_content(found)
    workers = {name.split()[0] for name in group_names(found)}
    assert workers == {"gw0", "gw1"}
    assert len(group_names(found)) == 6


def test_without_tests(run: Run) -> None:
    """A session in which nothing ran isolated has a trace without events."""
    run.tests("def test_it(): pass")
    run("--ns-trace=trace.json")
    assert events(run) == []


GROUP = """
import time
import pytest

@pytest.mark.parametrize("number", range(60))
def test_it(number):
    if number % 20 == 10:
        time.sleep(0.02)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_groups(run_as_each: Run, jobs: int) -> None:
    """A group has one sandbox, as long as its tests; each of them is where it was."""
    for name in ("test_a.py", "test_b.py", "test_c.py"):
        run_as_each.write(name, GROUP)
    options = ("--ns-trace=trace.json", f"--ns-jobs={jobs}", "--ns-scope=module")
    run_as_each.isolated(*options).expect(passed=180)
    found = events(run_as_each)
    check_rows(found)
    assert len(of(found, "sandbox")) == len(of(found, "keeper")) == 3
    assert len(of(found, "test")) == 180
    for sandbox in of(found, "sandbox"):
        assert sandbox["dur"] > 3 * 20_000
    slow = [one["dur"] for one in of(found, "phase") if one["name"] == "call"]
    assert sum(duration >= 20_000 for duration in slow) >= 9
