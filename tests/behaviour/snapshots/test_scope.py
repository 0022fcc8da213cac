"""Tests that share one sandbox and one process: ``scope="class"`` and ``scope="module"``."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from helpers import samples
from helpers.crippled import HOSTS
from helpers.run import same
from helpers.samples import MIXED

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

MODULE = "pytestmark = pytest.mark.isolated(scope='module')"
SHARING = samples.text("sharing")


def test_a_module_shares_a_process(run_as_each: Run) -> None:
    """Fixtures live as in plain pytest; the next module has a sandbox of its own."""
    run = run_as_each
    run.tests(MODULE, SHARING)
    run.write("test_other.py", (run.path / "test_it.py").read_text("utf-8"))
    result = run("--ns-properties").expect(passed=10)
    names = ["test_first", "test_second", "test_third", "test_fourth", "test_last"]
    assert "set up" in result.phases[0].section("stdout setup")
    for module in ("test_it.py", "test_other.py"):
        mine = [phase for phase in result.phases if phase.nodeid.startswith(module)]
        ends = [phase for phase in mine if phase.when == "teardown"]
        assert [phase.nodeid.rpartition(":")[2] for phase in ends] == names
        assert ["torn down" in phase.section("stdout") for phase in ends] == [False] * 4 + [True]
    pids = [dict(phase.properties)["pid"] for phase in result.phases if phase.when == "teardown"]
    assert len(set(pids[:5])) == len(set(pids[5:])) == 1
    assert pids[0] != pids[5]
    for phase in result.phases:
        if phase.when == "teardown":
            told = dict(phase.properties)
            assert told["ns_outcome"] == "completed"
            assert 0 <= told["ns_wall"] < 30
            assert 0 <= told["ns_cpu"] < 30


def test_a_class_shares_a_process(run: Run) -> None:
    """A function outside of a class is on its own, and so is each class."""
    run.tests("""
    @pytest.fixture(autouse=True)
    def told(record_property):
        record_property("ns", os.stat("/proc/self/ns/pid").st_ino)

    def test_one(): pass
    def test_two(): pass

    class TestA:
        def test_a1(self): type(self).seen = True
        def test_a2(self): assert self.seen

    class TestB:
        def test_b1(self): assert not hasattr(TestA, "seen")
        def test_b2(self): pass
    """)
    result = run.isolated("--ns-scope=class").expect(passed=6)
    names = ("test_one", "test_two", "test_a1", "test_a2", "test_b1", "test_b2")
    ns = {name: result.value(name, "ns") for name in names}
    assert ns["test_a1"] == ns["test_a2"]
    assert ns["test_b1"] == ns["test_b2"]
    assert len(set(ns.values())) == 4


@pytest.mark.parametrize("scope", ["class", "module"])
@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_reports_are_those_of_plain_pytest(run: Run, scope: str, jobs: int) -> None:
    """Outcomes, sections, warnings, subtests and exit code, whatever happens in a group."""
    run.tests(MIXED)
    run.write("test_more.py", (run.path / "test_it.py").read_text("utf-8"))
    run.write("pytest.ini", f"[pytest]\nnsisolate_scope = {scope}\n")
    same(run, jobs=(jobs,))


BROKEN = """
    @pytest.fixture(scope="module")
    def made():
        assert not os.path.exists("/tmp/made"), "a fresh sandbox"
        open("/tmp/made", "x").close()
        made_by.append(os.getpid())
        yield made_by
        print("torn down")

    made_by = []

    def test_before(made):
        print(100 * "x" + "of the one before")

    def test_breaks(made):
        print("said before")
        {how}

    def test_after(made):
        assert len(made) == 1

    def test_last(made):
        assert len(made) == 1
