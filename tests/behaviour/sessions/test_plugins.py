"""Isolated tests get on with the plugins that people use."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from helpers.plugins import load
from helpers.run import same
from helpers.samples import MIXED

if TYPE_CHECKING:
    from helpers.run import Result, Run

pytestmark = pytest.mark.needs("sandbox")

JOBS = pytest.mark.parametrize("jobs", [1, 2])


def test_xdist_outcomes(run: Run) -> None:
    """Under xdist every test has the outcome that it has without."""
    load(run, "xdist")
    run.tests(MIXED)
    serial, parallel = run.isolated(), run.isolated("-n2")
    assert sorted(parallel.verdicts.items()) == sorted(serial.verdicts.items()), str(parallel)
    assert parallel.ret == serial.ret
    assert sorted(w.text for w in parallel.warnings) == sorted(w.text for w in serial.warnings)


def test_xdist_crash(run: Run) -> None:
    """A crash takes no worker with it, and names the test."""
    load(run, "xdist")
    run.tests("""
    @pytest.mark.parametrize("n", range(20))
    def test_it(n):
        if n == 7:
            ctypes.string_at(0)
    """)
    result = run.isolated("-n2")
    result.expect(passed=19, failed=1)
    assert result.verdicts["test_it[7]"] == "failed"
    # The line above names the worker.
    assert "\nCRASHED with signal 11 (SIGSEGV)" in result.of("test_it[7]").text
    assert "worker 'gw" not in result.out, "no worker crashed"


def test_xdist_with_jobs(run: Run) -> None:
    """Each worker may have several tests in flight."""
    load(run, "xdist")
    run.tests("""
    @pytest.mark.parametrize("n", range(30))
    def test_it(n):
        assert os.getppid() == 0
    """)
    run.isolated("-n2", "--ns-jobs=2").expect(passed=30)


def test_xdist_over_hosts(run: Run) -> None:
    """Workers that a host is reached by: here one of them by a socket, with files of its own."""
    load(run, "xdist")
    run.write("suite/pytest.ini", "[pytest]")
    run.write(
        "suite/test_it.py",
        """
        import ctypes, os, socket, time
        import pytest

        @pytest.mark.parametrize("n", range(12))
        def test_it(n, worker_id):
            assert os.getppid() == 0
            socket.create_server(("127.0.0.1", 80))
            time.sleep(0.2)  # so that neither worker has done all before the other has begun
            if n == 7:
                ctypes.string_at(0)
        """,
    )
    elsewhere = run.path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-u", "-m", "execnet.script.socketserver", "127.0.0.1:0"]
    # That host has the plugins of the runs as well.
    path = os.pathsep.join([str(run.path), *filter(None, [os.environ.get("PYTHONPATH")])])
    server = subprocess.Popen(
        command,
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert server.stdout is not None
        found = None
        while not found:
            line = server.stdout.readline()
            assert line, "the server has ended"
            found = re.search(r"Accept loop \('127.0.0.1', (\d+)\)", line)
        suite = run.path / "suite"
        where = ("--tx=popen", f"--tx=socket=127.0.0.1:{found[1]}", "--rsyncdir", suite, suite)
        result = run.isolated("--dist=load", "-v", *where)
    finally:
        server.kill()
        server.communicate()
    assert Counter(result.verdicts.values()) == {"passed": 11, "failed": 1}, str(result)
    crash = next(one for one in result.phases if one.outcome == "failed")
    assert crash.nodeid.endswith("test_it[7]")
    assert "\nCRASHED with signal 11 (SIGSEGV)" in crash.text
    assert "[gw0]" in result.out
    assert "[gw1]" in result.out
    assert list(elsewhere.glob("pyexecnetcache/suite/test_it.py"))


@pytest.mark.parametrize("method", ["signal", "thread"])
@pytest.mark.parametrize("how", ["option", "mark"])
def test_pytest_timeout(run: Run, method: str, how: str) -> None:
    """pytest-timeout's limit holds inside and ends that test alone, by either method."""
    load(run, "timeout")
    mark = f"@pytest.mark.timeout(1, method={method!r})" if how == "mark" else ""
    run.tests(f"""
    def test_before():
        pass

    {mark}
    def test_endless():
        where_it_hangs()

    def where_it_hangs():
        while True:
            time.sleep(0.1)

    def test_after():
        pass
    """)
    options = ["--timeout=1", f"--timeout-method={method}"] if how == "option" else []
    result = run.isolated(*options)
    verdicts = {"test_before": "passed", "test_endless": "failed", "test_after": "passed"}
    assert result.verdicts == verdicts, str(result)
    assert "INTERNALERROR" not in result.out + result.err
    assert "where_it_hangs" in result.of("test_endless").everything
    assert re.search("timeout|timed out", result.of("test_endless").everything, re.IGNORECASE)


