"""Take in the frames of test processes: check each, and make events of those that change a state.

A test process is not trusted. What it sends is checked here, and what makes no sense is the event
`Broken`; so an error raised by whoever handles an event is a fault of this package, and is seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_nsisolate.core import wire
from pytest_nsisolate.core.linux.syscalls import StageError
from pytest_nsisolate.core.outcome import Kind, Outcome

from .events import Broken, Completed, DebuggerStarts, NotEntered, Reported, SetUp, TestOver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .events import FrameEvent
    from .test_process import TestProcess


def events(process: TestProcess, data: bytes) -> Iterator[FrameEvent]:
    """Take in what the stream of a process gave; yield what changes its state, in order.

    All other frames are put with the current test. Stop before the next frame once the process
    has ended, which whoever handles an event may have decided.
    """
    try:
        for kind, payload in process.decoder.feed(data):
            yield from _take(process, kind, payload)
            if process.over:
                return
    except wire.WireError as error:
        yield Broken(Outcome(Kind.TRUNCATED, detail=str(error)))


def _take(process: TestProcess, kind: str, payload: Any) -> Iterator[FrameEvent]:
    """Take in one frame.

    Raises:
        WireError: it makes no sense.
    """
    test = process.test
    if kind == "end":
        if not isinstance(payload, dict):
            raise wire.WireError("the report stream ends with JSON that is no ending")
        test.frames.append((kind, payload))
        yield Completed(payload)
    elif kind == "turn":
        if not isinstance(payload, dict) or process.index + 1 >= len(process.tests):
            raise wire.WireError("the report stream ends a test in the middle of nothing")
        test.frames.append(("end", payload))
        yield TestOver(payload)
    elif kind == "failed":
        yield NotEntered(_error(payload))
    elif kind == "ready" and process.serves is not None:
        yield SetUp()
    elif kind == "exported":
        test.export()
    elif kind == "debugger":
        test.frames.append((kind, payload))
        yield DebuggerStarts()
    else:
        if kind == "report" and process.budget is not None:
            if not isinstance(payload, dict):
                raise wire.WireError("the report stream has a report that makes no sense")
            yield Reported(payload)
        test.frames.append((kind, payload))


def _error(payload: object) -> StageError:
    """Return the failure that a process reports.

    Raises:
        WireError: it makes no sense.
    """
    match payload:
        case [str(stage), int(number), str(path)] if type(number) is int:
            return StageError(stage, number, path)
    raise wire.WireError("the report stream tells of a failure that makes no sense")
