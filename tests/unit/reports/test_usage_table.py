"""The lines of the table, for all kinds of terminals and names."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_nsisolate.reports import usage_table


def entry(nodeid: str, memory: int | None, cpu: float | None, *, isolated: bool = True) -> Any:
    usage = {
        "source": "wait4",
        "peak_memory": memory,
        "cpu_user": cpu,
        "cpu_system": None if cpu is None else 0.0,
    }
    return {
        "nodeid": nodeid,
        "isolated": isolated,
        "wall": 1.0,
        "usage": usage if isolated else None,
    }


def width_of(line: str) -> int:
    return sum(map(usage_table.columns, line))


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("name", ["a::" + "b" * 300, "c::" + "日本語" * 50, "d::" + "e\u0301" * 90])
def test_lines_fit(name: str, width: int) -> None:
    lines = usage_table.table([entry(name, 5 << 30, 1234.5)] * 3, 2, width)
    assert max(map(width_of, lines[:-1])) < max(width, 60)
    if width >= 80:
        assert max(map(width_of, lines[:-1])) < width


def test_most_come_first() -> None:
    tests = [entry(f"t{n}", n << 20, 10.0 - n) for n in range(6)]
    tests += [entry("killed", None, None), entry("plain", None, None, isolated=False)]
    title, *lines = usage_table.table(tests, 2, 80)
    assert title == "usage of 7 isolated tests"
    assert [line.split()[-1] for line in lines[1:3]] == ["t5", "t4"]
    assert [line.split()[-1] for line in lines[4:6]] == ["t0", "t1"]
    assert "largest process" in lines[6]


def test_nothing_known() -> None:
    for tests in ([], [entry("a", None, None)], [entry("a", None, None, isolated=False)]):
        assert usage_table.table(tests, 3, 80)[0] == "usage"


def test_shorten() -> None:
    assert usage_table.shorten("abc", 3) == "abc"
    assert (
        usage_table.shorten("0123456789" * 3, 20)
        == "012345...90123456789"[:9] + "90123456789"[-11:]
    )
    assert usage_table.shorten("a\x1b[31m\n", 20) == "a?[31m?"
    for width in range(5, 30):
        assert width_of(usage_table.shorten("日本" * 30, width)) <= width
