"""Interrupt a test at its timeout, and dump the stacks of its threads.

The runner sends `TIMEOUT_SIGNAL` at the timeout. faulthandler then dumps all stacks in C, so
also while Python code can't run, and `Timeout` fails the test in the main thread.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.core.traceback_text import last_stacks, trim_trace

from .sandbox_info import inside

if TYPE_CHECKING:
    from .frame_stream import Sender

#: A real-time signal that neither glibc nor common test code uses.
TIMEOUT_SIGNAL = (signal.SIGRTMAX - 3) if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
#: The runner sends it when a test has used most of its memory. It only dumps the stacks.
STACK_SIGNAL = (signal.SIGRTMAX - 4) if hasattr(signal, "SIGRTMAX") else signal.SIGUSR1

# Bound now: a test may patch these names in their modules.
_fstat, _pread, _clock = os.fstat, os.pread, time.perf_counter

_TITLE = "stacks at the timeout"


class Timeout:
    """The timeout of the current test.

    Args:
        trace: descriptor of the file that faulthandler writes to.

    Attributes:
        reached: whether the runner has sent `TIMEOUT_SIGNAL`.
    """

    def __init__(self, sender: Sender, trace: int) -> None:
        self._sender = sender
        self._trace = trace
        self._since = 0.0
        self._first = True  # of the tests of this process
        self._shown = False
        self.reached = False

    def install(self, *, memory: bool) -> None:
        """Install the signal handlers, that of `STACK_SIGNAL` only for a *memory* limit."""
        faulthandler.enable(self._trace)
        with contextlib.suppress(RuntimeError, ValueError, OSError):
            signal.signal(TIMEOUT_SIGNAL, self._interrupt)
            if hasattr(faulthandler, "register"):
                faulthandler.register(TIMEOUT_SIGNAL, self._trace, all_threads=True, chain=True)
                if memory:
                    faulthandler.register(STACK_SIGNAL, self._trace, all_threads=True)

    def start(self) -> None:
        """Start the clock of the next test."""
        self._since = _clock()

    def end_test(self) -> None:
        """Note that a test has ended: a late signal may be meant for it."""
        self._first = False
        self._shown = False

    def explain(self, report: pytest.TestReport) -> None:
        """Add the stacks to the report that failed; fail a call that swallowed the exception."""
        if not self.reached:
            return
        if report.failed and not self._shown:
            self._shown = True
            report.sections.append((_TITLE, self._stacks()))
        if report.when == "call" and report.passed:
            report.outcome = "failed"
            report.longrepr = _text()
            report.sections.append((_TITLE, self._stacks()))

    def _stacks(self) -> str:
        trace = _pread(self._trace, _fstat(self._trace).st_size, 0).decode("utf-8", "replace")
        return trim_trace(last_stacks(trace))

    def _interrupt(self, signum: int, frame: object) -> None:
        timeout = _seconds()
        if not self._first and timeout is not None and _clock() - self._since < timeout:
            return  # meant for the test before, which ended in time
        self.reached = True
        if self._sender.sending:
            return  # half a report is worth nothing; this one fails when it is sent
        pytest.fail(_text(), pytrace=False)


def _seconds() -> float | None:
    return inside.sandbox.spec.timeout if inside.sandbox is not None else None


def _text() -> str:
    return (
        f"TIMED OUT after {_seconds():g} s\n"
        "The time for setup, call and teardown together was over. Look at the stacks "
        "below for what it waited for; give it more with "
        "@pytest.mark.isolated(timeout=SECONDS)."
    )
