"""Pages that tests write to: found out from the first, copied for the next."""

from __future__ import annotations

import ctypes
import functools
import json
import os
from array import array
from typing import TYPE_CHECKING

import pytest
from memory import PAGE, Area, forked

from pytest_nsisolate.testprocess.prefault import ASKED, Learner, Pages, _own_pages

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")


def own(area: Area, pages: int) -> list[int]:
    """Which of the first *pages* of an area belong to this process alone."""
    mine = set(_own_pages())
    return [page for page in range(pages) if area.address + page * PAGE in mine]


def test_pages_that_every_test_writes_to_are_copied_before(tmp_path: Path) -> None:
    area = Area(16)
    pages, learner, data = Pages(ask=True), Learner(), None
    told = tmp_path / "told.json"

    def a_test(*written: int) -> None:
        pages.copy()
        assert own(area, 16) == []  # nothing is known yet
        area.write(*written)
        told.write_text(json.dumps(pages.told()))

    def later() -> None:
        pages.copy()
        assert own(area, 16) == [3, 4, 9]
        assert pages.told() is None

    # Another process has the same pages, as the template and the next test do.
    for number in range(ASKED):
        assert data is None
        forked(functools.partial(a_test, 3, 4, 9, 10 + number))
        data = learner.learn(json.loads(told.read_text()))
    assert data
    pages.take(data)
    forked(later)
    assert learner.learn(json.loads(told.read_text())) is None


def test_nothing_is_asked_by_itself() -> None:
    pages = Pages(ask=False)
    assert pages.told() is None
    pages.copy()


@pytest.mark.parametrize(
    "told", [None, {}, "pages", [1], [-PAGE], [1 << 60], [True], ["0"], [PAGE * 1.0], [PAGE] * 9000]
)
def test_nonsense_is_not_learned(told: object) -> None:
    learner = Learner()
    assert [learner.learn(told) for _ in range(ASKED)] == [None] * ASKED
    assert learner.learn([PAGE]) is None
    assert learner.learn([PAGE]) is not None


def test_what_is_not_there_is_left_out() -> None:
    """Memory that the template has given back, or never had, is not asked for, and no error."""
    area = Area(8)
    pages = Pages(ask=True)
    there = [area.address + page * PAGE for page in (1, 6)]
    pages.take(array("Q", [PAGE, *there, 1 << 46]).tobytes())

    def later() -> None:
        hole = ctypes.c_void_p(area.address + PAGE), ctypes.c_size_t(PAGE)
        assert ctypes.CDLL(None).munmap(*hole) == 0
        pages.copy()

    forked(later)
