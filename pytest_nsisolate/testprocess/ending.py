"""Measure what the frame at the end of a test says: figures and changes of the session."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from _pytest.junitxml import xml_key

from pytest_nsisolate.core.usage import Usage, of_this_process
from pytest_nsisolate.reports import other_plugins

if TYPE_CHECKING:
    import pytest

# Bound now: a test may patch it in its module.
_clock = time.perf_counter


class Ending:
    """The figures of the current test, and what it changed in the session."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._used: Usage | None = None  # at the end of the test before
        self._begin = 0.0
        self._xml = session.config.stash.get(xml_key, None)
        self._note_properties()
        self.start_process()

    def _note_properties(self) -> None:
        if self._xml is not None:
            self._suite_properties = len(self._xml.global_properties)

    def start_process(self) -> None:
        """Note how the session stands: later changes are those of this process."""
        self._state = (self._session.shouldfail, self._session.shouldstop)

    def end_test(self) -> None:
        """Note what has been sent: the next test sends only its own."""
        self._note_properties()
        self.start_process()

    def start_test(self) -> None:
        """Start the clock of a test."""
        self._begin = _clock()

    def fields(self, item: pytest.Item, *, failed: bool) -> dict[str, Any]:
        """Measure the test that ends now.

        Args:
            failed: whether a report of the test failed.
        """
        used = of_this_process()
        before, self._used = self._used, used
        if before is not None:
            used = used.since(before)
        end: dict[str, Any] = {
            "failed": failed,
            "wall": _clock() - self._begin,
            "usage": used.to_wire(),
        }
        xml = self._xml
        if xml is not None and len(xml.global_properties) > self._suite_properties:
            end["suite properties"] = xml.global_properties[self._suite_properties :]
        state = (self._session.shouldfail, self._session.shouldstop)
        if state != self._state:
            end["session"] = state
        reruns = other_plugins.reruns_state(item)
        if reruns:
            end["reruns"] = reruns
        return end
