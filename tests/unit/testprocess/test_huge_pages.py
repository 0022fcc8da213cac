"""The runner's memory in huge pages: made of what is there, and seen by no one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.memory import PAGE, Area, forked
from pytest_nsisolate.core.linux.syscalls import LINUX, collapse
from pytest_nsisolate.testprocess import huge_pages

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.skipif(not LINUX, reason="Linux only")

MANY = 10**6
"""Of tests: so many that it pays however slow this machine is at the moment."""


@pytest.fixture
def size() -> int:
    """Of a huge page; skips where the kernel makes none of what is in memory."""
    found = huge_pages._size()
    if not found:
        pytest.skip("this kernel has no transparent huge pages, or they are forbidden")
    area = Area(2 * found // PAGE)

    def collapsed() -> None:
        assert collapse(-(-area.address // found) * found, found) == 0
        assert huge(area) > 0

    try:
        forked(collapsed)  # as the tests do it
    except AssertionError:
        pytest.skip("no MADV_COLLAPSE (Linux 6.1), of what a fork shares, or no memory for it now")
    return found


def huge(area: Area) -> int:
    """How many bytes of *area* are huge pages."""
    for mapping in re.split(
        r"^(?=\w+-\w+ )", Path("/proc/self/smaps").read_text("utf-8"), flags=re.MULTILINE
    ):
        begin, _, end = mapping.partition(" ")[0].partition("-")
        if end and int(begin, 16) == area.address:
            found = re.search(r"^AnonHugePages: +(\d+) kB", mapping, re.MULTILINE)
            assert found is not None
            return int(found[1]) << 10
    raise AssertionError("the area is no mapping of its own")


def test_what_is_in_memory_becomes_huge_pages_and_stays_as_it_was(size: int) -> None:
    pages = 4 * size // PAGE
    area = Area(pages)
    for page in range(pages):
        area.memory[page * PAGE + 1] = page % 251

    def a_test() -> None:
        area.memory[1] = 252
        assert [area.memory[page * PAGE + 1] for page in range(1, pages)] == expected[1:]

    def gathered() -> None:
        huge_pages.gather(MANY)
        assert huge(area) > 0
        forked(a_test)
        assert [area.memory[page * PAGE + 1] for page in range(pages)] == expected

    expected = [page % 251 for page in range(pages)]
    forked(gathered)


def test_few_tests_are_not_worth_it(size: int) -> None:
    area = Area(4 * size // PAGE)
    before = huge(area)
    huge_pages.gather(huge_pages.WORTH_IT - 1)
    assert huge(area) == before


def test_what_is_not_in_memory_is_not_brought_there(size: int) -> None:
    area = Area(64 * size // PAGE, written=size // PAGE // 2)

    def gathered() -> None:
        huge_pages.gather(MANY)
        assert huge(area) == 0

    forked(gathered)


def test_it_stops_where_it_does_not_pay(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_MOST", 1)
    monkeypatch.setattr(huge_pages, "_GAIN", 0.0)
    called: list[int] = []

    def note(address: int, length: int) -> int:
        called.append(length)
        return 0

    monkeypatch.setattr(huge_pages, "collapse", note)
    area = Area(8 * size // PAGE)
    huge_pages.gather(MANY)
    assert called == [size]
    assert area.memory[0] == 1


@pytest.mark.parametrize("setting", ["always madvise [never]\n", None])
def test_the_administrators_word_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str | None
) -> None:
    if setting is not None:
        (tmp_path / "enabled").write_text(setting)
        (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    monkeypatch.setattr(huge_pages, "_SETTINGS", str(tmp_path))

    def unwanted(address: int, length: int) -> int:
        raise AssertionError((address, length))

    monkeypatch.setattr(huge_pages, "collapse", unwanted)
    area = Area(4 * (2 << 20) // PAGE)
    huge_pages.gather(MANY)
    assert area.memory[0] == 1


def test_tests_of_a_session_with_huge_pages(run: Run, size: int) -> None:
    """The state that tests start from is the same as without."""
    run.tests(f"""
        state = bytearray(b"x" * (4 * {size}))

        @pytest.mark.parametrize("n", range({huge_pages.WORTH_IT}))
        def test_it(n):
            assert state == b"x" * (4 * {size})
            state[n * 4096 :: 4096] = bytes(len(state[n * 4096 :: 4096]))
    """)
    run.isolated("--ns-jobs=2").expect(passed=huge_pages.WORTH_IT)
