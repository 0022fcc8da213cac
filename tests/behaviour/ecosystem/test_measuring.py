"""Plugins that measure or search: coverage without pytest-cov, pytest-benchmark, hypothesis."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from helpers.hosts import DEADLINE
from helpers.plugins import load, require
from helpers.run import same

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

BOTH = pytest.mark.parametrize("jobs", [1, 2])

COVERED = """
    import subprocess
    import sys
    import threading

    def kind(number):
        if number > 100:
            return "large"
        elif number > 10:
            return "medium"
        for divisor in range(2, number):
            if number % divisor == 0:
                break
        else:
            return "prime"
        return "small"

    def in_thread(number):
        found = []
        thread = threading.Thread(target=lambda: found.append(kind(number)))
        thread.start()
        thread.join()
        return found[0]

    def never():
        return None
"""

COVERING = """
    from covered import in_thread, kind

    @pytest.mark.parametrize("number", [4, 7])
    def test_small(number):
        assert kind(number) in ("small", "prime")

    def test_thread():
        assert in_thread(50) == "medium"

    def test_fails():
        assert kind(4) == "prime"

    @pytest.mark.isolated(False)
    def test_in_runner():
        assert kind(9) == "small"
"""


UNDER_COVERAGE = """
import os, sys
os.execv(sys.argv[1], [sys.argv[1], "-m", "coverage", "run", *sys.argv[2:]])
"""


def report(run: Run, *names: str) -> dict[str, Any]:
    """What `coverage json` says, after `coverage combine` where that is needed."""
    combine = [["combine", "-q"]] if list(run.path.glob(".coverage.*")) else []
    for words in (*combine, ["json", "-q", "-o", "coverage.json"]):
        command = [sys.executable, "-m", "coverage", *words]
        subprocess.run(command, cwd=run.path, check=True, timeout=DEADLINE)
    data = json.loads((run.path / "coverage.json").read_text("utf-8"))
    (file,) = data["files"].values()
    return {name: file[name] for name in names}


@pytest.mark.parametrize(("jobs", "parallel"), [(1, "false"), (2, "false"), (2, "true")])
def test_plain_coverage(run_as_each: Run, jobs: int, parallel: str) -> None:
    """`coverage run --branch -m pytest` counts the same lines and branches."""
    require("coverage")
    run = run_as_each
    run.write("covered.py", COVERED)
    run.write(".coveragerc", f"[run]\nbranch = true\ninclude = covered.py\nparallel = {parallel}\n")
    run.tests(COVERING)
    prefix = [sys.executable, "-c", UNDER_COVERAGE]
    found = []
    for options in ((), ("--ns-isolate", f"--ns-jobs={jobs}")):
        run(*options, prefix=prefix).expect(passed=4, failed=1)
        found.append(report(run, "summary", "executed_branches", "missing_branches"))
    assert found[1] == found[0]
    assert found[0]["summary"]["missing_branches"] > 0


def test_coverage_of_a_crash(run_as_each: Run) -> None:
    """What a test ran before it crashed is not measured; all others are, and the run goes on."""
    require("coverage")
    run = run_as_each
    run.write("covered.py", COVERED)
    run.write(".coveragerc", "[run]\ninclude = covered.py\n")
    run.tests("""
    import covered

    def test_crashes():
        covered.never()
        os.abort()

    def test_good():
        assert covered.kind(50) == "medium"
    """)
    result = run.isolated(prefix=[sys.executable, "-c", UNDER_COVERAGE])
    result.expect(passed=1, failed=1)
    lines = COVERED.splitlines()
    missing = [
        lines[number - 1].strip() for number in report(run, "missing_lines")["missing_lines"]
    ]
    assert "return None" in missing
    assert 'return "medium"' not in missing


BENCHMARKS = """
    import heapq

    @pytest.mark.parametrize("size", [10, 100])
    def test_sorts(benchmark, size):
        benchmark.group = "sorting"
        benchmark.extra_info["kind"] = "heap"
        assert benchmark(heapq.nsmallest, 5, range(size)) == [0, 1, 2, 3, 4]

    def test_pedantic(benchmark):
        benchmark.pedantic(sum, args=([1, 2],), rounds=7, iterations=2)
        assert benchmark.stats.stats.rounds == 7

    def test_fails(benchmark):
        benchmark(lambda: 1 / 0)

    @pytest.mark.isolated(False)
    def test_in_runner(benchmark):
        benchmark(len, ())

    def test_other():
        pass
