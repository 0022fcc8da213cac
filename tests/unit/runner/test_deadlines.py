"""What is due for a test process, and when: its time, its limits, a stop that lasts."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nsisolate.core.linux import proc
from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.runner import deadlines
from pytest_nsisolate.runner.deadlines import End, Interrupt, ShowStacks, Terminate
from pytest_nsisolate.runner.test_process import TestProcess, TestRun
from pytest_nsisolate.spec.spec import Spec

if TYPE_CHECKING:
    from pytest_nsisolate.runner.kept.policy import Keeping

NOW = 1000.0


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each process be one of few, whatever runs on this machine."""
    monkeypatch.setattr(proc, "runnable", lambda: 1)
    monkeypatch.setattr(proc, "tasks", lambda roots, limit: 1)
    monkeypatch.setattr(proc, "tree", lambda roots, commands: ["sleep 5 (pid 2)"])
    monkeypatch.setattr(proc, "run_last", lambda group: None)


def running(timeout: float | None = 3.0) -> TestProcess:
    """One that has just been let go."""
    process = TestProcess(1, [TestRun(0)], None, Spec(timeout=timeout))
    process.sent_next()
    process.start_clock(NOW)
    return process


def due(process: TestProcess, now: float, keeping: Keeping | None = None) -> list[Any]:
    return list(deadlines.due(process, now, keeping))


class Budget:
    """The limits of a test, of which nothing is used until a test says so."""

    next_look = NOW + 1
    nearly = False
    exceeded: Outcome | None = None

    def look(self, now: float) -> Outcome | None:
        return self.exceeded


def test_nothing_is_due_before_the_time_is_over() -> None:
    process = running()
    assert list(deadlines.moments([process])) == [NOW + 3]
    assert due(process, NOW + 2.9) == []


def test_without_a_timeout_there_is_no_moment() -> None:
    process = running(timeout=None)
    assert list(deadlines.moments([process])) == []
    assert due(process, NOW + 9999) == []


def test_a_test_is_interrupted_then_terminated_then_killed() -> None:
    process = running()
    assert due(process, NOW + 3) == [Interrupt(process, ["sleep 5 (pid 2)"])]
    process.time_out(["sleep 5 (pid 2)"], NOW + 4)
    assert process.timed_out
    assert process.test.running == ["sleep 5 (pid 2)"]
    assert due(process, NOW + 3.5) == []
    assert due(process, NOW + 4) == [Terminate(process)]
    process.terminate(NOW + 4.3)
    (action,) = due(process, NOW + 4.3)
    assert isinstance(action, End)
    assert (action.outcome.kind, action.outcome.timeout) == (Kind.TIMED_OUT, 3.0)


def test_a_kept_sandbox_is_not_terminated() -> None:
    """Its processes stay as they are, for whoever looks at them."""

    class All:
        def wants(self, process: TestProcess, *, failed: bool) -> bool:
            return True

    process = running()
    process.time_out([], NOW + 4)
    keeping: Any = All()
    (action,) = due(process, NOW + 4, keeping)
    assert isinstance(action, End)


def test_too_many_processes_are_killed_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "tasks", lambda roots, limit: limit)
    process = running()
    (action,) = due(process, NOW + 3)
    assert isinstance(action, End)
    assert action.outcome.asked is False
    assert process.runaway
    assert process.test.running == ["256 processes and threads or more"]


def test_in_a_crowd_fewer_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "runnable", lambda: 100_000)
    monkeypatch.setattr(proc, "tasks", lambda roots, limit: 16)
    process = running()
    assert isinstance(due(process, NOW + 3)[0], End)
    assert "100000 of the whole machine" in process.test.running[0]


def test_a_process_whose_guard_does_not_end() -> None:
    process = running()
    outcome = Outcome(Kind.COMPLETED)
    process.ends_with(outcome, NOW + 1)
    assert due(process, NOW + 1) == [End(process, outcome)]


def test_a_stop_that_lasts_is_an_ending() -> None:
    process = running()
    process.stopped(signal.SIGSTOP, NOW + 1)
    assert NOW + 1 in deadlines.moments([process])
    (action,) = due(process, NOW + 1)
    assert (action.outcome.kind, action.outcome.number) == (Kind.STOPPED, signal.SIGSTOP)
    process.continued()
    assert due(process, NOW + 1) == []


def test_a_stop_by_the_user_is_none() -> None:
    process = running()
    process.hold()
    process.stopped(signal.SIGSTOP, NOW + 1)
    assert due(process, NOW + 1) == []


def test_limits_are_looked_at_when_it_is_time() -> None:
    process, budget = running(timeout=None), Budget()
    given: Any = budget
    process.limit(given)
    assert list(deadlines.moments([process])) == [NOW + 1]
    budget.nearly = True
    assert due(process, NOW + 0.9) == []
    assert due(process, NOW + 1) == [ShowStacks(process)]
    budget.exceeded = Outcome(Kind.OUT_OF_MEMORY)
    assert due(process, NOW + 1) == [End(process, budget.exceeded)]


def test_the_time_of_an_interrupted_test_is_noted() -> None:
    process = running()
    deadlines.interrupted(process, ["one"])
    assert process.timed_out
    assert process.deadline is not None
    assert process.test.running == ["one"]
