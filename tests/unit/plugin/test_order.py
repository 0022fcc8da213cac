"""The order of isolated tests: what comes next, what shares a process, what the runner runs."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.plugin.grouping import Tree
from pytest_nsisolate.plugin.missing import Missing
from pytest_nsisolate.plugin.order import Order
from pytest_nsisolate.runner.snapshot import Snapshot
from pytest_nsisolate.spec.spec import Spec


class Session:
    """A session of items that are names, of which those with a capital letter are isolated."""

    def __init__(self, names: str, *, worker: bool = False) -> None:
        self.items: list[Any] = list(names)
        self.config = SimpleNamespace(workerinput={}) if worker else SimpleNamespace()


def order_of(
    names: str, *, worker: bool = False, tree: Tree | None = None
) -> tuple[Order, Missing, Any]:
    session: Any = Session(names, worker=worker)
    specs = {index: Spec() for index, name in enumerate(names) if name.isupper()}
    options: Any = None
    missing = Missing(session.items, options, specs)
    return Order(session, specs, missing, tree), missing, session


def test_who_is_isolated() -> None:
    order, _, _ = order_of("aBc")
    given: Any = ["a", "B", "c", "none of the session"]
    assert [order.isolates(one) for one in given] == [False, True, False, False]
    assert not order.all_isolated
    assert order_of("AB")[0].all_isolated


def test_what_comes_next_and_whether_the_runner_has_a_test_before_it() -> None:
    order, _, _ = order_of("ABcD")
    assert list(order.upcoming(0)) == [(1, False), (3, True)]
    assert list(order.upcoming(3)) == []


def test_what_can_not_be_isolated_does_not_come() -> None:
    order, missing, _ = order_of("ABC")
    missing.add([1], StageError("unshare", errno.EPERM))
    assert list(order.upcoming(0)) == [(2, False)]


def test_what_is_taken_out_runs_in_the_runner() -> None:
    order, _, session = order_of("ABC")
    order.take_out([1])
    assert list(order.upcoming(0)) == [(2, True)]
    found: Any = order.next_in_runner(session.items[0])
    assert found == "B"


def test_a_worker_knows_no_further_than_the_next_test() -> None:
    order, _, session = order_of("ABC", worker=True)
    assert order.begin(session.items[0], session.items[2]) == 0
    assert list(order.upcoming(0)) == [(2, False)]
    found: Any = order.next_in_runner(session.items[0])
    assert found is session
    order.begin(session.items[2], None)
    assert list(order.upcoming(2)) == []


@pytest.mark.parametrize(("item", "expected"), [("A", "b"), ("b", "d"), ("d", None)])
def test_the_next_test_of_the_runner(item: Any, expected: str | None) -> None:
    order, _, _ = order_of("AbCd")
    found: Any = order.next_in_runner(item)
    assert found == expected


def test_tests_by_themselves_share_no_process() -> None:
    order, _, _ = order_of("AB")
    assert order.follows(0) == -1


def test_snapshots_end_with_their_last_test() -> None:
    wide = Snapshot(0, [0, 1, 2], Spec(), None)
    narrow = Snapshot(1, [0, 1], Spec(), wide)
    tree = Tree({0: narrow, 1: narrow, 2: wide}, [], [wide, narrow])
    order, _, session = order_of("ABC", tree=tree)
    assert [order.over(item) for item in range(3)] == [[], [narrow], [wide]]
    order, _, session = order_of("ABC", worker=True, tree=tree)
    order.begin(session.items[1], session.items[2])
    assert order.over(1) == [narrow]
    order.begin(session.items[2], None)
    assert order.over(2) == [wide]
