"""Serialise reports and warnings in a test process, and rebuild them in the runner."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from _pytest._code.code import TerminalRepr

from . import other_plugins
from .soundness import check_whole

if TYPE_CHECKING:
    from _pytest._io import TerminalWriter


class Text(TerminalRepr):
    """A failure that the test process could send as text only, such as a doctest's.

    Like the original it has no ``reprcrash``, so that summaries treat it alike.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def toterminal(self, tw: TerminalWriter) -> None:
        """Write it."""
        for line in self._text.splitlines():
            tw.line(line)


def serialised(config: pytest.Config, report: pytest.TestReport) -> dict[str, Any]:
    """Serialise *report* for `rebuild_report`, by pytest's own hook."""
    data: dict[str, Any] | None = config.hook.pytest_report_to_serializable(
        config=config, report=report
    )
    return report._to_json() if data is None else data  # with -p no:reports


def rebuild_report(config: pytest.Config, data: dict[str, Any]) -> pytest.TestReport:
    """Rebuild the report that a test process serialised, by pytest's own hook."""
    report = config.hook.pytest_report_from_serializable(config=config, data=data)
    if report is None:  # with -p no:reports
        report = pytest.TestReport._from_json(data)
    if not isinstance(report, pytest.TestReport):
        raise TypeError(f"no test report: {data.get('$report_type')!r}")
    # JSON has lists only; the terminal takes a skip apart as a tuple.
    longrepr: Any = report.longrepr
    if isinstance(longrepr, list):
        report.longrepr = tuple(longrepr)
    elif data.get("$ns_terminal"):
        report.longrepr = Text(longrepr)
    other_plugins.restore_subtest(report, data)
    other_plugins.note_report(report, data)
    location: Any = report.location
    report.location = (location[0], location[1], location[2])
    check_whole(report, config)
    return report


def share(report: pytest.TestReport, item: pytest.Item) -> None:
    """Let *report* hold what the item holds already, in place of equal copies.

    Pytest keeps every report to the end of the session.
    """
    any_report: Any = report
    own: Any = getattr(item, "id", None)
    if hasattr(report, "_id") and str(any_report._id) == str(own):
        any_report._id = own
    elif report.nodeid == item.nodeid and "nodeid" in vars(report):
        report.nodeid = item.nodeid
    if report.location == item.location:
        report.location = item.location
    report.keywords = {sys.intern(name): value for name, value in report.keywords.items()}


def _find_class(module: str, name: str) -> type | None:
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) else None


def _check_warning(data: dict[str, Any]) -> None:
    """Check that the terminal can show the warning."""
    texts = [data["text"], data["filename"], data["line"] or "", data["source"] or ""]
    if not (all(isinstance(one, str) for one in texts) and type(data["lineno"]) is int):
        raise TypeError("a warning that is no text, or stands nowhere")
    if "\0" in data["filename"]:
        raise ValueError(f"a warning in {data['filename']!r:.80}")


def rebuild_warning(data: dict[str, Any]) -> warnings.WarningMessage:
    """Rebuild the warning that a test process recorded; of a class unknown here, a `Warning`."""
    _check_warning(data)
    category = _find_class(*data["category"])
    if category is None or not issubclass(category, Warning):
        category = Warning
    message: Warning | str = data["text"]
    own = _find_class(*data["class"])
    if data["args"] is not None and own is not None and issubclass(own, Warning):
        # Foreign constructors may want what the wire could not carry.
        try:
            built = own(*data["args"])
        except Exception:  # noqa: BLE001 -- foreign code
            built = None
        if built is not None and str(built) == data["text"]:
            message = built
        else:
            message = category(data["text"]) if category is not Warning else Warning(data["text"])
    return warnings.WarningMessage(
        message,
        category,
        data["filename"],
        data["lineno"],
        line=data["line"],
        # Its repr stands for it: pytest says more of a warning that has a source.
        source=data["source"],
    )