FLAKY = """
    def count(name):
        with open(name, "a") as stream:
            stream.write("x")
        with open(name) as stream:
            return len(stream.read())

    def litter():
        assert not os.path.exists("/tmp/litter"), "each attempt has a fresh sandbox"
        open("/tmp/litter", "x").close()

    def test_flaky():
        litter()
        assert count("flaky.txt") == 3

    def test_crashes_once():
        litter()
        if count("crash.txt") == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    @pytest.fixture
    def breaks_once():
        if count("setup.txt") == 1:
            raise LookupError("once")

    def test_setup_fails_once(breaks_once):
        litter()

    def test_never():
        litter()
        count("never.txt")
        assert 0

    def test_good():
        pass
"""


@JOBS
def test_reruns(run: Run, jobs: int) -> None:
    """Failed and crashed tests are run again, each attempt in a fresh sandbox."""
    load(run, "rerunfailures")
    run.tests(FLAKY)
    result = run.isolated("--reruns=2", f"--ns-jobs={jobs}", "-rR")
    assert result.verdicts == {
        "test_flaky": "rerun+rerun+passed",
        "test_crashes_once": "rerun+passed",
        "test_setup_fails_once": "rerun+passed",
        "test_never": "rerun+rerun+failed",
        "test_good": "passed",
    }, str(result)
    assert "6 rerun" in result.out
    assert (run.path / "never.txt").read_text() == "xxx"


def test_marked_reruns(run: Run) -> None:
    """The flaky mark works like the option."""
    load(run, "rerunfailures")
    run.tests(FLAKY.replace("def test_flaky", "@pytest.mark.flaky(reruns=2)\n    def test_flaky"))
    result = run.isolated("-k", "test_flaky or good")
    assert result.verdicts == {"test_flaky": "rerun+rerun+passed", "test_good": "passed"}


COVERED = """
    def sign(number):
        if number > 0:
            return 1
        elif number < 0:
            return -1
        return 0

    def never():
        return None
"""


def totals(run: Run, *args: str) -> dict[str, object]:
    """What pytest-cov measured of the module, by branch, as data."""
    source = "--cov=covered", "--cov-branch", "--cov-report=json:cov.json"
    result = run(*source, *args)
    result.expect(passed=3)
    measured = json.loads((run.path / "cov.json").read_text())["files"]["covered.py"]
    (run.path / "cov.json").unlink()
    return {name: measured[name] for name in ("executed_lines", "missing_lines", "summary")}


@JOBS
def test_coverage(run: Run, jobs: int) -> None:
    """pytest-cov measures the same with and without isolation."""
    load(run, "pytest_cov")
    run.write("covered.py", COVERED)
    run.tests("""
    from covered import sign

    @pytest.mark.parametrize("number", [-3, 0])
    def test_sign(number, tmp_path):
        assert sign(number) in (-1, 0)

    @pytest.mark.isolated(False)
    def test_in_runner():
        assert sign(3) == 1
    """)
    plain = totals(run)
    assert plain["missing_lines"] == [10]
    assert totals(run, "--ns-isolate", f"--ns-jobs={jobs}") == plain
    assert not list(run.path.glob(".coverage.*")), "every data file was combined"


@JOBS
def test_coverage_command(run: Run, jobs: int) -> None:
    """`coverage run -m pytest` too; the contexts of pytest-cov name the tests."""
    load(run, "pytest_cov")
    run.write("covered.py", COVERED)
    run.tests("""
    from covered import sign

    def test_one():
        sign(1)

    def test_two():
        sign(-1)
    """)
    options = ["--cov=covered", "--cov-context=test", "--cov-report="]
    run.isolated(*options, f"--ns-jobs={jobs}").expect(passed=2)
    with sqlite3.connect(run.path / ".coverage") as database:
        contexts = {name for (name,) in database.execute("select context from context")}
    database.close()
    assert {"test_it.py::test_one|run", "test_it.py::test_two|run"} <= contexts


def test_coverage_of_a_failed_test(run: Run) -> None:
    """Lines run by a test that fails are measured."""
    load(run, "pytest_cov")
    run.write("covered.py", COVERED)
    run.tests("""
    from covered import sign

    def test_fails():
        assert sign(5) == -1
    """)
    result = run.isolated("--cov=covered", "--cov-report=json:cov.json")
    result.expect(failed=1)
    measured = json.loads((run.path / "cov.json").read_text())["files"]["covered.py"]
    assert 4 in measured["executed_lines"]


def test_asyncio(run: Run) -> None:
    """Coroutines and asynchronous fixtures of every scope."""
    load(run, "asyncio")
    run.tests("""
    import asyncio
    import pytest_asyncio

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def server():
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 80)
        yield server
        server.close()

    @pytest.mark.asyncio(loop_scope="module")
    @pytest.mark.parametrize("n", range(2))
    async def test_connects(server, n):
        reader, writer = await asyncio.open_connection("127.0.0.1", 80)
        assert await reader.read() == b""
        writer.close()

    @pytest.mark.asyncio
    async def test_fails():
        await asyncio.sleep(0)
        assert 0
    """)
    result = same(run, "-k", "fails")
    assert result.verdicts == {"test_fails": "failed"}
    run.isolated("-k", "connects", "--ns-jobs=2").expect(passed=2)


