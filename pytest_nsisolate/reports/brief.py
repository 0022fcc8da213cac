"""Shorten the report of a passed phase to what the item of its test doesn't say already.

Of a test that passes that is the phase and its times, three times; the names of its keywords go
with the first of them. The runner makes the report of its own item.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Marks a brief report; its value is the keywords, None if they are those of the one before.
BRIEF = "$ns_brief"
_ALWAYS = (BRIEF, "when", "duration", "start", "stop")
_IF_ANY = ("sections", "user_properties")
#: What pytest gives every report. With anything else it is told whole.
_ATTRIBUTES = vars(pytest.TestReport("", ("", 0, ""), {}, "passed", None, "call")).keys()
#: From 9.2 on, items and reports hold their nodeid in parts.
_IN_PARTS = "_id" in _ATTRIBUTES
#: Modules whose `pytest_report_to_serializable` adds nothing to a report of this kind.
_KNOWN = ("_pytest.reports", "_pytest.subtests", "pytest_subtests")


def may_be_brief(config: pytest.Config) -> bool:
    """Return whether no plugin changes how reports are serialised."""
    hook = config.hook.pytest_report_to_serializable
    return all(one.function.__module__.startswith(_KNOWN) for one in hook.get_hookimpls())


def _nodeid(item: Any) -> Any:
    return item.id if _IN_PARTS else item.nodeid


def briefly(
    report: pytest.TestReport, item: pytest.Item, before: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Shorten *report* to a brief one; return None if it has to be sent whole.

    Args:
        item: the test.
        before: the keywords that were told briefly before, of the same test.
    """
    attributes = vars(report)
    own, told = _nodeid(item), _nodeid(report)
    if (
        report.outcome != "passed"
        or report.longrepr is not None
        or attributes.keys() != _ATTRIBUTES
        or (told is not own and str(told) != str(own))
        or report.location != item.location
        or not type(report.duration) is type(report.start) is type(report.stop) is float
    ):
        return None
    names, keywords = None, report.keywords
    if keywords != before:
        try:
            names = "\n".join(keywords)
        except TypeError:  # a plugin's own kind of keyword
            return None
        if names.count("\n") != len(keywords) - 1 or keywords != dict.fromkeys(keywords, 1):
            return None
    data = {name: attributes[name] for name in _IF_ANY if attributes[name]}
    data.update(
        {
            BRIEF: names,
            "when": report.when,
            "duration": report.duration,
            "start": report.start,
            "stop": report.stop,
        }
    )
    return data


def restored(
    data: Mapping[str, Any], item: pytest.Item, before: Mapping[str, Any] | None
) -> pytest.TestReport:
    """Rebuild the report that `briefly` gave as *data*; raise an error if it is malformed.

    Args:
        item: the runner's own.
        before: the keywords of the brief report before, if there was one.
    """
    if len(data) != len(_ALWAYS) + sum(name in data for name in _IF_ANY):
        raise ValueError(f"a brief report with {', '.join(data)}")
    names, *_ = values = [data[name] for name in _ALWAYS]
    if not all(type(value) is float for value in values[2:]):
        raise TypeError("a brief report of no time")
    if names is not None:
        before = dict.fromkeys(map(sys.intern, names.split("\n")), 1)
    if before is None:
        raise ValueError("a brief report without keywords")
    return pytest.TestReport(
        _nodeid(item),
        item.location,
        dict(before),
        "passed",
        None,
        data["when"],
        data.get("sections", ()),
        data["duration"],
        data["start"],
        data["stop"],
        data.get("user_properties"),
    )
