"""What is left of a report that is too large: its form, and both ends of each text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pytest_nsisolate.reports.trimming import LIMITS, cut, cut_text


@pytest.mark.parametrize("letter", ["x", "\xe4", "\U0001f600", "\ud800"])
def test_a_text_keeps_both_ends_and_says_what_is_missing(letter: str) -> None:
    text = "head" + letter * 5000 + "tail"
    assert cut_text(text, 2504) == text
    found = cut_text(text, 100)
    head, note, tail = found.split("\n")
    assert text.startswith(head)
    assert text.endswith(tail)
    missing = text[len(head) : -len(tail)].encode("utf-8", "surrogatepass")
    assert note == f"... {len(missing)} bytes left out ..."


def test_lines_keep_the_first_and_the_last() -> None:
    lines = [f"line {number}" for number in range(10_000)]
    found = cut(lines, 1000)
    note = next(one for one in found if "left out" in one)
    at = found.index(note)
    assert found[:at] == lines[:at]
    assert found[at + 1 :] == lines[at + 1 - len(found) :]
    assert len("".join(found)) < 2100
    missing = lines[at : at + 1 - len(found)]
    assert note == f"... {len(''.join(missing))} bytes left out ..."


@pytest.mark.parametrize("lines", [["x" * 9999], ["x" * 9999, "y"], ["y", "x" * 9999, "z"]])
def test_a_long_line_among_lines_is_cut(lines: list[str]) -> None:
    found = cut(lines, 100)
    assert len("".join(found)) < 500
    assert found[0].startswith(lines[0][:50])
    assert found[-1].endswith(lines[-1][-50:])


def test_the_form_stays() -> None:
    """What reads the report finds pairs, entries and names where it looks for them."""
    entry = {"type": "ReprEntry", "data": {"lines": ["E   x" * 9000], "style": "long"}}
    data: dict[str, Any] = {
        "outcome": "failed",
        "when": "call",
        "longrepr": {
            "reprcrash": {"path": "a.py", "lineno": 3, "message": "m" * 90_000},
            "reprtraceback": {"reprentries": [entry] * 500, "extraline": None, "style": "long"},
            "sections": [],
            "chain": None,
        },
        "sections": [("Captured stdout call", "out" * 9000)] * 1000,
        "user_properties": [("a", list(range(100_000))), ("b", b"c" * 90_000), ("d", 1.5)],
        "duration": 0.5,
    }
    found = data
    for limit in LIMITS:
        found = cut(data, limit)
        assert found.keys() == data.keys()
        assert (found["outcome"], found["when"], found["duration"]) == ("failed", "call", 0.5)
        assert all(len(pair) == 2 for pair in found["sections"] + found["user_properties"])
        entries = found["longrepr"]["reprtraceback"]["reprentries"]
        assert all(one.keys() == entry.keys() for one in entries)
        crash = found["longrepr"]["reprcrash"]
        assert (crash["path"], crash["lineno"]) == ("a.py", 3)
    assert len(found["sections"]) < 100
    assert any(re.search(r"\d+ of 1000 left out", title) for title, _ in found["sections"])
    numbers = found["user_properties"][0][1]
    assert (numbers[0], numbers[-1]) == (0, 99_999)


def test_what_holds_itself_ends_somewhere() -> None:
    data: list[Any] = ["x" * 9999]
    data.append(data)
    assert cut(data, 100)