HYPOTHESIS = """
    from hypothesis import given, settings, strategies
    from hypothesis.database import DirectoryBasedExampleDatabase

    # named, because hypothesis goes without a database where it finds itself in a CI
    settings.register_profile(
        "tested", deadline=None, database=DirectoryBasedExampleDatabase(".hypothesis/examples")
    )
    settings.load_profile("tested")

    @given(strategies.integers())
    def test_holds(number):
        assert number == int(str(number))

    @given(strategies.integers(min_value=0))
    def test_does_not(number):
        assert number < 1000
"""


def test_hypothesis(run: Run) -> None:
    """Falsifying examples are shown, and found again through the database on the host."""
    load(run, "hypothesispytest")
    run.tests(HYPOTHESIS)
    first = run.isolated("--hypothesis-show-statistics")
    assert first.verdicts == {"test_holds": "passed", "test_does_not": "failed"}, str(first)
    assert "number=1000" in first.of("test_does_not").everything
    assert (run.path / ".hypothesis" / "examples").is_dir()
    assert statistics(first) == statistics(run("--hypothesis-show-statistics"))


def statistics(result: Result) -> list[str]:
    """The tests that the statistics of hypothesis are about."""
    return re.findall(r"^(test_it\.py::\w+):$", result.out, re.MULTILINE)


def test_pytester(run: Run) -> None:
    """An isolated test may run pytest itself, with tests that are isolated in turn."""
    run.write("conftest.py", 'pytest_plugins = ["pytester"]')
    run.tests("""
    def test_outer(pytester):
        pytester.makepyfile(
            "import os, socket\\n"
            "def test_inner():\\n"
            "    assert os.getppid() == 0\\n"
            "    assert socket.gethostname() == 'isolated'\\n"
            "def test_crash():\\n"
            "    os.abort()\\n"
        )
        result = pytester.runpytest_subprocess("-pnsisolate", "--ns-isolate", timeout=50)
        result.assert_outcomes(passed=1, failed=1)

    def test_in_process(pytester):
        pytester.makepyfile("def test_inner(): pass")
        pytester.runpytest_inprocess("-pnsisolate", "--ns-isolate").assert_outcomes(passed=1)
    """)
    run.isolated("--ns-jobs=2").expect(passed=2)


def test_pytester_in_one_process(run: Run) -> None:
    """Runs of isolated tests in the process of pytest itself, one after another."""
    run.write("conftest.py", 'pytest_plugins = ["pytester"]')
    run.tests("""
    @pytest.mark.parametrize("n", range(3))
    def test_in_process(pytester, n):
        pytester.makepyfile(test_inner=f"import os\\ndef test_inner(): assert os.getppid() == {n}")
        result = pytester.runpytest_inprocess("-pnsisolate", "--ns-isolate")
        result.assert_outcomes(passed=n == 0, failed=n > 0)

    def test_shown(pytester):
        pytester.makepyfile(
            test_inner="import logging\\n"
            "def test_inner():\\n"
            "    logging.warning('said live')\\n"
            "    print('printed')\\n"
        )
        options = ("-s", "--log-cli-level=INFO", "-pnsisolate", "--ns-isolate")
        result = pytester.runpytest_inprocess(*options)
        result.stdout.fnmatch_lines(["*said live*", "printed*"])
    """)
    run().expect(passed=4)


def test_conflicting_plugin(run: Run) -> None:
    """Another plugin that owns the marker `isolated` is refused, with the way out."""
    source = "def pytest_configure(config):\n"
    source += "    config.addinivalue_line('markers', 'isolated: of another plugin')\n"
    run.write("pytest_isolated.py", source)
    run.tests("def test_it(): pass")
    result = run.isolated("-p", "pytest_isolated")
    assert result.ret == pytest.ExitCode.USAGE_ERROR, str(result)
    assert "-p no:" in result.out + result.err


@pytest.mark.parametrize("fs", ["readonly", "overlay"])
def test_coverage_of_sealed_tests(run_as_each: Run, fs: str) -> None:
    """The same lines as plainly, although no test can write beside the checkout."""
    load(run_as_each, "pytest_cov")
    run_as_each.write("covered.py", COVERED)
    run_as_each.tests("""
    from covered import sign

    @pytest.mark.parametrize("number", [-3, 0])
    def test_sign(number):
        assert sign(number) in (-1, 0)

    @pytest.mark.isolated(False)
    def test_in_runner():
        assert sign(3) == 1
    """)
    plain = totals(run_as_each)
    assert plain["missing_lines"] == [10]
    for more in ((), ("--cov-context=test",)):
        assert totals(run_as_each, "--ns-isolate", f"--ns-fs={fs}", *more) == plain
    assert not list(run_as_each.path.glob(".coverage.*")), "every data file was combined"
    assert not list(run_as_each.path.glob("basetemp-*/.coverage*"))
