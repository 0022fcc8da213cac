"""A brief report holds all that the whole one would, and is none where that can't be."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_nsisolate.reports.brief import BRIEF, briefly, may_be_brief, restored

Phase = Literal["setup", "call", "teardown"]


@pytest.fixture
def item(request: pytest.FixtureRequest) -> pytest.Item:
    """The test itself."""
    assert isinstance(request.node, pytest.Item)
    return request.node


def of_phase(item: pytest.Item, when: Phase = "call") -> pytest.TestReport:
    """What pytest makes of a phase that passed."""
    return pytest.TestReport.from_item_and_call(
        item, pytest.CallInfo.from_call(lambda: None, when=when)
    )


def told(report: pytest.TestReport, item: pytest.Item) -> dict[str, Any]:
    """A first brief report, as it comes out of the stream."""
    data: dict[str, Any] = json.loads(json.dumps(briefly(report, item, None)))
    return data


def test_what_is_told(item: pytest.Item) -> None:
    """The phase and its times, and the keywords once; with what pytest itself makes."""
    setup, call = of_phase(item, "setup"), of_phase(item)
    first = briefly(setup, item, None)
    assert first is not None
    assert set(first) == {BRIEF, "when", "duration", "start", "stop"}
    assert set(first[BRIEF].split("\n")) == set(item.keywords)
    assert briefly(call, item, setup.keywords) == {
        BRIEF: None,
        "when": "call",
        "duration": call.duration,
        "start": call.start,
        "stop": call.stop,
    }


def test_all_of_it_comes_back(item: pytest.Item) -> None:
    """Each phase, with output and properties, as a report with lists of its own."""
    keywords: dict[str, Any] | None = None
    for when in ("setup", "call", "teardown"):
        report = of_phase(item, when)
        if when != "setup":
            report.sections = [("Captured stdout call", "text")]
            report.user_properties = [("name", 1)]
        data = json.loads(json.dumps(briefly(report, item, keywords)))
        assert (data[BRIEF] is None) == (keywords is not None)
        again = restored(data, item, keywords)
        assert type(again) is type(report)
        # JSON has no tuples; `check_report` makes them.
        again.sections = [(title, text) for title, text in again.sections]
        again.user_properties = [(name, value) for name, value in again.user_properties]
        assert vars(again) == vars(report)
        assert again.nodeid == report.nodeid
        again.keywords["another"] = 1  # type: ignore[index]
        keywords = dict(report.keywords)
        assert "another" not in restored({**data, BRIEF: None}, item, keywords).keywords


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "failed"},
        {"outcome": "skipped"},
        {"longrepr": "a failure"},
        {"location": ("test_it.py", 7, "test_other")},
        {"keywords": {"a name\nof two lines": 1}},
        {"keywords": {"a name": 2}},
        {"keywords": {5: 1}},
        {"wasxfail": ""},
        {"extra": None},
        {"duration": 1},
        {"start": None},
    ],
    ids=str,
)
def test_whole(item: pytest.Item, change: dict[str, Any]) -> None:
    """What differs in any other way is told as it is."""
    report = of_phase(item)
    assert briefly(report, item, None) is not None
    vars(report).update(change)
    assert briefly(report, item, None) is None


@pytest.mark.parametrize("nodeid", ["", "a.py::b"], ids=["its own", "another"])
def test_of_another_test(item: pytest.Item, nodeid: str) -> None:
    """A report with another nodeid is not told as one of this, wherever that test is."""
    alike = of_phase(item)
    times = (alike.duration, alike.start, alike.stop)
    report = pytest.TestReport(
        nodeid or item.nodeid,
        item.location,
        dict(alike.keywords),
        "passed",
        None,
        "call",
        (),
        *times,
    )
    assert (briefly(report, item, None) is None) == bool(nodeid)


@settings(derandomize=True, deadline=None, database=None)
@given(names=st.sets(st.text(max_size=4), min_size=1))
def test_any_keywords(names: set[str]) -> None:
    """Whatever they are, they come back, or are told whole."""
    item = _Item()
    report = pytest.TestReport(
        "a.py::a", item.location, dict.fromkeys(names, 1), "passed", None, "call"
    )
    report.duration = report.start = report.stop = 0.5
    vars(item).update(vars(report))
    brief = briefly(report, item, None)  # type: ignore[arg-type]
    if brief is None:
        assert any("\n" in name for name in names)
    else:
        again = restored(json.loads(json.dumps(brief)), item, None)  # type: ignore[arg-type]
        assert again.keywords == report.keywords


class _Item:
    """As much of one as is asked for."""

    location = ("a.py", 0, "a")
    nodeid = "a.py::a"

    @property
    def id(self) -> Any:
        """From pytest 9.2 on."""
        return vars(self)["_id"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"nodeid": "test_it.py::test_other"}, ValueError),
        ({"outcome": "failed"}, ValueError),
        ({BRIEF: 5}, AttributeError),
        ({BRIEF: None}, ValueError),
        ({"start": "now"}, TypeError),
        ({"duration": True}, TypeError),
        ({"sections": 5}, TypeError),
    ],
    ids=str,
)
def test_forged(item: pytest.Item, change: dict[str, Any], error: type[Exception]) -> None:
    """What a test process must not say so is no report."""
    data = told(of_phase(item), item)
    restored(data, item, None)
    with pytest.raises(error):
        restored({**data, **change}, item, None)


@pytest.mark.parametrize("name", ["when", "duration", "start", "stop"])
def test_forged_and_short(item: pytest.Item, name: str) -> None:
    """One without its phase or a time is none."""
    data = told(of_phase(item), item)
    del data[name]
    with pytest.raises((KeyError, ValueError)):
        restored(data, item, None)


def test_a_plugin_with_a_say(pytestconfig: pytest.Config) -> None:
    """Where a plugin makes its own of a report, none is told briefly."""

    class Plugin:
        def pytest_report_to_serializable(self) -> None:
            """Add something."""

    assert may_be_brief(pytestconfig)
    plugin = Plugin()
    pytestconfig.pluginmanager.register(plugin)
    try:
        assert not may_be_brief(pytestconfig)
    finally:
        pytestconfig.pluginmanager.unregister(plugin)
