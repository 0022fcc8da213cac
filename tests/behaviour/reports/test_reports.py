"""Reports, captured output and warnings are those of a plain run of pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.run import outline, same
from helpers.samples import MIXED

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = [pytest.mark.python, pytest.mark.needs("sandbox")]

JOBS = (1, 2)
HAS_SUBTESTS = hasattr(pytest, "Subtests")


@pytest.mark.parametrize(
    "options",
    [("-rA",), ("-v", "-ra"), ("-q", "--tb=short"), ("--tb=line", "-l"), ("-vv", "--tb=native")],
    ids=" ".join,
)
def test_mixed_suite(run: Run, options: tuple[str, ...]) -> None:
    """Everything pytest can report, with its usual options."""
    run.tests(MIXED)
    same(run, *options, jobs=JOBS)


@pytest.mark.parametrize("capture", ["sys", "fd", "no", "tee-sys"])
def test_capture_methods(run: Run, capture: str) -> None:
    """Each way of capturing sees what it would see."""
    run.tests("""
    def test_passes(capsys):
        print("caught")
        assert capsys.readouterr().out == "caught\\n"
        print("out")

    def test_fails():
        print("from python")
        print("from python too", file=sys.stderr)
        assert 0
    """)
    same(run, f"--capture={capture}", "-rA")


def test_capture_plugin_left_out(run: Run) -> None:
    """With -p no:capture there is no option to ask, and nobody captures."""
    run.tests("""
    def test_passes():
        print("from python", flush=True)
        subprocess.run(["echo", "from echo"], check=True)

    def test_fails():
        assert 0
    """)
    result = same(run, "-p", "no:capture", jobs=JOBS)
    assert "from python\nfrom echo\n" in result.out


@pytest.mark.parametrize("jobs", JOBS)
def test_output_of_subprocesses(run: Run, jobs: int) -> None:
    """File descriptors are captured per test, and parallel tests don't mix theirs."""
    run.tests("""
    @pytest.mark.parametrize("n", range(20))
    def test_prints(n):
        for line in range(50):
            print(f"python {n}")
            subprocess.run(["echo", f"echo {n}"], check=True)
        assert 0
    """)
    result = run.isolated(f"--ns-jobs={jobs}")
    result.expect(failed=20)
    for n in range(20):
        lines = result.of(f"test_prints[{n}]").section("stdout").splitlines()
        assert sorted(lines) == [f"echo {n}"] * 50 + [f"python {n}"] * 50


def test_live_output(run: Run) -> None:
    """With -s a line is on the terminal while its test still runs."""
    run.tests("""
    def test_live():
        print("now or never", flush=True)
        with open("out-1.txt") as stream:
            assert "now or never" in stream.read()
    """)
    run.isolated("-s").expect(passed=1)


def test_capture_fixtures(run: Run) -> None:
    """capsys, capfd, capsysbinary, caplog and recwarn work."""
    run.tests("""
    import logging

    def test_capfd(capfd):
        os.write(1, b"one")
        subprocess.run(["echo", "two"], check=True)
        assert capfd.readouterr().out == "onetwo\\n"
        with capfd.disabled():
            print("past the capture")

    def test_capsysbinary(capsysbinary):
        print("\\u00e4")
        assert capsysbinary.readouterr().out == "\\u00e4\\n".encode()

    def test_caplog(caplog):
        with caplog.at_level(logging.DEBUG):
            logging.getLogger("x").debug("deep")
        assert caplog.messages == ["deep"]
        logging.getLogger("x").error("shown on failure")
        assert 0

    def test_recwarn(recwarn):
        warnings.warn("kept")
        assert len(recwarn) == 1
    """)
    same(run)


@pytest.mark.parametrize("options", [(), ("-v",), ("-s",)], ids=str)
def test_live_logging(run: Run, options: tuple[str, ...]) -> None:
    """log_cli prints the records of each test where a plain run prints them."""
    run.tests("""
    import logging

    @pytest.fixture
    def logs():
        logging.getLogger("fixture").info("set-up")
        yield
        logging.getLogger("fixture").info("teardown")

    @pytest.mark.parametrize("n", range(3))
    def test_logs(logs, n):
        logging.getLogger("test").warning("call %d", n)
    """)
    run.write("pytest.ini", "[pytest]\nlog_cli = true\nlog_cli_level = INFO\n")
    same(run, *options, jobs=JOBS)


