"""What is noticed of a test that is held to limits: a fork bomb, by the rate of refused forks."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_nsisolate.cgroups.budget import Budget
from pytest_nsisolate.core.outcome import Kind
from pytest_nsisolate.spec.spec import Spec


class Refusing:
    """A group of a machine on which so many forks are refused a second."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.now = 0.0

    def sample(self) -> None:
        pass

    def processes(self) -> list[int]:
        return []

    def pids_denied(self) -> int:
        return int(self.rate * self.now)


@pytest.mark.parametrize(
    ("rate", "ended"),
    [
        pytest.param(10_000, True, id="bomb"),
        pytest.param(40, True, id="bomb-on-a-slow-machine"),
        pytest.param(10, False, id="tries-again-ten-times-a-second"),
        pytest.param(0, False, id="none"),
    ],
)
def test_fork_bomb(rate: float, ended: bool) -> None:  # noqa: FBT001 -- a parameter of the table
    group: Any = Refusing(rate)
    budget = Budget(Spec(pids=20), group, None)
    budget.begin(0.0)
    outcomes = []
    for tick in range(1, 600):  # a minute
        group.now = tick / 10
        outcomes.append(budget.look(group.now))
    found = [one.kind for one in outcomes if one is not None]
    assert set(found) == ({Kind.TOO_MANY_PROCESSES} if ended else set())
