"""Sandboxes that are ready or asked for: what is missing is asked for, what is used up again."""

from __future__ import annotations

import errno
import itertools
import os
import time
from typing import Any

import pytest

from pytest_nsisolate.core.errors import StageError
from pytest_nsisolate.runner.servers import sandbox_pool
from pytest_nsisolate.runner.servers.sandbox_pool import Pool
from pytest_nsisolate.sandbox.client import KeeperGone


class Maker:
    """A keeper that answers as it is told to.

    Attributes:
        asked: the requests: number and plan.
        answers: what `receive` gives.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.answers: list[tuple[str, Any, list[int]]] = []
        self.gone = False

    def ask(self, number: int, plan: int) -> None:
        if self.gone:
            raise KeeperGone
        self.asked.append((number, plan))

    def receive(self) -> tuple[str, Any, list[int]]:
        if not self.answers:
            raise KeeperGone
        return self.answers.pop(0)

    def makes(self, number: int) -> None:
        """Let a sandbox be ready; its descriptors are of /dev/null."""
        fds = [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) for _ in range(2)]
        self.answers.append(("made", number, fds))

    def fails(self, number: int, code: int) -> None:
        self.answers.append(("failed", [number, "unshare", code, ""], []))


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def pool(maker: Maker) -> Pool:
    given: Any = maker
    return Pool(given, itertools.count(1))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_pool, "_RETRY_AFTER", 0.0)
    monkeypatch.setattr(sandbox_pool, "_RETRIES", 2)


def test_only_what_is_missing_is_asked_for(pool: Pool, maker: Maker) -> None:
    pool.want({0: 2, 1: 1})
    pool.want({0: 2})
    assert maker.asked == [(1, 0), (2, 0), (3, 1)]
    maker.makes(1)
    assert pool.receive() is None
    pool.want({0: 2})
    assert len(maker.asked) == 3
    assert pool.take(1) is None
    sandbox = pool.take(0)
    assert sandbox is not None
    assert sandbox.number == 1
    sandbox.end()
    pool.want({0: 2})
    assert maker.asked[3:] == [(4, 0)]


def test_a_failure_is_told_with_its_plan(pool: Pool, maker: Maker) -> None:
    pool.want({5: 1})
    maker.fails(1, errno.EPERM)
    failure = pool.receive()
    assert failure is not None
    plan, error = failure
    assert (plan, error.stage, error.errno) == (5, "unshare", errno.EPERM)


def test_what_is_used_up_is_asked_for_again(pool: Pool, maker: Maker) -> None:
    """As long as tests give sandboxes back; and then for some tries."""
    pool.want({0: 1})
    for number in range(1, 6):
        maker.fails(number, errno.ENOSPC)
        assert pool.receive(busy=True) is None
        assert pool.moments()
        pool.ask_again(time.monotonic())
    assert [number for number, _ in maker.asked] == [1, 2, 3, 4, 5, 6]
    for number in (6, 7):
        maker.fails(number, errno.ENOSPC)
        assert pool.receive() is None
        pool.ask_again(time.monotonic())
    maker.fails(8, errno.ENOSPC)
    assert pool.receive() is not None


def test_what_is_ready_makes_room_for_what_is_needed(pool: Pool, maker: Maker) -> None:
    pool.want({0: 1})
    maker.makes(1)
    pool.receive()
    pool.want({1: 1})
    maker.fails(2, errno.ENOSPC)
    assert pool.receive() is None
    assert pool.take(0) is None, "it had to make room"


def test_a_keeper_that_is_gone_is_asked_nothing(pool: Pool, maker: Maker) -> None:
    maker.gone = True
    pool.want({0: 1})
    with pytest.raises(KeeperGone):
        pool.receive()


def test_plans_are_proved(pool: Pool, maker: Maker) -> None:
    """That namespaces are used up is no failure of a plan where another one has got some."""
    pool.want({0: 1, 1: 1, 2: 1})
    maker.makes(1)
    maker.fails(2, errno.ENOSPC)
    maker.fails(3, errno.EINVAL)
    assert {plan: one.errno for plan, one in pool.prove().items()} == {2: errno.EINVAL}
    pool.close()


def test_a_keeper_that_fails_itself(pool: Pool, maker: Maker) -> None:
    pool.want({0: 1})
    maker.fails(-1, errno.EIO)
    with pytest.raises(StageError):
        pool.prove()


def test_nothing_is_held_after_the_end(pool: Pool, maker: Maker) -> None:
    pool.want({0: 1})
    maker.makes(1)
    pool.receive()
    fds = pool.descriptors()
    assert len(fds) == 2
    pool.close()
    assert pool.descriptors() == []
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