def test_setup_show(run: Run) -> None:
    """--setup-show prints the fixtures of function scope as a plain run does."""
    run.tests("""
    @pytest.fixture
    def one():
        yield

    @pytest.mark.parametrize("n", range(2))
    def test_it(one, n):
        pass
    """)
    same(run, "--setup-show")


WARNS = """
    class Custom(UserWarning):
        def __init__(self, text, extra):
            super().__init__(text, extra)

    def test_user():
        warnings.warn("plain")

    def test_custom():
        warnings.warn(Custom("own", 3))

    def test_deprecated():
        warnings.warn("old", DeprecationWarning)

    @pytest.mark.filterwarnings("ignore:quiet")
    def test_ignored():
        warnings.warn("quiet")

    @pytest.fixture
    def warns():
        warnings.warn("in set-up")
        yield
        warnings.warn("in teardown")

    def test_fixture(warns):
        pass

    def test_unraisable():
        class Broken:
            def __del__(self):
                raise ValueError("unraisable")
        Broken()
"""


def test_warnings(run: Run) -> None:
    """Category, message, file and line arrive, and the summary is the same."""
    run.tests(WARNS)
    result = same(run, jobs=JOBS)
    assert {"UserWarning", "Custom", "DeprecationWarning"} <= {w.category for w in result.warnings}
    assert {w.filename for w in result.warnings} >= {"test_it.py"}


def test_warnings_as_errors(run: Run) -> None:
    """-W error makes them failures."""
    run.tests(WARNS)
    result = same(run, "-W", "error")
    assert result.verdicts["test_user"] == "failed"


def test_errors_of_garbage(run: Run) -> None:
    """What a test leaves in a cycle is collected at its teardown, and what that raises is shown."""
    run.tests("""
    import gc
    gc.disable()

    class Broken:
        def __init__(self):
            self.cycle = self

        def __del__(self):
            raise ValueError("del is broken")

    def test_leaves_garbage():
        Broken()

    def test_next():
        pass
    """)
    result = run.isolated()
    result.expect(passed=2)
    assert [(one.category, one.nodeid.rpartition("::")[2]) for one in result.warnings] == [
        ("PytestUnraisableExceptionWarning", "test_leaves_garbage")
    ]
    assert "ValueError: del is broken" in result.out
    result = run.isolated("-W", "error")
    assert result.verdicts == {"test_leaves_garbage": "passed+error", "test_next": "passed"}


@pytest.mark.skipif(not HAS_SUBTESTS, reason="the subtests fixture came with pytest 9")
def test_subtests(run: Run) -> None:
    """Each subtest is reported, and a failing one fails the run."""
    run.tests("""
    def test_all_pass(subtests):
        for n in range(3):
            with subtests.test("good", n=n):
                pass

    def test_one_fails(subtests):
        for n in range(3):
            with subtests.test(n=n):
                print("in", n)
                assert n != 1

    def test_skips(subtests):
        with subtests.test("skipping"):
            pytest.skip("not this one")
    """)
    result = same(run, "-v", jobs=JOBS)
    assert result.ret == 1
    assert [phase.outcome for phase in result.phases if phase.subtest].count("failed") == 1


def test_unittest_subtests(run: Run) -> None:
    """unittest's subTest too.

    Compared without capturing: with it, a plain run takes pytest's own progress for output of the
    test, and shows it there.
    """
    run.tests("""
    import unittest

    class TestIt(unittest.TestCase):
        def test_subs(self):
            for n in range(3):
                with self.subTest(n=n):
                    self.assertNotEqual(n, 1)
    """)
    shown = same(run, "-v", "-s", jobs=JOBS)
    captured = run.isolated("--ns-jobs=2", "-v")
    assert shown.ret == captured.ret == (1 if HAS_SUBTESTS else captured.ret)
    assert outline(captured) == outline(shown)


def test_without_the_plugin_that_serialises(run: Run) -> None:
    """`-p no:reports` takes the hooks by which reports travel away, and no report."""
    run.tests("""
    def test_passes():
        pass

    def test_fails():
        assert [1] == [2]

    @pytest.mark.skip(reason="for this reason")
    def test_skips():
        pass
    """)
    same(run, "-p", "no:reports", "-rs")