"""


@pytest.mark.parametrize("capture", ["fd", "sys"])
@pytest.mark.parametrize(
    ("how", "headline"),
    [
        ("ctypes.string_at(0)", "CRASHED with signal 11 (SIGSEGV)"),
        ("os._exit(3)", "EXITED with code 3 before reporting"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", "STOPPED by signal"),
        ("while True: pass", "TIMED OUT after 2 s"),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64)); time.sleep(100)", "TIMED OUT"),
    ],
    ids=["crash", "exit", "stop", "endless", "deaf"],
)
def test_the_rest_goes_on_in_a_fresh_sandbox(
    run: Run, how: str, headline: str, capture: str
) -> None:
    """Only the test that breaks fails; the group's fixtures are set up again for the others."""
    run.tests(
        "pytestmark = pytest.mark.isolated(scope='module', timeout=2)", BROKEN.format(how=how)
    )
    result = run(f"--capture={capture}").expect(passed=3, failed=1)
    assert result.verdicts["test_breaks"] == "failed"
    assert result.of("test_breaks").text.startswith(headline), str(result)
    assert "said before" in result.of("test_breaks").everything
    assert "of the one before" not in result.of("test_breaks").everything
    assert "torn down" in result.of("test_last", "teardown").section("stdout")
    assert "torn down" not in result.out.partition("= FAILURES =")[0], "no output gets astray"


@pytest.mark.needs("limits")
def test_a_limit_is_for_the_group(run: Run) -> None:
    """The test that goes over it fails alone, and the text says that all count together."""
    run.tests("""
    pytestmark = pytest.mark.isolated(scope="module", memory="96M")
    kept = []

    def test_keeps():
        kept.append(bytearray(60 << 20))

    def test_has_too_little_left():
        kept.append(bytearray(60 << 20))

    def test_has_enough_again():
        assert not kept
        kept.append(bytearray(60 << 20))

    def test_child_is_killed():
        kept.clear()
        subprocess.run([sys.executable, "-c", "bytearray(200 << 20)"])

    def test_after():
        assert not kept
    """)
    result = run()
    failed = [name for name, verdict in result.verdicts.items() if verdict == "failed"]
    assert failed == ["test_has_too_little_left", "test_child_is_killed"], str(result)
    for name in failed:
        text = result.of(name).text
        assert text.startswith("OUT OF MEMORY: limit 96 MiB")
        assert "all tests of the module together (scope='module')" in text
    result.expect(passed=3, failed=2)


@pytest.mark.needs("limits")
def test_a_limit_is_laid_at_the_right_door(run: Run) -> None:
    """A test that was good is not blamed for the next one, however late the runner looks."""
    for name in ("killed", "reporting"):
        os.mkfifo(run.path / name)
    run.write(
        "conftest.py",
        """
        import os, select

        fd = os.open("killed", os.O_RDWR)

        def pytest_runtest_logreport(report):
            if report.nodeid.endswith("test_good") and report.when == "setup":
                os.close(os.open("reporting", os.O_WRONLY))
                select.select([fd], [], [], 1)
        """,
    )
    run.tests("""
    pytestmark = pytest.mark.isolated(scope="module", memory="64M")

    def test_good():
        os.close(os.open("reporting", os.O_RDONLY))

    def test_child_is_killed():
        subprocess.run([sys.executable, "-c", "bytearray(200 << 20)"])
        with open("killed", "w") as killed:
            killed.write("x")
    """)
    result = run()
    verdicts = {"test_good": "passed", "test_child_is_killed": "failed"}
    assert result.verdicts == verdicts, str(result)


def test_timeout_is_per_test(run: Run) -> None:
    """Three tests that take two thirds of the time each are fine."""
    run.tests("""
    pytestmark = pytest.mark.isolated(scope="module", timeout=1.5)

    @pytest.mark.parametrize("n", range(3))
    def test_takes_a_while(n):
        time.sleep(1)
    """)
    run().expect(passed=3)


