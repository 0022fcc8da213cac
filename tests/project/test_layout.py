"""Tests lie where their subject says: unit tests as their modules do, behaviour tests by topic."""

from __future__ import annotations

from helpers.project import ROOT

OF_SEVERAL = {"cgroups/v1_and_v2.py"}
"""Unit tests of more than one module."""
MOST_FILES = 16


def test_unit_tests_lie_as_their_modules() -> None:
    unit = ROOT / "tests" / "unit"
    for path in unit.rglob("test_*.py"):
        module = path.with_name(path.name.removeprefix("test_")).relative_to(unit)
        assert (ROOT / "pytest_nsisolate" / module).is_file() or str(module) in OF_SEVERAL, path


def test_no_test_file_lies_outside_of_a_topic() -> None:
    tests = ROOT / "tests"
    assert not [*tests.glob("test_*.py"), *tests.glob("behaviour/test_*.py")]


def test_topics_are_small() -> None:
    for topic in (ROOT / "tests" / "behaviour").iterdir():
        assert len([*topic.glob("test_*.py")]) <= MOST_FILES, topic
