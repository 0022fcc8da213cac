"""Tests that depend on their order no longer do once they are isolated."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.run import Result, Run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("sandbox")]

ORDERS = 20

SUITE = """
    import json, locale, logging, random

    cache = {}

    @pytest.fixture(scope="session")
    def shared():
        return []

    def test_fills_cache():
        cache["user"] = "ann"
        assert cache == {"user": "ann"}

    def test_wants_empty_cache():
        assert cache == {}

    def test_adds_to_shared(shared):
        shared.append(1)
        assert shared == [1]

    def test_adds_to_shared_too(shared):
        shared.append(2)
        assert shared == [2]

    def test_writes_state():
        with open("/tmp/order-state.json", "x") as stream:
            json.dump({"seen": True}, stream)

    def test_wants_no_state():
        assert not os.path.exists("/tmp/order-state.json")

    def test_leaves_a_server():
        globals()["server"] = socket.create_server(("127.0.0.1", 8017))

    def test_wants_the_port():
        socket.create_server(("127.0.0.1", 8017)).close()

    def test_patches():
        time.time = lambda: 0
        assert time.time() == 0

    def test_wants_the_clock():
        assert time.time() > 0

    def test_moves():
        os.chdir("/")
        os.environ["MOVED"] = "yes"
        os.umask(0o777)

    def test_wants_its_place(pytestconfig):
        assert os.getcwd() == str(pytestconfig.invocation_params.dir)
        assert "MOVED" not in os.environ

    def test_draws():
        assert random.random() == random.Random(5).random()

    def test_draws_again():
        assert random.random() == random.Random(5).random()
"""
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