@pytest.mark.parametrize("jobs", [1, 2])
def test_exitfirst(run: Run, jobs: int) -> None:
    """No test runs after the one at which the session ends, and fixtures are torn down."""
    run.tests("""
    @pytest.fixture(scope="module", autouse=True)
    def made():
        yield
        with open("log.txt", "a") as log:
            log.write("torn ")

    @pytest.mark.parametrize("n", range(6))
    def test_it(n):
        with open("log.txt", "a") as log:
            log.write(f"{n} ")
        assert n not in (2, 3)
    """)
    result = run.isolated("--ns-scope=module", "-x", f"--ns-jobs={jobs}")
    result.expect(passed=2, failed=1)
    assert (run.path / "log.txt").read_text("utf-8").startswith("0 1 2 torn ")
    assert "stopping after 1 failures" in result.out
    (run.path / "log.txt").unlink()
    result = run.isolated("--ns-scope=module", "--maxfail=2", f"--ns-jobs={jobs}")
    result.expect(passed=2, failed=2)
    assert (run.path / "log.txt").read_text("utf-8").startswith("0 1 2 3 torn ")


def test_groups_run_side_by_side(run: Run) -> None:
    """With two jobs two modules are under way at once: each waits for the other."""
    for name, mode in (("a", "O_WRONLY"), ("b", "O_RDONLY")):
        run.write(
            f"test_{name}.py",
            f"""
            import os

            def test_before():
                pass

            def test_meets():
                os.close(os.open("meeting", os.{mode}))
            """,
        )
    os.mkfifo(run.path / "meeting")
    os.chmod(run.path / "meeting", 0o666)
    run.isolated("--ns-scope=module", "--ns-jobs=2", "--ns-timeout=30").expect(passed=4)


def test_a_test_of_the_runner_ends_a_group(run: Run) -> None:
    """What stands between runs between; the group's fixtures are torn down before."""
    run.tests("""
    def say(word):
        with open("log.txt", "a") as log:
            log.write(word + " ")

    @pytest.fixture(scope="module")
    def made():
        say("up")
        yield
        say("down")

    @pytest.mark.isolated(scope="module")
    def test_a(made): say("a")
    @pytest.mark.isolated(scope="module")
    def test_b(made): say("b")
    def test_plain(): say("plain")
    @pytest.mark.isolated(scope="module")
    def test_c(made): say("c")
    @pytest.mark.isolated(scope="module", hostname="other")
    def test_other_spec(made): say("d")
    """)
    run().expect(passed=5)
    log = (run.path / "log.txt").read_text("utf-8")
    before, plain, after = log.partition("plain ")
    assert (before, plain) == ("up a b down ", "plain ")
    # Of these two, the one whose sandbox is there first runs first.
    assert after in {"up c down up d down ", "up d down up c down "}


def test_left_running_is_named_at_the_end(run: Run) -> None:
    """A process that the next test may need is no leftover of the one that started it."""
    run.tests("""
    def test_starts():
        global process
        process = subprocess.Popen(["sleep", "1003"])

    def test_uses():
        assert process.poll() is None

    def test_last():
        pass
    """)
    result = run.isolated("--ns-scope=module").expect(passed=3)
    assert "left running" not in result.of("test_starts", "teardown").everything
    assert "left running: sleep 1003" in result.of("test_last", "teardown").everything


def test_without_capture(run: Run) -> None:
    """Under -s what tests print stands between the runner's words, in order."""
    run.tests("""
    @pytest.fixture(scope="module")
    def made():
        print("<up>", end="")
        yield
        print("<down>", end="")

    @pytest.mark.parametrize("n", range(4))
    def test_it(made, n):
        print(f"<{n}>", end="", flush=True)
    """)
    result = run.isolated("--ns-scope=module", "-s").expect(passed=4)
    assert "<up><0>.<1>.<2>.<3>.<down>" in result.out


