"""Work out how test processes and their tests end, and gather what belongs to an ending.

That is: what limits were reached and what was used, the output and the trace of a test that did
not complete, the processes it left running, its files, and whether its sandbox is kept.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core.linux.proc import line_of
from pytest_nsisolate.core.outcome import Kind, Outcome
from pytest_nsisolate.core.traceback_text import relevant
from pytest_nsisolate.core.usage import Usage, is_amount

from .deadlines import GRACE
from .test_process import FILES, text_of

if TYPE_CHECKING:
    from .processes import Parts, Processes
    from .test_process import TestProcess

#: How long it may take to stop a test that has run away, in seconds; else it is killed as it runs.
_STOP_PATIENCE = 1.0


def _seconds(value: object) -> float:
    """Return the time that a test process reports, 0 if that makes no sense."""
    return float(value) if is_amount(value) else 0.0


def _numbers(process: TestProcess) -> tuple[int, int]:
    """Return the number of a process and that of its sandbox, -1 if it has none."""
    return process.number, process.sandbox.number if process.sandbox is not None else -1


def of_status(process: TestProcess, status: int, usage: bytes) -> Outcome:
    """Make the outcome of a process that ended with this wait status and did not report how.

    Args:
        usage: the figures of `Usage.of_wire` as text, of the process that waited for it.
    """
    if process.timed_out:
        outcome = Outcome(Kind.TIMED_OUT, timeout=process.spec.timeout)
    elif process.decoder.partial:
        outcome = Outcome(Kind.TRUNCATED, detail="it ends in the middle of a frame")
    else:
        outcome = Outcome.of_status(status)
    if usage:
        figures = [float(one) for one in usage.split()]
        outcome.usage = Usage.of_wire(figures).without_cpu(*process.used)
    return outcome


class Endings:
    """See the module.

    Args:
        parts: of the session.
        processes: what the processes are released by.
    """

    def __init__(self, parts: Parts, processes: Processes) -> None:
        self._parts = parts
        self._processes = processes

    def test_over(self, process: TestProcess, end: dict[str, Any]) -> Outcome | None:
        """Finish a test whose process goes on; return the outcome of the process if it can't."""
        # If its time was over, it has ended all the same, just in time.
        outcome = Outcome(Kind.COMPLETED)
        outcome.usage = Usage.of_wire(end.get("usage"))
        outcome.wall = _seconds(end.get("wall"))
        failed = bool(end.get("failed"))
        process.fail(failed=failed)
        if process.budget is not None:
            process.budget.test_over(outcome)
            if outcome.kind is not Kind.COMPLETED:
                # What is left of the group goes on where nothing was killed.
                return outcome
        if self._parts.watch is not None:
            outcome.timing = self._parts.watch.test_over(*_numbers(process), outcome, process.spec)
        if process.test.exported:
            self._bring_out(process, outcome, failed=failed, goes_on=True)
        if process.timed_out or process.sent <= process.index + 1:
            process.forget_trace()
        process.advance(outcome, time.monotonic())
        return None

    def completed(self, process: TestProcess, end: dict[str, Any]) -> Outcome | None:
        """Return the outcome of a process after its last test; None if its guard has yet to end."""
        kind = Kind.TIMED_OUT if process.timed_out else Kind.COMPLETED
        outcome = Outcome(kind, timeout=process.spec.timeout)
        outcome.usage = Usage.of_wire(end.get("usage"))
        process.fail(failed=bool(end.get("failed")))
        if process.sandbox is None:
            # Its guard looks for what it left running, and then ends as it did.
            process.ends_with(outcome, time.monotonic() + GRACE)
            return None
        if process.shared:
            outcome.wall = _seconds(end.get("wall"))
        return outcome

    def end(self, process: TestProcess, outcome: Outcome, *, failed: bool) -> None:
        """End the current test of a process, and the process, with *outcome*.

        Args:
            failed: whether a test of the process has failed.
        """
        watch, test = self._parts.watch, process.test
        if not outcome.wall and process.begin:
            outcome.wall = time.monotonic() - process.begin
        if outcome.kind is Kind.TIMED_OUT:
            outcome.running = test.running
        if process.budget is not None:
            process.budget.read(outcome, shared=process.shared)
        if watch is not None and process.serves is None:
            outcome.timing = watch.ended(*_numbers(process), outcome, process.spec)
        if outcome.kind is not Kind.COMPLETED and len(process.files) == FILES:
            trace, out, err = (text_of(fd) for fd in process.files)
            outcome.trace, outcome.out, outcome.err = relevant(trace, outcome.kind), out, err
        if process.sandbox is not None and process.serves is None:
            still = not process.runaway or self._stop(process)
            if still and outcome.kind is not Kind.COMPLETED:
                outcome.left = [line_of(*one) for one in process.sandbox.processes()]
            if still and process.since:
                self._bring_out(process, outcome, failed=failed)
        outcome.left = outcome.left or process.left
        test.end(outcome)
        if self._parts.keeping is not None:
            self._parts.keeping.consider(process, outcome, self._parts.plans, failed=failed)
        self._processes.release(process)

    def _stop(self, process: TestProcess) -> bool:
        """Stop all processes of a test that has run away; return whether that could be done."""
        if process.budget is not None and process.budget.freeze():
            return True
        return process.sandbox is not None and process.sandbox.stop(_STOP_PATIENCE)

    def _bring_out(
        self, process: TestProcess, outcome: Outcome, *, failed: bool, goes_on: bool = False
    ) -> None:
        """Copy the files that the host gets of the current test."""
        if process.sandbox is None or self._parts.retention is None:
            return
        outcome.artifacts, outcome.brought, outcome.written_files = self._parts.retention.bring_out(
            process.sandbox,
            process.test.item,
            failed=failed,
            exported=process.test.exported,
            since=process.since,
            before=[test.item for test in process.tests[: process.index]],
            goes_on=goes_on,
        )
