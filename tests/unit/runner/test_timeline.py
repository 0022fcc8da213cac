"""When and where tests ran, as reports draw it: moments, lanes and slots."""

from __future__ import annotations

import time

import pytest

from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.runner.timeline import Watch
from pytest_nsisolate.spec.spec import Spec

SPEC = Spec()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test moves by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def completed(wall: float) -> Outcome:
    outcome = Outcome(Kind.COMPLETED)
    outcome.wall = wall
    return outcome


def test_a_test_in_a_sandbox(clock: list[float]) -> None:
    watch = Watch()
    watch.asked(7)
    clock[0] = 101
    watch.made(7)
    clock[0] = 102
    watch.goes(1)
    clock[0] = 105
    timing = watch.ended(1, 7, completed(2.5), SPEC)
    assert (timing.begin, timing.wall, timing.lane, timing.sandbox) == (102, 2.5, 0, "1")
    assert timing.built is not None
    assert (timing.built.asked, timing.built.begin, timing.built.made) == (100, 100, 101)


def test_a_sandbox_begins_when_the_one_before_it_is_made(clock: list[float]) -> None:
    """The keeper builds one after the other."""
    watch = Watch()
    watch.asked(1)
    watch.asked(2)
    clock[0] = 103
    watch.made(1)
    clock[0] = 104
    watch.made(2)
    second = watch.ended(9, 2, completed(0), SPEC).built
    assert second is not None
    assert (second.asked, second.begin, second.made, second.slot) == (100, 103, 104, 1)


def test_lanes_are_used_again(clock: list[float]) -> None:
    watch = Watch()
    watch.goes(1)
    watch.goes(2)
    assert watch.ended(1, -1, completed(0), SPEC).lane == 0
    watch.goes(3)
    assert [watch.ended(number, -1, completed(0), SPEC).lane for number in (3, 2)] == [0, 1]


def test_a_test_lasts_no_longer_than_until_now(clock: list[float]) -> None:
    """A process may claim any time; its lane is free from here on."""
    watch = Watch()
    watch.goes(1)
    clock[0] = 101
    assert watch.ended(1, -1, completed(99), SPEC).wall == 1


def test_tests_that_share_a_process(clock: list[float]) -> None:
    watch = Watch()
    watch.goes(1)
    clock[0] = 103
    first = watch.test_over(1, -1, completed(2), SPEC)
    second = watch.ended(1, -1, completed(1), SPEC)
    assert (first.begin, first.wall) == (100, 2)
    assert (second.begin, second.wall) == (102, 1)


def test_one_that_never_ran(clock: list[float]) -> None:
    timing = Watch().ended(1, -1, completed(5), SPEC)
    assert (timing.begin, timing.wall, timing.lane, timing.built) == (None, 0, None, None)


def test_what_is_lost_is_forgotten(clock: list[float]) -> None:
    watch = Watch()
    watch.asked(1)
    watch.made(1)
    watch.lost()
    assert watch.ended(1, 1, completed(0), SPEC).built is None
