"""clock= moves CLOCK_MONOTONIC and CLOCK_BOOTTIME, for the test and all that it starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.crippled import COMMON, NO_TIME_NAMESPACES

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.needs("sandbox"),
    pytest.mark.skipif(
        not Path("/proc/self/ns/time").exists(), reason="this kernel has no time namespaces"
    ),
]

#: What a test sees of the clocks, against what the runner saw when it collected; a run takes
#: less than the slack.
SEEN = """
    CLOCKS = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)
    START = [time.clock_gettime(one) for one in CLOCKS]
    WALL = time.time()
    SLACK = 600
    SHOW = "import time; print([time.clock_gettime(one) for one in (1, 7)])"
    libc = ctypes.CDLL(None)

    class Timespec(ctypes.Structure):
        _fields_ = [("seconds", ctypes.c_long), ("rest", ctypes.c_long)]

    def moved():
        # by the page that the kernel maps, by the system call, and in a new program
        by_page = [time.clock_gettime(one) for one in CLOCKS]
        by_call = []
        for one in CLOCKS:
            found = Timespec()
            number = {"x86_64": 228}.get(os.uname().machine, 113)
            assert libc.syscall(number, one, ctypes.byref(found)) == 0
            by_call.append(found.seconds)
        child = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, check=True)
        uptime = float(open("/proc/uptime").read().split()[0])
        return [
            *(now - then for found in (by_page, by_call, eval(child.stdout))
              for now, then in zip(found, START)),
            uptime - START[1],
        ]

    def is_moved_by(seconds):
        offsets = moved()
        assert len(offsets) == 7
        assert all(seconds <= one + 1 and one < seconds + SLACK for one in offsets), offsets
        assert abs(time.time() - WALL) < SLACK
"""


def test_moved(run_as_each: Run) -> None:
    """Both clocks, however they are asked; what is not marked stays as it is."""
    run_as_each.tests(
        SEEN,
        """
    @pytest.mark.isolated(clock=86400)
    def test_forward():
        is_moved_by(86400)

    @pytest.mark.isolated(clock="3600.5")
    def test_fraction():
        is_moved_by(3600.5)

    @pytest.mark.isolated(clock=-min(int(START[0]) - 1, 5))
    def test_back():
        assert time.monotonic() < START[0] + SLACK
        with open("/proc/self/timens_offsets") as stream:
            assert all(int(line.split()[1]) <= 0 for line in stream)

    @pytest.mark.isolated
    def test_unmoved():
        is_moved_by(0)
        assert os.stat("/proc/self/ns/time").st_ino == TIME

    TIME = os.stat("/proc/self/ns/time").st_ino

    def test_runner():
        is_moved_by(0)

    @pytest.mark.isolated(clock=10**9)
    def test_waiting():
        # what waits goes by the moved clock, and waits as long as ever
        begin = time.monotonic()
        time.sleep(0.01)
        import threading
        assert not threading.Event().wait(0.01)
        assert 0.02 <= time.monotonic() - begin < SLACK
    """,
    )
    result = run_as_each("--ns-jobs=2", "--ns-properties")
    result.expect(passed=6)
    for name in ("test_forward", "test_waiting"):
        assert 0 <= result.value(name, "ns_wall") < 60


def test_timeout_and_limits(run_as_each: Run) -> None:
    """A deadline is the runner's, and is not moved."""
    run_as_each.tests(
        SEEN,
        """
    @pytest.mark.isolated(clock=10**9, timeout=30)
    def test_it():
        is_moved_by(10**9)

    @pytest.mark.isolated(clock=10**9, timeout=0.3)
    def test_endless():
        signal.pause()
    """,
    )
    result = run_as_each()
    result.expect(passed=1, failed=1)
    assert "TIMED OUT after 0.3 s" in result.of("test_endless").text


def test_nested(run_as_each: Run) -> None:
    """An offset counts from the clocks around: a moved test that moves one again."""
    run_as_each.tests(
        SEEN,
        """
    pytest_plugins = ["pytester"]

    @pytest.mark.isolated(clock=5000, user="root")
    def test_it(pytester):
        pytester.makepyfile('''
            import time, pytest
            START = %r
            @pytest.mark.isolated(clock=1000)
            def test_inner():
                assert 6000 <= time.monotonic() - START < 6600
        ''' % START[0])
        pytester.runpytest_subprocess("-p", "nsisolate").assert_outcomes(passed=1)
    """,
    )
    run_as_each().expect(passed=1)


def test_command_line_and_ini(run: Run) -> None:
    run.write("pytest.ini", "[pytest]\nnsisolate_clock = 5000\n")
    run.tests(
        SEEN,
        """
    def test_it(request):
        is_moved_by(int(os.environ["WANTED"]))
    """,
    )
    run.isolated(env={"WANTED": "5000"}).expect(passed=1)
    run.isolated("--ns-clock=7000", env={"WANTED": "7000"}).expect(passed=1)
    run.isolated("--ns-clock=none", env={"WANTED": "0"}).expect(passed=1)


def test_plan(run: Run) -> None:
    """The plan says what is done; without the key there is nothing of it."""
    run.tests("""
    @pytest.mark.isolated(clock=90)
    def test_it(): pass
    @pytest.mark.isolated
    def test_other(): pass
    """)
    result = run("--ns-debug")
    lines = [line for line in result.out.splitlines() if "time" in line and "CLOCK" in line]
    assert len(lines) == 1
    assert "CLOCK_MONOTONIC and CLOCK_BOOTTIME +90 s" in lines[0]


def test_below_zero(run: Run) -> None:
    """A clock can't be before the start of the machine; that is said with what it stands at."""
    run.tests("""
    @pytest.mark.isolated(clock=-4e9)
    def test_it(): pass
    """)
    text = run().expect(error=1).of("test_it", "setup").text
    assert "SANDBOX FAILED at set the clock" in text
    assert "ERANGE" in text
    assert "below zero" in text
    assert "Give a clock= above -" in text


@pytest.mark.parametrize("who", ["run", "run_as_nobody"])
def test_kernel_without(who: str, request: pytest.FixtureRequest) -> None:
    """A refusal names the feature, and concerns only the tests that ask for it."""
    run: Run = request.getfixturevalue(who)
    run.tests("""
    @pytest.mark.isolated(clock=5)
    def test_it(): pass
    @pytest.mark.isolated
    def test_other(): pass
    """)
    prefix = [sys.executable, "-c", COMMON + NO_TIME_NAMESPACES]
    result = run(prefix=prefix)
    result.expect(passed=1, error=1)
    text = result.of("test_it", "setup").text
    assert "SANDBOX FAILED at unshare time: EINVAL" in text
    assert "CONFIG_TIME_NS" in text
    assert "leave out clock=" in text
