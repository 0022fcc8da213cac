"""The table of the tests that used most, as lines for a terminal."""

from __future__ import annotations

import heapq
import unicodedata
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core.text import seconds_in_column, size_in_column

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_GAP = "  "
#: A node id is not cut shorter than this, however narrow the terminal is.
_SHORTEST = 20
_TITLES = ("memory", "CPU", "wall")
_NOTES = {
    "wait4": "memory without a limit: a test's largest process, with what pytest had at its start",
    "cgroup": "memory with a limit: all processes and files in memory that a test added, together",
}


def table(tests: Iterable[dict[str, Any]], count: int, width: int) -> list[str]:
    """Return a title and the lines: first the tests with most memory, then with most CPU.

    Args:
        count: how many of each.
        width: columns of the terminal.
    """
    rows = [_row(one) for one in tests if one["isolated"]]
    if not any(row[1] is not None or row[2] is not None for row in rows):
        return ["usage", "no isolated test has told what it used"]
    lines = [f"usage of {len(rows)} isolated test{'s' if len(rows) > 1 else ''}"]
    # A column is written one short of the edge, where some terminals wrap.
    for position, what in ((1, "most memory"), (2, "most CPU")):
        known = [row for row in rows if row[position] is not None]
        top = heapq.nlargest(count, known, key=lambda row: row[position])
        lines += _section(what, top, width - 1)
    sources = {row[4] for row in rows if row[1] is not None}
    return lines + [note for source, note in _NOTES.items() if source in sources]


def _row(test: dict[str, Any]) -> tuple[Any, ...]:
    usage = test["usage"] or {}
    user, system = usage.get("cpu_user"), usage.get("cpu_system")
    cpu = user + system if user is not None and system is not None else None
    return test["nodeid"], usage.get("peak_memory"), cpu, test["wall"], usage.get("source")


def _section(what: str, rows: list[tuple[Any, ...]], width: int) -> Iterator[str]:
    cells = [
        (size_in_column(row[1]), seconds_in_column(row[2]), seconds_in_column(row[3]))
        for row in rows
    ]
    widths = [
        max(len(title), *(len(one[column]) for one in cells))
        for column, title in enumerate(_TITLES)
    ]
    room = max(_SHORTEST, width - sum(widths) - len(_GAP) * len(widths))
    names = [what, *(row[0] for row in rows)]
    for name, numbers in zip(names, [_TITLES, *cells], strict=True):
        padded = [one.rjust(wide) for one, wide in zip(numbers, widths, strict=True)]
        yield _GAP.join([*padded, shorten(name, room)])


def shorten(text: str, width: int) -> str:
    """Shorten *text* to at most *width* columns; leave out its middle."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    if sum(map(columns, text)) <= width:
        return text
    room = width - 3
    tail = _fitting(reversed(text), room * 2 // 3)
    head = _fitting(text, room - sum(map(columns, tail)))
    return head + "..." + tail[::-1]


def _fitting(text: Iterable[str], room: int) -> str:
    taken = []
    for char in text:
        room -= columns(char)
        if room < 0:
            break
        taken.append(char)
    return "".join(taken)


def columns(char: str) -> int:
    """Return how many columns of a terminal a character takes."""
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
