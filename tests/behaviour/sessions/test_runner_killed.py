"""Whoever of a session is killed, nothing stays behind and no test is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from helpers.hosts import DEADLINE, wait_gone

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.run import Result, Run, Running

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]

KILLS = int(os.environ.get("NSISOLATE_KILLS", "20"))
SEED = int(os.environ.get("NSISOLATE_SEED", "1"))
LONGEST = 1.5
"""Seconds within which the runner is killed: from its start to well into the tests."""

BUSY = """
    import select

    @pytest.mark.parametrize("n", range(1000))
    def test_busy(n, tmp_path):
        subprocess.Popen(["sleep", "1000"])
        subprocess.Popen(["sleep", "1000"], start_new_session=True, close_fds=False)
        (tmp_path / "file").write_text("x")
        select.select([], [], [], 0.02)
"""


@pytest.mark.parametrize("jobs", [1, 4])
def test_runner_killed_at_random_moments(run_as_each: Run, jobs: int) -> None:
    """Within two seconds of the runner's end no process of its session is left."""
    run_as_each.tests(BUSY)
    moments = random.Random(SEED)
    for _ in range(max(1, KILLS // 2)):
        moment = moments.uniform(0, LONGEST)
        running = run_as_each.start("--ns-isolate", f"--ns-jobs={jobs}")
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                running.process.wait(moment)
            running.process.kill()
            running.process.wait()
            left = wait_gone(running.marker)
            assert not left, f"killed {moment:.3f} s after the start (seed {SEED}): {left}"
        finally:
            running.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_runner_ended_by_another_signal(run: Run, number: signal.Signals) -> None:
    """Signals whose default is the end leave nothing either."""
    os.mkfifo(run.path / "running")
    run.tests("""
    def test_it():
        open("running", "w").close()
        subprocess.Popen(["sleep", "1000"])
        signal.pause()
    """)
    running = run.start("--ns-isolate")
    try:
        running.reached(run.path / "running")
        running.process.send_signal(number)
        running.process.wait(DEADLINE)
        assert not wait_gone(running.marker)
    finally:
        running.kill()


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("role", ["keeper", "template"])
def test_helper_killed(run_as_each: Run, role: str, jobs: int) -> None:
    """Without its keeper or template the run goes on or says why not; no test is lost."""
    fifo = run_as_each.path / "running"
    os.mkfifo(fifo, 0o666)
    fifo.chmod(0o666)
    run_as_each.tests("""
    @pytest.mark.parametrize("n", range(60))
    def test_it(n):
        if n == 20:
            open("running", "w").close()
            open("killed").read(1)
    """)
    killed = run_as_each.path / "killed"
    os.mkfifo(killed, 0o666)
    killed.chmod(0o666)
    running = run_as_each.start("--ns-isolate", f"--ns-jobs={jobs}")
    # Open for writing, and nothing comes: that test waits until it is killed.
    gate = os.open(killed, os.O_RDWR)
    try:
        running.reached(fifo)
        pids = running.descendants(role)
        assert len(pids) == 1, f"{pids} in the role of {role}"
        os.kill(pids[0], signal.SIGKILL)
        result = running.wait(DEADLINE)
        assert not wait_gone(running.marker)
    finally:
        os.close(gate)
        running.kill()
    assert "INTERNALERROR" not in result.out + result.err, str(result)
    assert list(result.verdicts) == [f"test_it[{n}]" for n in range(60)], str(result)
    # A call that was reported before the end stays; its teardown is then the error.
    allowed = {"passed", "failed", "error", "passed+error"}
    assert set(result.verdicts.values()) <= allowed, str(result)
    bad = [phase for phase in result.phases if phase.outcome == "failed"]
    assert result.ret == (1 if bad else 0)
    for phase in bad:
        assert role in phase.everything or "CRASHED" in phase.text, phase.everything


VICTIM = """
    def test_victim():
        with subprocess.Popen(["sleep", "1234"]):
            open("running", "w").close()
            signal.pause()

    def test_next():
        pass
"""


def kill_amid(run: Run, whom: Callable[[Running], list[int]], *args: str) -> Result:
    """Run `VICTIM` and, while it runs, kill the one process that ``whom`` finds."""
    os.mkfifo(run.path / "running")
    run.tests(VICTIM)
    running = run.start("--ns-isolate", *args)
    try:
        running.reached(run.path / "running")
        (pid,) = whom(running)
        os.kill(pid, signal.SIGKILL)
        result = running.wait(DEADLINE)
    finally:
        running.kill()
    assert result.verdicts == {"test_victim": "failed", "test_next": "passed"}, str(result)
    return result


def test_helper_killed_where_what_is_missing_is_skipped(run: Run) -> None:
    """A test that was running when its keeper was killed fails, whatever --ns-missing says."""
    kill_amid(run, lambda running: running.descendants("keeper"), "--ns-missing=skip")


def test_init_killed_from_outside(run: Run) -> None:
    """A sandbox that vanishes under its test is one failed test, and the next one passes."""
    result = kill_amid(run, lambda running: running.init_of_sleeper("1234"))
    assert result.of("test_victim").text.startswith("CRASHED with signal 9 (SIGKILL)")