"""


@BOTH
def test_benchmark(run: Run, jobs: int) -> None:
    """What was measured inside is in the table and in the JSON file, profiles included."""
    load(run, "benchmark")
    run.tests(BENCHMARKS)
    options = ("--benchmark-max-time=0.01", "--benchmark-cprofile=tottime")
    found = []
    for number, more in enumerate(((), ("--ns-isolate", f"--ns-jobs={jobs}"))):
        result = run(*options, *more, f"--benchmark-json=benchmark-{number}.json")
        result.expect(passed=5, failed=1)
        data = json.loads((run.path / f"benchmark-{number}.json").read_text("utf-8"))
        found.append(data["benchmarks"])
        assert "benchmark 'sorting': 2 tests" in result.out, str(result)
        assert "cProfile (time in s)" in result.out
        assert "nsmallest" in result.out
    plain, isolated = found
    keys = ("name", "fullname", "group", "params", "param", "extra_info", "options")
    assert [[one[key] for key in keys] for one in isolated] == [
        [one[key] for key in keys] for one in plain
    ]
    for one in isolated:
        assert len(one["stats"]["data"]) == one["stats"]["rounds"] >= 5
        assert 0 < one["stats"]["min"] <= one["stats"]["mean"] <= one["stats"]["max"]
    (pedantic,) = [one["stats"] for one in isolated if one["name"] == "test_pedantic"]
    assert (pedantic["rounds"], pedantic["iterations"]) == (7, 2)


def test_benchmark_compares(run: Run) -> None:
    """What a plain run saved is compared with, and a regression ends the run."""
    load(run, "benchmark")
    run.tests("""
    def test_it(benchmark):
        pause = 0.2 if "--ns-isolate" in sys.argv else 0
        benchmark.pedantic(time.sleep, args=(pause,), rounds=2)
    """)
    run("--benchmark-save=before").expect(passed=1)
    result = run.isolated("--benchmark-compare", "--benchmark-compare-fail=min:100%")
    assert "Comparing against benchmarks from" in result.out + result.err, str(result)
    assert "Performance has regressed" in result.out + result.err, str(result)


HYPOTHESIS = """
    from hypothesis import given, settings, strategies
    from hypothesis.database import DirectoryBasedExampleDatabase

    settings.register_profile(
        "tested", deadline=None, database=DirectoryBasedExampleDatabase(".hypothesis/examples")
    )
    settings.load_profile("tested")

    tried = []

    @given(strategies.integers(min_value=0))
    def test_does_not_hold(number):
        tried.append(number)
        assert number < 1000

    def teardown_module():
        with open("tried.txt", "w") as stream:
            print(tried[0], file=stream)
"""


@BOTH
def test_hypothesis_database(run_as_each: Run, jobs: int) -> None:
    """What failed in one run is what the next one tries first, isolated or not."""
    run = run_as_each
    load(run, "hypothesispytest")
    run.tests(HYPOTHESIS)
    run.isolated(f"--ns-jobs={jobs}").expect(failed=1)
    for options in (("--ns-isolate", f"--ns-jobs={jobs}"), ()):
        run(*options).expect(failed=1)
        assert (run.path / "tried.txt").read_text() == "1000\n"


@BOTH
def test_hypothesis_seed(run: Run, jobs: int) -> None:
    """--hypothesis-seed gives the same examples."""
    load(run, "hypothesispytest")
    run.tests("""
    from hypothesis import given, settings, strategies

    @settings(database=None, deadline=None, max_examples=20)
    @given(strategies.permutations("abcdef"))
    def test_prints(letters):
        print(*letters)

    @settings(database=None, deadline=None)
    @given(strategies.lists(strategies.booleans()))
    def test_fails(values):
        assert len(values) < 3
    """)
    result = same(run, "-rP", "--hypothesis-seed=3", jobs=[jobs])
    assert result.verdicts == {"test_prints": "passed", "test_fails": "failed"}
