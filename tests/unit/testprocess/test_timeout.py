"""The timeout inside a test process: the stacks in the report, and signals that come late."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nsisolate.core.traceback_text import TRACE_MARK
from pytest_nsisolate.spec.spec import Spec
from pytest_nsisolate.testprocess import timeout
from pytest_nsisolate.testprocess.sandbox_info import SandboxInfo, inside
from pytest_nsisolate.testprocess.timeout import Timeout

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def sender() -> Any:
    """What the timeout knows of the frames: whether one is on its way."""
    return SimpleNamespace(sending=False)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of day, in a test of 10 s."""
    clock = [100.0]
    monkeypatch.setattr(timeout, "_clock", lambda: clock[0])
    monkeypatch.setattr(inside, "sandbox", SandboxInfo(1, Spec(timeout=10)))
    return clock


@pytest.fixture
def limit(tmp_path: Path, sender: Any, now: list[float]) -> Timeout:
    """A timeout whose stacks have been dumped twice."""
    path = tmp_path / "trace"
    path.write_text(f"first{TRACE_MARK}second")
    return Timeout(sender, os.open(path, os.O_RDONLY))


def report(when: str, outcome: str) -> Any:
    return SimpleNamespace(when=when, outcome=outcome, failed=outcome == "failed",
                           passed=outcome == "passed", longrepr=None, sections=[])  # fmt: skip


def test_a_signal_fails_the_test(limit: Timeout) -> None:
    limit.start()
    with pytest.raises(pytest.fail.Exception, match="TIMED OUT after 10 s"):
        limit._interrupt(0, None)
    assert limit.reached


def test_a_signal_for_the_test_before_is_ignored(limit: Timeout, now: list[float]) -> None:
    limit.start()
    limit.end_test()
    limit.start()
    now[0] += 9
    limit._interrupt(0, None)
    assert not limit.reached
    now[0] += 1
    with pytest.raises(pytest.fail.Exception):
        limit._interrupt(0, None)


def test_a_report_that_is_being_sent_is_not_interrupted(limit: Timeout, sender: Any) -> None:
    limit.start()
    sender.sending = True
    limit._interrupt(0, None)
    assert limit.reached


def test_the_first_failure_shows_the_last_stacks(limit: Timeout) -> None:
    reports = [report("call", "failed"), report("teardown", "failed")]
    limit.explain(reports[0])
    assert reports[0].sections == []
    limit.reached = True
    for one in reports:
        limit.explain(one)
    assert reports[0].sections == [("stacks at the timeout", "second")]
    assert reports[1].sections == []


def test_a_test_that_swallows_the_exception_fails(limit: Timeout) -> None:
    limit.reached = True
    setup, call = report("setup", "passed"), report("call", "passed")
    limit.explain(setup)
    limit.explain(call)
    assert setup.outcome == "passed"
    assert (call.outcome, call.sections) == ("failed", [("stacks at the timeout", "second")])
    assert call.longrepr.startswith("TIMED OUT after 10 s")
