"""What isolated tests used: the table, the report, and how every session writes it."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

from helpers import samples
from helpers.json_schema import problems
from pytest_nsisolate.reports.usage_table import columns as width_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helpers.run import Result, Run

pytestmark = pytest.mark.needs("sandbox")

COSTS = """
    import select

    @pytest.fixture
    def slow():
        select.select([], [], [], 0.05)
        yield
        select.select([], [], [], 0.1)

    def test_empty():
        pass

    def test_memory():
        assert len(bytearray(100 << 20)) == 100 << 20

    def test_cpu():
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass

    def test_child_cpu():
        subprocess.run([sys.executable, "-S", "-c", '''if 1:
            import time
            while time.process_time() < 0.3:
                pass
        '''], check=True)

    def test_phases(slow):
        select.select([], [], [], 0.2)
"""

ENDINGS = samples.text("endings")
EXPECTED = {
    # test: outcome, ending, phases that it lived to see
    "test_passes": ("passed", "completed", 3),
    "test_fails": ("failed", "completed", 3),
    "test_skips": ("skipped", "completed", 3),
    "test_xfails": ("xfailed", "completed", 3),
    "test_xpasses": ("xpassed", "completed", 3),
    "test_errs": ("error", "completed", 3),
    "test_errs_early": ("error", "completed", 2),
    "test_crashes": ("failed", "crashed", 2),
    "test_exits": ("failed", "exited", 2),
    "test_times_out": ("failed", "timed out", 3),
    "test_deaf": ("failed", "timed out", 2),
    "test_plain": ("failed", None, None),
}


def report(run: Run, name: str = "report.json") -> dict[str, Any]:
    """A report that keeps to its documented schema."""
    text = (run.path / name).read_text("ascii")
    assert text.endswith("\n]}\n")
    value: dict[str, Any] = json.loads(text)
    assert problems(value) == []
    assert not list(run.path.glob(".ns-*"))
    return value


def by_name(value: Mapping[str, Any]) -> dict[str, Any]:
    """The tests of a report; each is there once."""
    names = [test["nodeid"].rpartition("::")[2] for test in value["tests"]]
    assert len(names) == len(set(names))
    return dict(zip(names, value["tests"], strict=True))


def check_times(test: Mapping[str, Any]) -> None:
    """The phases of a test lie in it, one after the other."""
    now, end = test["start"], test["start"] + test["wall"]
    for when in ("setup", "call", "teardown"):
        phase = test["phases"][when]
        if phase is not None:
            assert phase["start"] >= now - 0.002, test
            now = phase["start"] + phase["seconds"]
            assert now <= end + 0.002, test
    sandbox = test["sandbox"]
    assert sandbox["asked"] <= sandbox["begin"] <= sandbox["ready"] <= test["start"]
    assert test["phases"]["sandbox"]["start"] == sandbox["begin"]


def check_endings(value: Mapping[str, Any]) -> None:
    """The report of the module above says how everything ended."""
    tests = by_name(value)
    assert tests.keys() == EXPECTED.keys()
    for name, (outcome, kind, phases) in EXPECTED.items():
        test = tests[name]
        assert test["outcome"] == outcome, test
        if kind is None:
            nothing = {one for one in test.values() if not isinstance(one, (str, bool))}
            assert nothing == {None}, test
            assert not test["isolated"]
            continue
        assert test["isolated"]
        assert test["ending"]["kind"] == kind, test
        seen = [when for when in ("setup", "call", "teardown") if test["phases"][when] is not None]
        assert len(seen) == phases, test
        assert test["usage"]["source"] == "wait4"
        known = test["usage"]["peak_memory"] is not None
        assert known, test
        check_times(test)
    assert tests["test_crashes"]["ending"]["text"] == "CRASHED with signal 11 (SIGSEGV)"
    assert tests["test_deaf"]["limits"]["timeout"] == 0.5
    assert tests["test_deaf"]["phases"]["call"]["seconds"] > 0.5
    session = value["session"]
    assert session["exit_status"] == 1
    assert session["totals"]["attempts"] == len(EXPECTED)
    assert session["totals"]["isolated"] == len(EXPECTED) - 1
    assert sum(session["totals"]["outcomes"].values()) == len(EXPECTED)


def check_lanes(tests: list[dict[str, Any]], jobs: int) -> None:
    """No two tests were in one lane at a time."""
    assert {test["lane"] for test in tests} <= set(range(jobs))
    ends: dict[tuple[str | None, int], float] = {}
    for test in sorted(tests, key=lambda one: one["start"]):
        lane = (test["worker"], test["lane"])
        assert test["start"] >= ends.get(lane, 0.0)
        ends[lane] = test["start"] + test["wall"]


def test_figures(run_as_each: Run) -> None:
    """Memory, CPU time and phases are what the tests did."""
    run_as_each.tests(COSTS)
    result = run_as_each.isolated("--ns-report=report.json", "--ns-timeout=60", "--ns-properties")
    result.expect(passed=5)
    value = report(run_as_each)
    tests = by_name(value)
    peak = {name: test["usage"]["peak_memory"] for name, test in tests.items()}
    assert 95 << 20 < peak["test_memory"] - peak["test_empty"] < 115 << 20
    for name in ("test_cpu", "test_child_cpu"):
        usage = tests[name]["usage"]
        assert 0.28 < usage["cpu_user"] + usage["cpu_system"] < 0.8
        assert result.value(name, "ns_cpu") == pytest.approx(
            usage["cpu_user"] + usage["cpu_system"], abs=0.001
        )
        assert result.value(name, "ns_peak_memory") == usage["peak_memory"]
    phases = tests["test_phases"]["phases"]
    assert 0.05 <= phases["setup"]["seconds"] < 0.15
    assert 0.2 <= phases["call"]["seconds"] < 0.4
    assert 0.1 <= phases["teardown"]["seconds"] < 0.2
    for test in tests.values():
        assert test["limits"]["timeout"] == 60
        check_times(test)
    check_lanes(value["tests"], 1)
    assert value["session"]["options"]["keys"] == {"timeout": 60.0}
    assert value["session"]["workers"] == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_ending(run: Run, jobs: int) -> None:
    """However a test ends, the report has it."""
    run.tests(ENDINGS)
    run.isolated("--ns-report=report.json", f"--ns-jobs={jobs}")
    value = report(run)
    check_endings(value)
    check_lanes([test for test in value["tests"] if test["isolated"]], jobs)


def test_every_ending_under_xdist(run: Run) -> None:
    """Workers tell the controller, which writes the one report."""
    pytest.importorskip("xdist")
    run.plugins += ("xdist",)
    run.tests(ENDINGS)
    result = run.isolated("-n2", "--ns-report=report.json", "--ns-usage=2")
    value = report(run)
    check_endings(value)
    assert value["session"]["workers"] == ["gw0", "gw1"]
    assert {test["worker"] for test in value["tests"]} == {"gw0", "gw1"}
    assert result.out.count("usage of 11 isolated tests") == 1


def test_crashed_worker(run: Run) -> None:
    """A worker that a test of its own brings down is told as that test's failure."""
    pytest.importorskip("xdist")
    run.plugins += ("xdist",)
    run.tests("""
    @pytest.mark.isolated(False)
    def test_crashes():
        os._exit(1)

    def test_it():
        pass
    """)
    run.isolated("-n1", "--ns-report=report.json", "--ns-usage=1")
    tests = by_name(report(run))
    assert {name: test["outcome"] for name, test in tests.items()} == {
        "test_crashes": "failed",
        "test_it": "passed",
    }
    assert tests["test_it"]["isolated"]


