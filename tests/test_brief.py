"""A brief report holds all that the whole one would, and is none where that can't be."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_nsisolate.brief import LIKE, VARIES, briefly, remembered

WHOLE: dict[str, Any] = {
    "nodeid": "test_it.py::test_it",
    "location": ("test_it.py", 3, "test_it"),
    "keywords": {"test_it": 1, "test_it.py": 1},
    "outcome": "passed",
    "longrepr": None,
    "when": "setup",
    "user_properties": [],
    "sections": [],
    "duration": 0.1,
    "start": 1.0,
    "stop": 1.1,
}


def test_what_differs() -> None:
    """Of a test that passes: its phase and times."""
    call = {**WHOLE, "when": "call", "start": 1.1, "stop": 1.2}
    assert briefly(call, remembered(WHOLE)) == {
        LIKE: True,
        "when": "call",
        "start": 1.1,
        "stop": 1.2,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "failed"},
        {"outcome": "skipped"},
        {"longrepr": "a failure"},
        {"nodeid": "test_it.py::test_other"},
        {"keywords": {"test_it": 1}},
        {"wasxfail": ""},
        {"extra": mock.ANY},
        {"duration": mock.ANY},
    ],
    ids=str,
)
def test_whole(change: dict[str, Any]) -> None:
    """What differs otherwise is told as it is."""
    assert briefly({**WHOLE, "when": "call", **change}, remembered(WHOLE)) is None
    assert briefly({**WHOLE, "when": "call", **change}, {}) is None


def test_a_foreign_value() -> None:
    """An attribute whose equality is its own affair is never left out."""
    before = {**WHOLE, "extra": mock.ANY}
    assert briefly({**WHOLE, "extra": object()}, remembered(before)) is None


def test_lists_are_told() -> None:
    """Who holds a list of the report that was told may change it."""
    told = {**WHOLE, "sections": [("Captured stdout setup", "a")]}
    before = remembered(told)
    told["sections"].append(("Captured stdout call", "b"))
    brief = briefly({**told, "when": "call"}, before)
    assert brief is not None
    assert brief["sections"] == told["sections"]
    emptied = briefly({**told, "sections": []}, before)
    assert emptied is not None
    assert emptied["sections"] == []


VALUES = st.one_of(st.none(), st.text(max_size=3), st.integers(0, 2), st.lists(st.integers(0, 2)))


@settings(derandomize=True, deadline=None, database=None)
@given(
    before=st.dictionaries(st.sampled_from([*WHOLE, "extra"]), VALUES),
    change=st.dictionaries(st.sampled_from([*WHOLE, "extra"]), VALUES),
)
def test_nothing_is_lost(before: dict[str, Any], change: dict[str, Any]) -> None:
    """Put on what was told before, a brief report is the whole one."""
    before = {**WHOLE, **before}
    data = {**before, **change}
    brief = briefly(data, remembered(before))
    if brief is not None:
        assert brief.pop(LIKE) is True
        assert brief.keys() <= VARIES
        assert {**before, **brief} == data
