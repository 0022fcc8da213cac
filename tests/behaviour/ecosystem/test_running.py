"""What says which tests run, where and in which order: xdist, randomly, programs, a rival."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

from helpers.plugins import load
from helpers.run import same

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

JOBS = (1, 2)

GROUPS = """
    @pytest.fixture(scope="module")
    def module_value():
        yield os.getpid()

    @pytest.mark.parametrize("n", range(4))
    class TestOne:
        def test_a(self, n, module_value):
            pass

        def test_b(self, n):
            assert n != 2

    @pytest.mark.parametrize("n", range(4))
    class TestTwo:
        def test_a(self, n):
            if n == 3:
                os.abort()

    @pytest.mark.isolated(False)
    def test_in_worker(module_value):
        pass

    @pytest.mark.xdist_group("together")
    @pytest.mark.parametrize("n", range(3))
    def test_grouped(n, module_value):
        pass
"""


@pytest.mark.parametrize("dist", ["load", "loadscope", "loadfile", "loadgroup", "worksteal"])
def test_xdist_schedules(run: Run, dist: str) -> None:
    """Each way to hand tests out runs each of them once, with its outcome."""
    load(run, "xdist")
    run.tests(GROUPS)
    run.write(
        "test_other.py",
        "import pytest\n\n@pytest.mark.parametrize('n', range(6))\ndef test_it(n): pass\n",
    )
    serial = run.isolated()
    result = run.isolated("-n2", f"--dist={dist}")
    verdicts = {re.sub(r"@\w+$", "", name): verdict for name, verdict in result.verdicts.items()}
    assert verdicts == serial.verdicts, str(result)
    assert result.ret == serial.ret


def test_xdist_scopes_with_shared_sandboxes(run: Run) -> None:
    """What a worker has in a row may share a sandbox."""
    load(run, "xdist")
    run.tests("""
    import collections

    seen = collections.Counter()

    @pytest.mark.parametrize("n", range(5))
    class TestShared:
        def test_it(self, n):
            seen["all"] += 1
            assert seen["all"] == n + 1
    """)
    run.isolated("-n2", "--dist=loadscope", "--ns-scope=class").expect(passed=5)


def test_xdist_maxfail(run: Run) -> None:
    """--maxfail ends the run as it does without isolation."""
    load(run, "xdist")
    run.tests("""
    @pytest.mark.parametrize("n", range(60))
    def test_it(n):
        assert 0
    """)
    result = run.isolated("-n2", "--maxfail=3")
    assert result.ret == pytest.ExitCode.INTERRUPTED, str(result)
    assert "stopping after 3 failures" in result.out
    assert 3 <= len(result.verdicts) < 60, str(result)


def test_xdist_crashing_worker(run: Run) -> None:
    """A test outside of a sandbox that kills its worker: xdist replaces it, all others run."""
    load(run, "xdist")
    run.tests("""
    @pytest.mark.isolated(False)
    def test_kills_worker():
        os.kill(os.getpid(), signal.SIGKILL)

    @pytest.mark.parametrize("n", range(20))
    def test_it(n):
        assert os.getppid() == 0
    """)
    result = run.isolated("-n2")
    assert result.verdicts.pop("test_kills_worker") == "error", str(result)  # of no phase
    assert list(result.verdicts.values()) == ["passed"] * 20, str(result)
    assert "crashed while running 'test_it.py::test_kills_worker'" in result.out


def test_xdist_endings(run: Run) -> None:
    """Exits, timeouts and broken teardowns come back from workers under their names."""
    load(run, "xdist")
    run.tests("""
    def test_exits():
        os._exit(3)

    @pytest.mark.isolated(timeout=1)
    def test_hangs():
        time.sleep(3600)

    @pytest.fixture
    def broken():
        yield
        raise LookupError("in teardown")

    def test_teardown(broken):
        pass

    def test_left():
        subprocess.Popen(["sleep", "3600"])
    """)
    result = run.isolated("-n2")
    assert result.verdicts == {
        "test_exits": "failed",
        "test_hangs": "failed",
        "test_teardown": "passed+error",
        "test_left": "passed",
    }, str(result)
    assert "EXITED with code 3" in result.of("test_exits").text
    assert "TIMED OUT after 1 s" in result.of("test_hangs").text
    assert "sleep 3600" in result.of("test_left", "teardown").everything


SHUFFLED = """
    import random

    @pytest.mark.parametrize("n", range(8))
    def test_it(n):
        print(random.random())
        assert n != 5

    class TestOther:
        def test_a(self):
            print(random.random())

        def test_b(self):
            assert 0
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_randomly(run: Run, seed: int) -> None:
    """Order, and the random numbers that each test draws, are those of the seed."""
    load(run, "randomly")
    run.tests(SHUFFLED)
    result = same(run, "-rA", f"--randomly-seed={seed}", jobs=JOBS)
    assert f"--randomly-seed={seed}" in result.out


def test_random_order(run: Run) -> None:
    """The order is that of the seed."""
    load(run, "random_order")
    run.tests(SHUFFLED.replace("print(random.random())", "pass"))
    same(run, "--random-order", "--random-order-seed=7", "-v", jobs=JOBS)


def test_pytest_main_in_a_script(run: Run) -> None:
    """pytest.main() called in a program, twice, with a plugin object of its own."""
    run.tests("""
    def test_apart():
        assert os.getppid() == 0

    def test_fails():
        assert 0
    """)
    script = run.write(
        "script.py",
        """
        import sys
        import pytest

        class Seen:
            def __init__(self):
                self.outcomes = []

            def pytest_runtest_logreport(self, report):
                if report.when == "call":
                    self.outcomes.append(report.outcome)

        command = sys.argv[1:]
        for _ in range(2):
            seen = Seen()
            code = pytest.main(command[command.index("pytest") + 1 :], [seen])
            print("script:", int(code), seen.outcomes)
        """,
    )
    result = run.isolated(prefix=[sys.executable, script])
    assert result.out.count("script: 1 ['passed', 'failed']") == 2, str(result)


def test_pytest_isolated(run: Run) -> None:
    """The real one, as it is installed; without it, or without this plugin, the run goes on."""
    load(run, "isolated")
    run.tests("""
    @pytest.mark.isolated
    def test_it():
        pass
    """)
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR, str(result)
    assert "pytest-nsisolate and pytest-isolated both own the marker 'isolated'" in result.err
    assert "-p no:isolated leaves out pytest-isolated" in result.err
    assert not result.phases, "nothing ran"
    run("-p", "no:isolated").expect(passed=1)
    assert run("-p", "no:nsisolate").ret == 0