def test_fork(run: Run) -> None:
    """Without namespaces there is the same report, less the sandboxes."""
    run.tests("def test_it(): pass")
    broken = {"PYTHONPATH": f"{run.path}"}
    run.write("conftest.py", NO_KEEPER)
    run.isolated("--ns-missing=fork", "--ns-report=report.json", env=broken).expect(passed=1)
    (test,) = report(run)["tests"]
    assert test["sandbox"] is None
    assert test["phases"]["sandbox"] is None
    assert test["usage"]["peak_memory"] > 0


NO_KEEPER = """
    import errno
    import pytest_nsisolate.plugin.starters as starters
    from pytest_nsisolate.core.linux.syscalls import StageError

    def gone(*_, **__):
        raise StageError("unshare", errno.EPERM)

    starters.Keeper = gone
"""


@pytest.mark.parametrize(
    ("missing", "outcome"), [("error", "error"), ("skip", "skipped"), ("run", "passed")]
)
def test_missing(run: Run, missing: str, outcome: str) -> None:
    """What this host can't isolate is told as what became of it."""
    run.tests("def test_it(): pass")
    run.write("conftest.py", NO_KEEPER)
    run.isolated(f"--ns-missing={missing}", "--ns-report=report.json")
    (test,) = report(run)["tests"]
    assert (test["outcome"], test["isolated"]) == (outcome, missing == "error")
    if test["isolated"]:
        assert test["ending"]["kind"] == "setup failed"
        assert test["usage"] is None


