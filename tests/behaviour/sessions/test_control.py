"""What ends a session early ends it as in a plain run, and the tests in flight with it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from helpers.hosts import DEADLINE, wait_gone

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = [pytest.mark.needs("sandbox"), pytest.mark.parametrize("jobs", [1, 4])]

FAILING = """
    @pytest.mark.parametrize("n", range(30))
    def test_it(n):
        if n >= 2:
            assert n % 2
"""


@pytest.mark.parametrize("options", [("-x",), ("--maxfail=3",)], ids=" ".join)
def test_stops_after_failures(run: Run, options: tuple[str, ...], jobs: int) -> None:
    """Exactly the tests up to the last failure wanted are reported."""
    run.tests(FAILING)
    plain, isolated = run(*options), run.isolated(f"--ns-jobs={jobs}", *options)
    assert isolated.verdicts == plain.verdicts
    assert isolated.ret == plain.ret == 1
    assert "stopping after" in isolated.out


def test_stops_those_in_flight(run: Run, jobs: int) -> None:
    """With -x a test that would run for ever is ended when an earlier one fails."""
    run.tests("""
    def test_fails():
        assert 0

    @pytest.mark.parametrize("n", range(8))
    def test_endless(n):
        signal.pause()
    """)
    result = run.isolated(f"--ns-jobs={jobs}", "-x")
    assert result.verdicts == {"test_fails": "failed"}


def test_exit_called_in_a_test(run: Run, jobs: int) -> None:
    """pytest.exit ends the session with its reason and exit code."""
    run.tests("""
    def test_first():
        pass

    def test_exits():
        pytest.exit("enough is enough", returncode=17)

    def test_later():
        pass
    """)
    plain, isolated = run(), run.isolated(f"--ns-jobs={jobs}")
    assert isolated.ret == plain.ret == 17
    assert isolated.verdicts == plain.verdicts
    assert "enough is enough" in isolated.out


def test_keyboard_interrupt_in_a_test(run: Run, jobs: int) -> None:
    """A KeyboardInterrupt raised by a test interrupts the session, and is shown as ever."""
    run.tests("""
    def test_first():
        pass

    def test_interrupts():
        raise KeyboardInterrupt  # here

    def test_later():
        pass
    """)
    plain, isolated = run(), run.isolated(f"--ns-jobs={jobs}")
    assert isolated.ret == plain.ret == pytest.ExitCode.INTERRUPTED
    assert isolated.verdicts == plain.verdicts
    shown = [
        [line for line in result.out.splitlines() if "KeyboardInterrupt" in line]
        for result in (plain, isolated)
    ]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 3
    assert ">       raise KeyboardInterrupt  # here" in run.isolated("--full-trace").out


def test_interrupt_of_the_runner(run: Run, jobs: int) -> None:
    """Ctrl-C ends the session and every test in flight, and leaves no process."""
    fifo = run.path / "running"
    os.mkfifo(fifo)
    run.tests("""
    @pytest.mark.parametrize("n", range(8))
    def test_endless(n):
        if n == 0:
            open("running", "w").close()
        signal.pause()
    """)
    running = run.start("--ns-isolate", f"--ns-jobs={jobs}")
    try:
        running.reached(fifo)
        running.process.send_signal(signal.SIGINT)
        result = running.wait(DEADLINE)
        assert not wait_gone(running.marker)
    finally:
        running.kill()
    assert result.ret == pytest.ExitCode.INTERRUPTED, str(result)
    assert "KeyboardInterrupt" in result.out
    assert "INTERNALERROR" not in result.out + result.err
    assert not any(result.verdicts.values())
