"""What a hook raises for a report that it is handed ends the run as it does in plain pytest."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from helpers.hosts import DEADLINE
from helpers.run import normalised

if TYPE_CHECKING:
    from helpers.run import Result, Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]

TESTS = """
    import unittest

    @pytest.fixture
    def fixture():
        print("before")
        yield

    def test_first(fixture):
        warnings.warn("from the first")

    def test_fails(fixture):
        assert 0, "as it has to"

    class TestUnit(unittest.TestCase):
        def test_method(self):
            pass

    def test_last(fixture):
        warnings.warn("from the last")
"""

RAISES = {
    "usage": "raise pytest.UsageError('no such value')",
    "runtime": "raise RuntimeError('out of order')",
    "assert": "assert 1 == 2, 'never'",
    "os": "open('/no/such/file')",
    "system-exit": "raise SystemExit(7)",
    "pytest-exit": "pytest.exit('enough', returncode=5)",
    "interrupt": "raise KeyboardInterrupt",
    "fail": "pytest.fail('failed in a hook')",
    "skip": "pytest.skip('skipped in a hook')",
}

HOOKS = {
    "logreport": "def pytest_runtest_logreport(report):\n"
    "    at = f'{report.nodeid.split(\"::\")[-1]} {report.when}'",
    "warning": "def pytest_warning_recorded(warning_message, nodeid):\n"
    "    at = f'{nodeid.split(\"::\")[-1]} warning'",
    "logstart": "def pytest_runtest_logstart(nodeid):\n"
    "    at = f'{nodeid.split(\"::\")[-1]} start'",
    "logfinish": "def pytest_runtest_logfinish(nodeid):\n"
    "    at = f'{nodeid.split(\"::\")[-1]} finish'",
    "status": "def pytest_report_teststatus(report):\n"
    "    at = f'{report.nodeid.split(\"::\")[-1]} {report.when}'",
}

CASES = [
    *(("logreport", "test_fails call", how) for how in RAISES),
    *(("logreport", f"{test} {when}", "runtime")
      for test in ("test_first", "test_last") for when in ("setup", "call", "teardown")),
    ("logreport", "test_method call", "usage"),
    ("logreport", "test_last teardown", "pytest-exit"),
    *(("warning", f"{test} warning", how)
      for test in ("test_first", "test_last") for how in ("usage", "runtime", "interrupt")),
    *(("logstart", "test_fails start", how) for how in ("usage", "runtime", "pytest-exit")),
    *(("logfinish", "test_fails finish", how) for how in ("usage", "runtime", "pytest-exit")),
    *(("status", "test_first call", how) for how in ("usage", "runtime", "interrupt", "fail")),
]  # fmt: skip


def conftest(hook: str, where: str, how: str) -> str:
    """One that raises in *hook* at *where*, in the process that owns the session alone."""
    return (
        "import os\nimport pytest\nRUNNER = os.getpid()\n\n"
        f"{HOOKS[hook]}\n"
        f"    if at == {where!r} and os.getpid() == RUNNER:\n        {RAISES[how]}\n"
    )


def seen(result: Result) -> list[str]:
    """What a user sees, without the frames of a traceback through pytest itself."""
    lines = [line for line in normalised(result.out) if not re.match(r"INTERNALERROR>(  |$)", line)]
    return [*lines, *result.err.splitlines()]


def alike(run: Run, *args: str, isolate: tuple[str, ...] = ("--ns-isolate",)) -> Result:
    """Run plainly and isolated, and compare; that nothing is left is held by each run."""
    plain, isolated = run(*args), run(*isolate, *args, timeout=2 * DEADLINE)
    assert isolated.ret == plain.ret, f"{plain}\n{isolated}"
    assert seen(isolated) == seen(plain)
    assert "REPORT BROKEN" not in isolated.out
    return plain


@pytest.mark.parametrize(("hook", "where", "how"), CASES)
def test_what_a_hook_raises_ends_the_run_as_it_does_plainly(
    run: Run, hook: str, where: str, how: str
) -> None:
    """Exit code, the text, and the reports before it are the same, and nothing is left."""
    run.tests(TESTS)
    run.write("conftest.py", conftest(hook, where, how))
    plain = alike(run)
    assert plain.ret not in (0, 1), "the hook did not raise"


@pytest.mark.parametrize("how", ["usage", "interrupt"])
@pytest.mark.parametrize(
    "options", [["--ns-jobs=2"], ["--ns-scope=module"], ["-x"], ["-s"], ["-v"]]
)
def test_so_it_does_however_tests_are_run(run_as_each: Run, how: str, options: list[str]) -> None:
    run_as_each.tests(TESTS)
    run_as_each.write("conftest.py", conftest("logreport", "test_fails call", how))
    own = tuple(one for one in options if one.startswith("--ns"))
    plainly = [one for one in options if one not in own]
    plain = alike(run_as_each, *plainly, isolate=("--ns-isolate", *own))
    assert plain.ret not in (0, 1), "the hook did not raise"


def test_fixtures_are_torn_down_all_the_same(run: Run) -> None:
    """Those of the test whose report it was, as in plain pytest, even if that takes a while."""
    run.tests("""
    @pytest.fixture
    def fixture():
        yield
        time.sleep(0.5)
        open("torn-down", "w").close()

    def test_it(fixture):
        pass
    """)
    run.write("conftest.py", conftest("logreport", "test_it call", "usage"))
    assert alike(run).ret == 4
    mark = run.path / "torn-down"
    assert mark.exists()
    mark.unlink()
    run.isolated()
    assert mark.exists()


@pytest.mark.parametrize("how", ["usage", "runtime", "pytest-exit"])
def test_so_it_does_in_a_worker_of_xdist(run: Run, how: str) -> None:
    """In a worker the hook's error is the worker's end, which its controller tells."""
    run.plugins = (*run.plugins, "xdist")
    run.tests("def test_one(): pass\ndef test_two(): pass")
    run.write("conftest.py", conftest("logreport", "test_one call", how))
    plain, isolated = (run("-n1", *more, timeout=2 * DEADLINE) for more in ([], ["--ns-isolate"]))
    assert isolated.ret == plain.ret, f"{plain}\n{isolated}"
    assert "REPORT BROKEN" not in isolated.out
    said = {
        "usage": "no such value", "runtime": "out of order", "pytest-exit": "enough",
    }[how]  # fmt: skip
    assert (said in isolated.out) == (said in plain.out)


def test_so_it_does_in_the_controller_of_xdist(run: Run) -> None:
    run.plugins = (*run.plugins, "xdist")
    run.tests("def test_one(): pass\ndef test_two(): pass")
    run.write("conftest.py", """
        import pytest
        def pytest_runtest_logreport(report):
            if hasattr(report, "node") and report.when == "call":
                raise pytest.UsageError("no such value")
    """)  # fmt: skip
    plain, isolated = (run("-n2", *more, timeout=2 * DEADLINE) for more in ([], ["--ns-isolate"]))
    assert isolated.ret == plain.ret == 4, f"{plain}\n{isolated}"
    assert "no such value" in isolated.out + isolated.err


def test_a_hook_that_stops_the_session_stops_it_as_it_does_plainly(run: Run) -> None:
    """Also where the test itself ends with a failure that -x would stop at."""
    run.tests(TESTS)
    run.write("conftest.py", """
        import os
        RUNNER = os.getpid()
        def pytest_sessionstart(session):
            global SESSION
            SESSION = session
        def pytest_runtest_logreport(report):
            if os.getpid() == RUNNER and report.when == "call":
                SESSION.shouldstop = "a hook has seen enough"
    """)  # fmt: skip
    assert "a hook has seen enough" in alike(run).out
    alike(run, "-W", "error")
    alike(run, "-x", "-k", "fails")


def test_a_bad_setting_that_is_found_when_a_report_is_shown_ends_the_run(run: Run) -> None:
    run.tests(TESTS)
    run.write("conftest.py", """
        import os, pytest
        RUNNER = os.getpid()
        def pytest_addoption(parser):
            parser.addini("shown", "how")
        def pytest_report_teststatus(report, config):
            if os.getpid() == RUNNER and config.getini("shown") not in ("", "long"):
                raise pytest.UsageError("shown: allowed is long")
    """)  # fmt: skip
    run.write("pytest.ini", "[pytest]\nshown = wide\n")
    assert alike(run).ret == 4


@pytest.mark.parametrize("how", ["runtime", "usage", "pytest-exit"])
def test_makereport_in_the_runner_raises_as_any_hook(run: Run, how: str) -> None:
    """Of a test that crashed the report is made in the runner."""
    run.tests("def test_crash(): os.kill(os.getpid(), 9)\ndef test_next(): pass")
    run.write("conftest.py", (
        "import os, pytest\nRUNNER = os.getpid()\n"
        "def pytest_runtest_makereport(item, call):\n"
        f"    if os.getpid() == RUNNER:\n        {RAISES[how]}\n"
    ))  # fmt: skip
    result = run.isolated()
    assert result.ret == {"runtime": 3, "usage": 4, "pytest-exit": 5}[how], str(result)


def test_what_is_raised_for_a_report_of_a_subtest_fails_its_test(run: Run) -> None:
    """In plain pytest it is raised in the test."""
    run.tests("""
    def test_it(subtests):
        with subtests.test("one"):
            assert 0

    def test_next():
        pass
    """)
    run.write("conftest.py", """
        import os
        RUNNER = os.getpid()
        def pytest_runtest_logreport(report):
            if os.getpid() == RUNNER and hasattr(report, "context"):
                raise RuntimeError("out of order")
    """)  # fmt: skip
    pytest.importorskip("_pytest.subtests", reason="of pytest 9")
    plain, isolated = run(), run.isolated()
    assert isolated.verdicts == plain.verdicts, f"{plain}\n{isolated}"
    assert isolated.ret == plain.ret == 1
    assert "RuntimeError: out of order" in isolated.of("test_it").text


@pytest.mark.parametrize("options", [[], ["-v", "-rA"], ["--junitxml=report.xml"]])
@pytest.mark.parametrize("forged", [
    ("longrepr={'reprcrash': {'path': 1, 'lineno': 'x', 'message': 3}, 'reprtraceback':"
    " {'reprentries': [{'type': 'ReprEntryNative', 'data': {'lines': [5]}}], 'extraline': 4,"
    " 'style': 2}, 'sections': [], 'chain': None}, outcome='failed'"),
    "longrepr=7, outcome='skipped'", "longrepr=None, outcome='failed'", "wasxfail=5",
    "location=[1, 2, 3]", "duration='long'", "toterminal=1, outcome='failed', longrepr='it'",
    "node=5", "keywords=[]", "when='nap'",
])  # fmt: skip
def test_a_report_that_a_test_makes_up_is_no_error_of_the_session(
    run: Run, forged: str, options: list[str]
) -> None:
    """What reporters could not show is the failure of that test, or is shown all the same."""
    run.tests(f"""
    import gc
    from pytest_nsisolate.testprocess.frame_stream import Stream

    def test_bad(request):
        stream = next(one for one in gc.get_objects() if type(one) is Stream)
        item, config = request.node, request.config
        report = pytest.TestReport(item.nodeid, item.location, {{}}, "passed", None, "call")
        data = config.hook.pytest_report_to_serializable(config=config, report=report)
        stream.send("report", {{**data, **dict({forged})}})
        stream.send("outcome", {{"kind": "completed"}})
        stream.send("warning", {{"text": 1, "args": [], "class": ["builtins", "Warning"],
            "category": ["builtins", "Warning"], "filename": 5, "lineno": "x", "line": None,
            "source": None, "when": "runtest", "nodeid": 5, "location": None}})

    def test_next():
        pass
    """)
    result = run.isolated(*options)
    assert result.ret == 1, str(result)
    assert "INTERNALERROR" not in result.out + result.err
    assert result.verdicts["test_next"] == "passed"