def test_no_isolated_tests(run: Run) -> None:
    """A session that isolates nothing has a report as well."""
    run.tests("def test_it(): pass")
    result = run("--ns-report=report.json", "--ns-usage=3")
    assert [test["outcome"] for test in report(run)["tests"]] == ["passed"]
    assert "no isolated test has told" in result.out


def test_reruns(run: Run) -> None:
    """Each run of a test is an entry."""
    pytest.importorskip("pytest_rerunfailures")
    run.plugins += ("rerunfailures",)
    run.tests("""
    def test_it():
        with open("tries", "a") as stream:
            stream.write("x")
        assert len(open("tries").read()) == 3
    """)
    run.isolated("--reruns=4", "--ns-report=report.json")
    tests = report(run)["tests"]
    assert [test["outcome"] for test in tests] == ["rerun", "rerun", "passed"]
    assert len({test["sandbox"]["id"] for test in tests}) == 3
    for test in tests:
        check_times(test)


def test_subtests(run: Run) -> None:
    """A subtest that fails is a failure of its test."""
    run.tests("""
    import unittest

    class TestIt(unittest.TestCase):
        def test_it(self):
            with self.subTest(n=1):
                self.assertEqual(1, 2)
    """)
    run.isolated("--ns-report=report.json")
    (test,) = report(run)["tests"]
    # Without the subtests of pytest 9 a failing one is not seen as such.
    assert test["outcome"] == "failed"


def test_exitfirst(run: Run) -> None:
    """-x ends the session early, and its report has what ran."""
    run.tests(ENDINGS)
    run.isolated("-x", "--ns-report=report.json", "--ns-report=report.html", "--ns-jobs=2")
    assert list(by_name(report(run))) == ["test_passes", "test_fails"]
    assert (run.path / "report.html").exists()


def test_ctrl_c(run: Run) -> None:
    """Ctrl-C leaves a report; the test that it hit is told as interrupted."""
    run.tests("""
    def test_passes():
        pass

    def test_waits():
        time.sleep(0.5)  # it is let go before the end of the one before is handed on
        open("fifo", "w").write("x")
        time.sleep(1000)
    """)
    fifo = run.path / "fifo"
    os.mkfifo(fifo)
    running = run.start("--ns-isolate", "--ns-report=report.json", "--ns-trace=trace.json")
    running.reached(fifo)
    running.process.send_signal(signal.SIGINT)
    result = running.wait()
    assert result.ret == pytest.ExitCode.INTERRUPTED, str(result)
    value = report(run)
    assert value["session"]["exit_status"] == 2
    assert by_name(value)["test_passes"]["outcome"] == "passed"
    assert json.loads((run.path / "trace.json").read_text())["traceEvents"]


def test_exit_from_within(run: Run) -> None:
    """A test that ends the session is told as interrupted, with what it used."""
    run.tests("""
    def test_exits():
        pytest.exit("enough", 7)
    """)
    run.isolated("--ns-report=report.json")
    value = report(run)
    (test,) = value["tests"]
    assert test["outcome"] == "interrupted"
    assert test["usage"]["peak_memory"] > 0
    assert value["session"]["exit_status"] == 7