def test_without_namespaces(run: Run) -> None:
    """--ns-missing=fork shares a forked process just so."""
    run.tests(
        "pytestmark = pytest.mark.isolated(scope='module', timeout=2)",
        """
        pids = []

        def test_first(): pids.append(os.getpid())
        def test_second(): assert pids == [os.getpid()]
        def test_crash(): ctypes.string_at(0)
        def test_third(): pids.append(os.getpid())
        def test_leaks():
            assert pids == [os.getpid()]
            subprocess.Popen(["sleep", "1004"])
        """,
    )
    result = run("--ns-missing=fork", prefix=HOSTS[0].prefix)
    result.expect(passed=4, failed=1)
    assert "left running: sleep 1004" in result.of("test_leaks", "teardown").everything


def test_figures_of_each_test(run: Run) -> None:
    """The JSON report has an entry for every test, each with its own times."""
    run.tests("""
    def test_quick(): pass
    def test_slow(): time.sleep(0.5)
    def test_busy():
        end = time.process_time() + 0.3
        while time.process_time() < end: pass
    def test_idle(): pass
    """)
    options = ("--ns-report=report.json", "--ns-properties")
    result = run.isolated("--ns-scope=module", *options).expect(passed=4)
    data = json.loads((run.path / "report.json").read_text("utf-8"))
    walls = {test["nodeid"].rpartition("::")[2]: test for test in data["tests"]}
    assert set(walls) == {"test_quick", "test_slow", "test_busy", "test_idle"}
    told = {name: dict(result.of(name, "teardown").properties) for name in walls}
    assert told["test_slow"]["ns_wall"] >= 0.5 > told["test_quick"]["ns_wall"]
    assert told["test_busy"]["ns_cpu"] >= 0.3 > told["test_idle"]["ns_cpu"]


@pytest.mark.parametrize("role", ["keeper", "template"])
def test_helper_killed(run: Run, role: str) -> None:
    """The test that was on fails for it, the rest of its group goes on."""
    run.tests("""
    @pytest.mark.parametrize("n", range(6))
    def test_it(n):
        if n == 2:
            os.close(os.open("reached", os.O_WRONLY))
            time.sleep(60)
    """)
    fifo = run.path / "reached"
    os.mkfifo(fifo)
    running = run.start("--ns-isolate", "--ns-scope=module")
    try:
        running.reached(fifo)
        (pid,) = running.descendants(role)
        os.kill(pid, signal.SIGKILL)
        result = running.wait()
    finally:
        running.kill()
    result.expect(passed=5, failed=1)
    assert "the end of the " + role in result.of("test_it[2]").text


def test_rerun_is_alone(run: Run) -> None:
    """pytest-rerunfailures: another attempt has a fresh sandbox, the group goes on meanwhile."""
    pytest.importorskip("pytest_rerunfailures")
    run.plugins += ("rerunfailures",)
    run.tests("""
    seen = []

    def test_before(): seen.append(os.getpid())

    def test_flaky():
        assert not seen, "a fresh sandbox has seen nothing"

    def test_after(): assert len(seen) == 1
    """)
    result = run.isolated("--ns-scope=module", "--reruns=2")
    assert result.verdicts == {
        "test_before": "passed",
        "test_flaky": "rerun+passed",
        "test_after": "passed",
    }, str(result)


@pytest.mark.parametrize("jobs", [1, 2])
def test_xdist(run: Run, jobs: int) -> None:
    """A worker knows one test ahead only, and still shares."""
    pytest.importorskip("xdist")
    run.plugins += ("xdist",)
    run.tests(MODULE, SHARING)
    run.write("test_other.py", (run.path / "test_it.py").read_text("utf-8"))
    run.write("test_third.py", "def test_alone():\n    pass\n")
    result = run.isolated("-n2", "--dist=loadfile", f"--ns-jobs={jobs}").expect(passed=11)
    told = [dict(phase.properties) for phase in result.phases if phase.when == "teardown"]
    assert len({one["pid"] for one in told if "pid" in one}) == 2
