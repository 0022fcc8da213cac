"""Tests that depend on their order no longer do once they are isolated."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from helpers import samples

if TYPE_CHECKING:
    from helpers.run import Result, Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]

ORDERS = 20

SUITE = samples.text("order")
CONFTEST = """
    import os, random

    def pytest_collection_modifyitems(items):
        items.sort(key=lambda item: item.nodeid)
        seed = os.environ["ORDER_SEED"]
        if seed == "reversed":
            items.reverse()
        else:
            random.Random(int(seed)).shuffle(items)
        random.seed(5)
"""


def outcomes(result: Result) -> dict[str, str]:
    """Each test's outcome, without the order."""
    return dict(sorted(result.verdicts.items()))


@pytest.fixture
def ordered(run: Run) -> Run:
    """The suite, whose order a seed in the environment chooses."""
    run.write("conftest.py", CONFTEST)
    run.tests(SUITE)
    return run


def test_order_matters_without(ordered: Run) -> None:
    """The suite is worth its name: without isolation its outcomes depend on the order."""
    tmp = ordered.path / "tmp"
    tmp.mkdir()
    source = (ordered.path / "test_it.py").read_text().replace("/tmp/order", f"{tmp}/order")
    ordered.write("test_it.py", source)
    found = set()
    for seed in range(4):
        found.add(str(outcomes(ordered(env={"ORDER_SEED": str(seed)}))))
        for path in tmp.iterdir():
            path.unlink()
    assert len(found) > 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_order_does_not_matter(ordered: Run, jobs: int) -> None:
    """Twenty random orders, one outcome: all pass."""
    seeds = random.Random(1).sample(range(10_000), ORDERS // 2)
    orders = set()
    for seed in ["reversed", *map(str, seeds)]:
        result = ordered.isolated(f"--ns-jobs={jobs}", env={"ORDER_SEED": seed})
        result.expect(passed=14)
        orders.add(tuple(result.verdicts))
    assert len(orders) == ORDERS // 2 + 1, "the orders differ, or this shows nothing"