def test_exit_from_within_under_xdist(run: Run) -> None:
    """What no report carries, a worker leaves to the controller."""
    pytest.importorskip("xdist")
    run.plugins += ("xdist",)
    run.tests("""
    def test_exits():
        pytest.exit("enough", 7)
    """)
    run.isolated("-n1", "--ns-report=report.json")
    (test,) = report(run)["tests"]
    assert (test["outcome"], test["worker"]) == ("interrupted", "gw0")
    assert test["usage"]["peak_memory"] > 0


def test_helper_killed(run: Run) -> None:
    """The sandboxes of a keeper that was killed are not those that tests ran in."""
    run.tests("""
    @pytest.mark.parametrize("n", range(6))
    def test_it(n):
        if n == 2:
            open("fifo", "w").write("x")
            time.sleep(1000)
    """)
    os.mkfifo(run.path / "fifo")
    running = run.start(
        "--ns-isolate", "--ns-jobs=2", "--ns-report=report.json", "--ns-trace=trace.json"
    )
    running.reached(run.path / "fifo")
    (keeper,) = running.descendants("keeper")
    os.kill(keeper, signal.SIGKILL)
    assert running.wait().ret == 1
    value = report(run)
    kinds = [test["ending"]["kind"] for test in value["tests"]]
    assert len(kinds) == 6
    # Whether the end of the test or that of the keeper is seen first, is chance.
    assert kinds[2] != "completed"
    assert "completed" in kinds
    for test in value["tests"]:
        if test["ending"]["kind"] == "completed":
            check_times(test)
    check_lanes([test for test in value["tests"] if test["start"] is not None], 2)


def test_claims_are_not_taken(run: Run) -> None:
    """What a test process says of itself is checked, or left out."""
    run.write(
        "conftest.py",
        """
        import os
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_report_to_serializable(report):
            data = yield
            if os.getppid() == 0:  # inside
                data["ns_record"] = {"isolated": "yes"}
                data["worker_id"] = ["gw0"]
                data["start"] = "soon" if report.when == "call" else float("nan")
            return data
        """,
    )
    run.tests("def test_it(): pass")
    run.isolated("--ns-report=report.json", "--ns-trace=trace.json").expect(passed=1)
    (test,) = report(run)["tests"]
    assert test["isolated"] is True
    assert test["worker"] is None
    assert test["phases"]["call"] is None
    assert test["usage"]["peak_memory"] > 0


def test_internal_error(run: Run) -> None:
    """A plugin that fails ends the session, and the report is written all the same."""
    run.tests("""
    def test_first():
        pass

    def test_second():
        pass
    """)
    run.write(
        "conftest.py",
        """
        def pytest_runtest_logstart(nodeid):
            if "second" in nodeid:
                raise RuntimeError("broken plugin")
    """,
    )
    result = run.isolated("--ns-report=report.json")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert [test["outcome"] for test in report(run)["tests"]] == ["passed"]


def test_unwritable_in_the_end(run: Run) -> None:
    """A report that can't be written any more fails the session, and the text says so."""
    run.tests("""
    @pytest.mark.isolated(False)
    def test_it():
        import shutil
        shutil.rmtree("reports")
    """)
    result = run("--ns-report=reports/a.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "could not write reports/a.json: No such file or directory" in result.out


def test_what_was_there_is_replaced(run: Run) -> None:
    """A report of before stays until the new one is whole; the mode is that of other files."""
    run.tests("def test_it(): assert 'old' in open('new/report.json').read()")
    (run.path / "new").mkdir()
    (run.path / "new/report.json").write_text("old")
    run.isolated("--ns-report=new/report.json").expect(passed=1)
    assert len(report(run, "new/report.json")["tests"]) == 1
    (run.path / "other").write_text("")
    modes = {(run.path / name).stat().st_mode for name in ("new/report.json", "other")}
    assert len(modes) == 1


def test_collect_only_writes_nothing(run: Run) -> None:
    """A look at the tests does not overwrite the report of a run."""
    run.tests("def test_it(): pass")
    run.isolated("--collect-only", "--ns-report=report.json")
    assert not (run.path / "report.json").exists()


def test_environment_is_not_told(run: Run) -> None:
    """Values of environment variables may be secrets: the report has their names only."""
    run.tests("def test_it(): pass")
    run.isolated("--ns-env=TOKEN=geheim", "--ns-report=report.json").expect(passed=1)
    assert report(run)["session"]["options"]["keys"] == {"env": ["TOKEN"]}
    assert "geheim" not in (run.path / "report.json").read_text()


def test_reports_are_not_altered(run: Run) -> None:
    """Other plugins see the reports as they are without the option."""
    run.tests(ENDINGS)

    def seen(result: Result) -> list[tuple[object, ...]]:
        return [
            (one.nodeid, one.when, one.outcome, [name for name, _ in one.properties])
            for one in result.phases
        ]

    plain = run.isolated()
    recorded = run.isolated("--ns-report=report.json", "--ns-usage=1")
    assert seen(plain) == seen(recorded)


# the table


def table(result: Result) -> list[str]:
    """The lines of the table, its title first."""
    found = re.search(
        r"^=+ usage .*?(?=^(=|nsisolate:|FAILED|\d+ |\Z))", result.out, re.MULTILINE | re.DOTALL
    )
    assert found, str(result)
    return found[0].splitlines()


@pytest.mark.parametrize(
    "options", [(), ("-q",), ("-qq",), ("-v",), ("--tb=no", "-p", "no:junitxml")]
)
def test_table(run: Run, options: tuple[str, ...]) -> None:
    """Most memory first, then most CPU, N of each."""
    run.tests(COSTS)
    lines = table(run.isolated("--ns-usage=2", "--ns-report=report.json", *options))
    # Where memory is slow to come by, as under emulation, it may be one of these two.
    usage = {name: test["usage"] for name, test in by_name(report(run)).items()}
    spent = {name: cost["cpu_user"] + cost["cpu_system"] for name, cost in usage.items()}
    most = sorted(spent, key=lambda name: -spent[name])[:2]
    assert "usage of 5 isolated tests" in lines[0]
    assert len(lines) == 8
    assert lines[1].split() == ["memory", "CPU", "wall", "most", "memory"]
    assert lines[2].endswith("  test_it.py::test_memory")
    assert lines[4].endswith("most CPU")
    assert [line.split("::")[-1] for line in lines[5:7]] == most
    assert set(most) <= {"test_cpu", "test_child_cpu", "test_memory"}
    assert re.fullmatch(r" *1\d\d\.\d MiB +\d+\.\d+ m?s +\d+\.\d+ m?s  \S+", lines[2])


NAME = "\u65e5\u672c\u8a9e\u306e\u540d\u524d" * 9


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_table_fits(run: Run, columns: int) -> None:
    """Long names lose their middle, whatever they are made of, and lines stay lines."""
    run.tests(f"""
    @pytest.mark.parametrize("value", ["a b", "\\u65e5\\u672c", "a\\nb\\x1b[31m"])
    def test_a_name_that_is_{"rather_" * 9}long_as_names_go(value):
        pass

    def test_{NAME}():
        pass
    """)
    options = ("-o", "disable_test_id_escaping_and_forfeit_all_rights_to_community_support=true")
    for environment in ({"PYTHONUTF8": "1"}, {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}):
        env = {"COLUMNS": str(columns), **environment}
        result = run.isolated("--ns-usage=9", *options, env=env)
        assert result.ret == 0, str(result)
        lines = table(result)
        assert len(lines) == 1 + 2 * (1 + 4) + 1
        if "PYTHONUTF8" in environment and columns > 50:
            assert max(sum(map(width_of, line)) for line in lines[:-1]) <= columns
            assert "..." in lines[2]


def test_off_means_off(run: Run) -> None:
    """Without an option nothing of all this is imported."""
    run.write(
        "conftest.py",
        """
        import sys

        def pytest_sessionfinish():
            names = "recorder report_files chrome_trace usage_table".split()
            modules = [f"pytest_nsisolate.reports.{name}" for name in names]
            modules.append("pytest_nsisolate.runner.timeline")
            loaded = [name for name in modules if name in sys.modules]
            assert not loaded, loaded
    """,
    )
    run.tests("def test_it(): pass")
    run.isolated().expect(passed=1)
